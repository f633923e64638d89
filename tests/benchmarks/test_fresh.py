"""New test data: views of the test originals alone, windows that no committed data have; the sources give those data."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import fresh

sys.path.append(str(fresh.MODELS))


def _all(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(file)[name] for file in sorted(folder.glob("*.npz"))])


def test_new_data_are_new(tmp_path: Path) -> None:
    text = platform.python_version() == "3.11.7"
    if text:
        fresh.write(tmp_path, images=460, graphs=2, sequences=30)
    else:
        with pytest.raises(ValueError, match=r"run with Python 3\.11\.7"):
            fresh.write(tmp_path, images=460, graphs=2, sequences=30)
    for name, array in (("digits_resnet", "image"), ("graph_gcn", "x"), ("relu_lm", "tokens"))[: 2 + text]:
        new = _all(tmp_path / name / "test", array)
        for split in ("calibration", "test"):
            old = {row.tobytes() for row in _all(fresh.MODELS / name / split, array)}
            found = [row.tobytes() in old for row in new]
            # Rarely two views of one original are equal: they are coarse.
            assert np.mean(found) <= (0 if array == "tokens" else 0.01), (name, split)
    labels = _all(tmp_path / "digits_resnet" / "test", "label")
    assert np.array_equal(labels[:10], labels[450:]), "450 originals in turn"
    assert np.array_equal(labels[:450], _all(fresh.MODELS / "digits_resnet" / "test", "label")[:450])


def test_the_sources_give_the_committed_data() -> None:
    import digits_data
    import graph_data

    for split, seed in (("calibration", 1), ("test", 2)):
        images, labels = digits_data.views(split, 600, digits_data.SIZE, seed)
        assert np.array_equal(_all(fresh.MODELS / "digits_resnet" / split, "image")[:600, 0], images)
        assert np.array_equal(_all(fresh.MODELS / "digits_resnet" / split, "label")[:600], labels)
    # The order of all nodes depends on their number.
    graphs = graph_data.graphs("test", 40, seed=2)
    for number in (0, 39):
        with np.load(fresh.MODELS / "graph_gcn" / "test" / f"{number:03d}.npz") as stored:
            for name, value in graphs[number].items():
                assert np.array_equal(stored[name], value), name
