"""Fixtures that tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprune_cli.model import save
from tests.samples import CASES, Sample, load_sample


@pytest.fixture(params=list(CASES))
def sample(request: pytest.FixtureRequest) -> Sample:
    """Each sample model in turn."""
    return load_sample(request.param)


@pytest.fixture(scope="session")
def staged_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Every sample model staged by the calibrated test: its file and its test data."""
    folder = tmp_path_factory.mktemp("staged")
    files = {}
    for name in CASES:
        item = load_sample(name)
        save(item.stage("calibrated")[0], folder / f"{name}.onnx")
        files[name] = (folder / f"{name}.onnx", item.test_folder)
    return files
