"""The ONNX files of the PyPI package silero-vad, and inputs for them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from exprune_cli.model import model_inputs

WHEEL = "silero-vad==6.2.3"
_SIZES = {"input": [1, 576], "state": [2, 1, 128], "h": [1, 1, 128], "c": [1, 1, 128]}


def silero_files(folder: Path) -> dict[str, Path]:
    """The package's ONNX files by name; its dependencies are not wanted. Skips where there is no registry."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be downloaded here")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    found = {path.stem: path for path in sorted(folder.rglob("*.onnx"))}
    assert len(found) >= 4
    return found


def silero_feeds(path: Path) -> dict[str, np.ndarray]:
    """Seeded inputs for one of the files."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model_inputs(onnx.load(path)):
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            feeds[value.name] = np.array(16000, np.int64)
            continue
        declared = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        shape = [d or s for d, s in zip(declared, _SIZES[value.name], strict=False)]
        feeds[value.name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    return feeds
