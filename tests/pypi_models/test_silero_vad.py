"""Real models as their makers ship them: the ONNX files in the PyPI package silero-vad.

Some hold everything inside an ``If`` and must come out as they went in, with the reason; others have
Conv -> ReLU layers in the main graph.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli import api

WHEEL = "silero-vad==6.2.3"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The package's ONNX files by name; its dependencies are not wanted."""
    folder = tmp_path_factory.mktemp("silero")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be downloaded here")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    found = {path.stem: path for path in sorted(folder.rglob("*.onnx"))}
    assert len(found) >= 4
    return found


def _outputs(path: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        if "int64" in value.type:
            feeds[value.name] = np.array(16000, np.int64)
            continue
        sizes = {"input": [1, 576], "state": [2, 1, 128], "h": [1, 1, 128], "c": [1, 1, 128]}
        declared = [d if isinstance(d, int) else None for d in value.shape]
        shape = [d if d else s for d, s in zip(declared, sizes[value.name], strict=False)]
        feeds[value.name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    return session.run(None, feeds)


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
