"""Helpers shared by the three training scripts: digit images, data directories and ONNX checks.

The digits are scikit-learn's ``load_digits``: 1,797 images of 8x8 pixels, the test part of the UCI
"Optical Recognition of Handwritten Digits" set (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

LEVELS = 16  # pixel values are multiples of 1/16, as in the original digits


def split_digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (images [N, 8, 8] in 0..1, labels [N]) for 'train', 'calibration' and 'test'.

    The originals are split before any augmentation, class by class (60 / 15 / 25 %), so no original
    lends its variants to two splits.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / LEVELS).astype(np.float32)
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "calibration": [], "test": []}
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        cuts = (np.array([0.60, 0.75]) * len(members)).astype(int)
        for name, chosen in zip(parts, np.split(members, cuts)):
            parts[name].append(chosen)
    order = {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}
    return {name: (images[index], labels[index]) for name, index in order.items()}


def augment_digits(
    images: np.ndarray,
    rng: np.random.Generator,
    size: int,
    *,
    rotation: float,
    scale: float,
    shift: float,
    contrast: float,
    noise: float,
) -> np.ndarray:
    """Resample [N, 8, 8] images to [N, size, size], each under its own random affine map.

    ``rotation`` is the largest angle in degrees, ``scale`` the largest relative change of size,
    ``shift`` the largest offset in pixels of the 8x8 original, ``contrast`` the largest relative
    loss of contrast, ``noise`` the standard deviation of additive Gaussian noise.  Bilinear
    interpolation, black outside; the result is clipped to 0..1 and rounded to multiples of 1/16.
    """
    count, side = len(images), images.shape[1]
    angle = np.deg2rad(rng.uniform(-rotation, rotation, count))[:, None, None]
    zoom = rng.uniform(1 - scale, 1 + scale, count)[:, None, None]
    offset = rng.uniform(-shift, shift, (2, count, 1, 1))
    keep = rng.uniform(1 - contrast, 1, count)[:, None, None]

    centre = (side - 1) / 2
    axis = (np.arange(size) + 0.5) * side / size - 0.5 - centre
    row, column = axis[None, :, None], axis[None, None, :]
    y = (np.cos(angle) * row - np.sin(angle) * column) / zoom + centre + offset[0]
    x = (np.sin(angle) * row + np.cos(angle) * column) / zoom + centre + offset[1]

    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))  # black border, so that x0 + 1 exists
    y, x = np.clip(y + 1, 0, side + 1), np.clip(x + 1, 0, side + 1)
    y0, x0 = y.astype(np.int64), x.astype(np.int64)
    fy, fx = y - y0, x - x0
    which = np.arange(count)[:, None, None]
    upper = padded[which, y0, x0] * (1 - fx) + padded[which, y0, x0 + 1] * fx
    lower = padded[which, y0 + 1, x0] * (1 - fx) + padded[which, y0 + 1, x0 + 1] * fx
    pixels = (upper * (1 - fy) + lower * fy) * keep
    pixels += rng.normal(0, noise, pixels.shape)
    return (np.round(np.clip(pixels, 0, 1) * LEVELS) / LEVELS).astype(np.float32)


def fresh_directory(path: Path) -> Path:
    """Create ``path`` empty, dropping what an earlier run left there."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def load_directory(path: Path) -> list[dict[str, np.ndarray]]:
    """Read every .npz of a data directory, in name order."""
    samples = []
    for file in sorted(path.glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            samples.append(dict(archive))
    return samples


def finish_onnx(path: Path, description: str) -> None:
    """Make an exported model tidy and loadable by ONNX Runtime 1.17, then check it in full."""
    model = onnx.load(path)
    model.ir_version = min(model.ir_version, 9)
    model.doc_string = description
    for node in model.graph.node:
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def session(model: Path | onnx.ModelProto, threads: int = 2) -> ort.InferenceSession:
    """Open a CPU session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def accuracy(path: Path, directory: Path) -> tuple[float, int]:
    """Share of labels the model's first output meets, and the number of labels."""
    runner = session(path)
    right = total = 0
    for sample in load_directory(directory):
        label = sample.pop("label").reshape(-1)
        answer = runner.run(None, sample)[0].reshape(-1)
        right += int((answer == label).sum())
        total += label.size
    return right / total, total


def describe(path: Path, sample: dict[str, np.ndarray], divide: int = 1) -> None:
    """Print the MACs of each linear node, divided by ``divide``, and the share of zeros after each ReLU."""
    model = onnx.load(path)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    wanted = {node.output[0] for node in relus + linear}
    wanted |= {name for node in linear for name in node.input[:2] if name not in weights}
    known = {value.name for value in [*model.graph.output, *model.graph.input]}
    for name in sorted(wanted - known):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    runner = session(model)
    values = dict(sample)
    values.update(zip([o.name for o in runner.get_outputs()], runner.run(None, sample)))

    total = 0
    for node in linear:
        if node.op_type == "Conv":
            per_output = int(np.prod(weights[node.input[1]][1:]))
        else:
            per_output = values[node.input[0]].shape[-1]
        macs = values[node.output[0]].size * per_output // divide
        total += macs
        print(f"  {node.name:44s} {node.op_type:7s} out {values[node.output[0]].shape!s:22s} {macs:>12,} MACs")
    print(f"  {'all linear nodes':44s} {'':34s} {total:>12,} MACs")
    for node in relus:
        zeros = float((values[node.output[0]] == 0).mean())
        print(f"  {node.name:44s} Relu    zeros {zeros:6.1%}")
