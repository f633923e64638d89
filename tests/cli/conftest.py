"""A folder with a model, its data and a second model; a way to run the command line in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from exprune_cli.cli import main
from tests.models import build, cnn, mlp


@dataclass
class Outcome:
    """What a command ended with."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def write_samples(folder: Path, count: int = 8, seed: int = 0) -> None:
    """Samples of the MLP, one per file, labelled."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        x = rng.standard_normal((1, 64)).astype(np.float32)
        np.savez(folder / f"s{index}.npz", x=x, label=np.array([index % 10]))


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    onnx.save(mlp(), folder / "mlp.onnx")
    onnx.save(cnn(), folder / "cnn.onnx")
    plain = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
    onnx.save(plain, folder / "plain.onnx")
    write_samples(folder / "data")
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current folder: ``mlp.onnx``, ``cnn.onnx``, ``plain.onnx`` and ``data``."""
    for path in originals.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(originals)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPRUNE_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run_command(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_command


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
