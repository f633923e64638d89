"""scikit-learn's digits, split by original image, and seeded views of them.

The originals (1,797 images of 8 x 8 pixels, 17 grey levels) are split once into train,
calibration and test, so that a view in the test set never comes from an original that
training or calibration saw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

#: Side of the images of ``digits_resnet``.
SIZE = 32
SPLITS = ("train", "calibration", "test")


def numbers(split: str) -> np.ndarray:
    """``[n]`` int64: which of all originals belong to one split (60, 15, 25 %)."""
    count = len(load_digits().target)
    order = np.random.default_rng(0).permutation(count)
    ends = (np.array([0.0, 0.6, 0.75, 1.0]) * count).astype(int)
    i = SPLITS.index(split)
    return np.sort(order[ends[i] : ends[i + 1]]).astype(np.int64)


def originals(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[n, 8, 8]`` float32 in [0, 1] and labels ``[n]`` int64 of one split."""
    digits, part = load_digits(), numbers(split)
    return (digits.images[part] / 16).astype(np.float32), digits.target[part].astype(np.int64)


def view(image: np.ndarray, size: int, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """A random view of one image: rotated, scaled, sheared, shifted, faded, with noise.

    Args:
        image: ``[8, 8]``.
        size: Side of the result.
        rng: Source of randomness.
        strength: Factor on the size of every change.

    Returns:
        ``[size, size]`` float32 in [0, 1], in steps of 1/16.
    """
    angle = strength * rng.uniform(-0.35, 0.35)
    scale = 1 + strength * rng.uniform(-0.2, 0.2)
    shear = strength * rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) * (8 / size) / scale
    shift = np.array([3.5, 3.5]) - matrix @ (
        np.array([size, size]) / 2 - 0.5 + strength * rng.uniform(-0.07, 0.07, 2) * size
    )
    result = ndimage.affine_transform(image, matrix, shift, output_shape=(size, size), order=1)
    result = result * (1 - strength * (0.4 - rng.uniform(0.0, 0.4))) + rng.normal(
        0, strength * rng.uniform(0.0, 0.12), result.shape
    )
    return (np.round(np.clip(result, 0, 1) * 16) / 16).astype(np.float32)


def views(
    split: str, count: int, size: int, seed: int, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` views ``[count, size, size]`` of the split's originals in turn, and their labels."""
    images, labels = originals(split)
    rng = np.random.default_rng(seed)
    pick = np.arange(count) % len(images)
    return np.stack([view(images[i], size, rng, strength) for i in pick]), labels[pick]


def save(folder: Path, split: str, count: int, seed: int) -> None:
    """Writes views as ``.npz`` files of 1,000 samples; ``group`` is the original's number among all."""
    folder.mkdir(exist_ok=True)
    images, labels = views(split, count, SIZE, seed)
    groups = np.resize(numbers(split), count)
    for i in range(0, count, 1000):
        part = slice(i, i + 1000)
        np.savez_compressed(
            folder / f"{i // 1000:02d}.npz", image=images[part, None], label=labels[part], group=groups[part]
        )
