"""Makes statically pruned forms of ``digits_resnet``: the smallest 80 and 90 % of its weights are zero.

Magnitude pruning, globally over all convolutions but the stem (Han et al., Learning both Weights and
Connections for Efficient Neural Networks, 2015), in steps, each followed by fine-tuning with the zeros
held. About 3 minutes on one core (OMP_NUM_THREADS=1):

    python sample_models/digits_resnet/prune.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F
from train import BATCH, HERE, SIZE, ResNet, export, views

#: Shares of zeros, in order; the file of the last two is written.
STEPS = (0.6, 0.8, 0.9)
WRITTEN = (0.8, 0.9)


def trained() -> ResNet:
    """The model with the weights of ``digits_resnet.onnx``."""
    proto = onnx.load(HERE / "digits_resnet.onnx")
    arrays = {t.name.removeprefix("model."): numpy_helper.to_array(t) for t in proto.graph.initializer}
    model = ResNet()
    state = model.state_dict()
    for name in state:
        if name in arrays:
            state[name] = torch.from_numpy(arrays[name].copy())
        elif not name.endswith("num_batches_tracked"):
            raise SystemExit(f"digits_resnet.onnx has no {name}")
    model.load_state_dict(state)
    return model


def masks(model: ResNet, share: float) -> dict[str, torch.Tensor]:
    """Which weights stay: one threshold for all convolutions but the stem."""
    weights = {n: p for n, p in model.named_parameters() if p.ndim == 4 and n != "stem.weight"}
    every = torch.cat([p.detach().abs().flatten() for p in weights.values()])
    limit = torch.from_numpy(np.quantile(every.numpy(), [share])).float()
    return {name: (p.detach().abs() > limit).float() for name, p in weights.items()}


def fine_tune(model: ResNet, kept: dict[str, torch.Tensor], count: int, seed: int, rate: float) -> None:
    """One pass over fresh views with the zeros held."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count // BATCH)
    images, labels = views("train", count, SIZE, seed=seed)
    order = torch.randperm(count)
    x, y = torch.from_numpy(images)[order, None], torch.from_numpy(labels)[order]
    parameters = dict(model.named_parameters())
    for i in range(0, count - BATCH + 1, BATCH):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x[i : i + BATCH]), y[i : i + BATCH], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, mask in kept.items():
                parameters[name].mul_(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-step", type=int, default=6144, help="views that each step is fine-tuned on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = trained()
    for step, share in enumerate(STEPS):
        start = time.time()
        kept = masks(model, share)
        with torch.no_grad():
            for name, mask in kept.items():
                dict(model.named_parameters())[name].mul_(mask)
        fine_tune(model, kept, args.per_step, 5000 + 10 * args.seed + step, 0.02)
        model.eval()
        images, labels = views("calibration", 1000, SIZE, seed=1)
        with torch.no_grad():
            right = np.mean(model(torch.from_numpy(images)[:, None]).argmax(1).numpy() == labels)
        zeros = 1 - float(sum(m.sum() for m in kept.values()) / sum(m.numel() for m in kept.values()))
        print(f"{zeros:.0%} zeros: {right:.2%} on calibration views, {time.time() - start:.0f} s", flush=True)
        if share in WRITTEN:
            export(model, HERE / f"digits_resnet_pruned{round(100 * share)}.onnx")


if __name__ == "__main__":
    main()
