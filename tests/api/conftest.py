"""A small model with its samples in a folder, in memory, and as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.models import build, mlp


@pytest.fixture(scope="session")
def proto() -> onnx.ModelProto:
    return mlp()


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """``[160, 64]``."""
    return np.random.default_rng(0).standard_normal((160, 64)).astype(np.float32)


@pytest.fixture(scope="session")
def labels(images: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, len(images))


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proto: onnx.ModelProto,
    images: np.ndarray,
    labels: np.ndarray,
) -> Path:
    """The current folder: ``model.onnx``, ``plain.onnx`` without sites, ``data``."""
    monkeypatch.chdir(tmp_path)
    onnx.save(proto, tmp_path / "model.onnx")
    plain = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
    onnx.save(plain, tmp_path / "plain.onnx")
    (tmp_path / "data").mkdir()
    for index, (x, label) in enumerate(zip(images, labels, strict=True)):
        np.savez(tmp_path / "data" / f"{index:03d}.npz", x=x[None], label=label)
    return tmp_path
