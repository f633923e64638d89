"""Memory is bounded by the model, not by the data: a hundred times the samples in the memory of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from tests.models import mlp

ROOT = Path(__file__).parents[2]
#: Prints the peak resident size of a calibration, in KiB.
SCRIPT = (
    "import resource, sys; from exprune_cli import api; "
    "print(api.calibrate(sys.argv[1], sys.argv[2], sys.argv[3]).samples, "
    "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def _peak(folder: Path, name: str) -> tuple[int, int]:
    paths = [str(folder / part) for part in ("m.onnx", name, f"{name}.calib")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    samples, peak = done.stdout.split()
    return int(samples), int(peak)


def test_a_hundred_times_the_samples_take_the_same_memory(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for name, files in (("few", 1), ("many", 100)):
        (tmp_path / name).mkdir()
        for index in range(files):
            x = rng.standard_normal((1000, 64)).astype(np.float32)
            np.savez(tmp_path / name / f"{index:03d}.npz", x=x)
    few, many = _peak(tmp_path, "few"), _peak(tmp_path, "many")
    assert (few[0], many[0]) == (1000, 100_000)
    assert many[1] <= 1.1 * few[1], (few, many)
    size = [(tmp_path / f"{name}.calib").stat().st_size for name in ("few", "many")]
    # What grows is 8 bytes per sample, its digest.
    assert size[1] - 8 * 100_000 <= 2.2 * size[0]
