"""An ONNX Runtime that is too old is refused in one sentence, before anything is run or written.

With a real one: ``python -m tests.compatibility.matrix``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exprune_cli.cli import main
from exprune_cli.errors import ExpruneError
from exprune_cli.runtime import session
from tests.models import mlp


@pytest.fixture(params=["1.16.3", "0.9.0", "1.9.0"])
def old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The installed ONNX Runtime says that it is an older one."""
    monkeypatch.setattr(onnxruntime, "__version__", request.param)
    return str(request.param)


@pytest.mark.parametrize("command", ["optimize", "report", "calibrate"])
def test_commands(
    old: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp(), "m.onnx")
    (tmp_path / "data").mkdir()
    np.save("data/data.npy", np.zeros((4, 64), np.float32))
    arguments = {
        "optimize": ["optimize", "m.onnx", "o.onnx"],
        "report": ["report", "m.onnx", "--data", "data"],
        "calibrate": ["calibrate", "m.onnx", "--data", "data"],
    }
    before = sorted(tmp_path.iterdir())
    assert main(arguments[command]) == 3
    errors = capfd.readouterr().err.strip().splitlines()
    assert errors == [
        f"exprune: error: ONNX Runtime {old} is too old: exprune needs 1.17 or newer (pip install -U onnxruntime)"
    ]
    assert sorted(tmp_path.iterdir()) == before


def test_session(old: str) -> None:
    with pytest.raises(ExpruneError, match=f"{old} is too old"):
        session(mlp().SerializeToString())


@pytest.mark.parametrize("version", ["1.17.0", "1.100.0", "2.0.0", "1.24.0rc1"])
def test_others_are_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    session(mlp().SerializeToString())
