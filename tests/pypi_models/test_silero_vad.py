"""Real models as their makers ship them: the ONNX files in the PyPI package silero-vad.

Some hold everything inside an ``If`` and must come out as they went in, with the reason; others have
Conv -> ReLU layers in the main graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli import api
from tests.pypi_models.silero import silero_feeds, silero_files


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The package's ONNX files by name."""
    return silero_files(tmp_path_factory.mktemp("silero"))


def _outputs(path: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, silero_feeds(path))


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless"])
def test_models_inside_an_if_are_unharmed(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = api.optimize(models[name], out, objective="flops")
    assert done.staged == 0
    assert out.read_bytes() == models[name].read_bytes()
    assert {site.code for site in done.record.sites} == {"subgraph"}


@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "silero_vad_16k_sequence"])
def test_models_with_sites_give_equal_results(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = api.optimize(models[name], out, objective="flops", test="bound")
    assert done.staged == 4
    onnx.checker.check_model(str(out), full_check=True)
    for before, after in zip(_outputs(models[name]), _outputs(out), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
