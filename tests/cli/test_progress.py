"""Progress is shown on a terminal's standard error and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from exprune_cli.progress import Progress
from tests.cli.conftest import Run

pty = pytest.importorskip("pty")


def test_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.stage("measuring", 3)
        progress.advance(2)
    assert capsys.readouterr() == ("", "")


def test_stages_and_counters(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(enabled=True) as progress:
        progress.stage("measuring [all]", 3)
        progress.advance(2)
        show = progress.counter("calibrating")
        show(1, 4)
        show(4, 4)
        progress.close()
        progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""


def test_on_a_terminal(folder: Path) -> None:
    """Standard output stays clean while a bar runs on the terminal."""
    out = folder / "out.json"
    script = f"{sys.executable} -m exprune_cli report mlp.onnx --data data --format json > {out}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    child, terminal = pty.fork()
    if not child:
        os.execvpe("sh", ["sh", "-c", script], environment)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how Linux reports that the other side has gone
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"measuring" in shown and b"timing" in shown
    assert out.read_text().startswith("{")


def test_quiet_when_redirected(run: Run, folder: Path) -> None:
    outcome = run("report", "mlp.onnx", "--data", "data")
    assert (outcome.code, outcome.err) == (0, "")
