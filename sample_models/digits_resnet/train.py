"""Trains and exports ``digits_resnet``: ResNet-18 for 32 x 32 inputs at half width.

He et al., Deep Residual Learning for Image Recognition (2016), in the form that is usual for
small images: a 3 x 3 stem without pooling, four stages of two basic blocks, here with 32, 64, 128
and 256 channels. Ends in ArgMax. About 9 minutes on one core (OMP_NUM_THREADS=1):

    python sample_models/digits_resnet/train.py
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from digits_data import SIZE, save, views

BATCH = 64


class Block(nn.Module):
    """A basic block: two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Scores of ten digits for ``[N, 1, 32, 32]`` images."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage in range(4):
            blocks.append(Block(sizes[stage], sizes[stage + 1], 1 if stage == 0 else 2))
            blocks.append(Block(sizes[stage + 1], sizes[stage + 1], 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(sizes[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class Classifier(nn.Module):
    """The exported form: the class, not the scores."""

    def __init__(self, model: ResNet):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).argmax(dim=1)


def train(small_epochs: int, epochs: int, per_epoch: int, seed: int) -> ResNet:
    """Stochastic gradient descent with a one-cycle rate; fresh views every epoch.

    The first epochs see images of half the size, which cost a quarter.
    """
    torch.manual_seed(seed)
    model = ResNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = (small_epochs + epochs) * (per_epoch // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.25)
    for epoch in range(small_epochs + epochs):
        size = SIZE // 2 if epoch < small_epochs else SIZE
        images, labels = views("train", per_epoch, size, seed=1000 * (seed + 1) + epoch)
        order = torch.randperm(per_epoch)
        x, y = torch.from_numpy(images)[order, None], torch.from_numpy(labels)[order]
        start, total = time.time(), 0.0
        for i in range(0, per_epoch - BATCH + 1, BATCH):
            optimizer.zero_grad(set_to_none=True)
            out = model(x[i : i + BATCH].contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(out, y[i : i + BATCH], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch} ({size} px): loss {total / (per_epoch // BATCH):.3f}, {time.time() - start:.0f} s",
            flush=True,
        )
    return model.eval().to(memory_format=torch.contiguous_format)


def export(model: ResNet, path: Path) -> None:
    """Writes the ONNX file, BatchNormalization kept as nodes."""
    torch.onnx.export(
        Classifier(model),
        (torch.zeros(2, 1, SIZE, SIZE),),
        str(path),
        input_names=["image"],
        output_names=["class"],
        dynamic_axes={"image": {0: "N"}, "class": {0: "N"}},
        opset_version=17,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small-epochs", type=int, default=5, help="epochs on images of half the size")
    parser.add_argument("--epochs", type=int, default=2, help="epochs on whole images")
    parser.add_argument("--per-epoch", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-only", action="store_true", help="write the data, train nothing")
    args = parser.parse_args()
    save(HERE / "calibration", "calibration", 4000, seed=1)
    save(HERE / "test", "test", 6000, seed=2)
    if args.data_only:
        return
    model = train(args.small_epochs, args.epochs, args.per_epoch, args.seed)
    export(model, HERE / "digits_resnet.onnx")
    images, labels = views("test", 6000, SIZE, seed=2)
    with torch.no_grad():
        parts = torch.from_numpy(images)[:, None].split(500)
        right = sum(
            int((model(p).argmax(1).numpy() == labels[500 * i : 500 * i + 500]).sum())
            for i, p in enumerate(parts)
        )
    print(f"test accuracy {right / len(labels):.4f}")


if __name__ == "__main__":
    main()
