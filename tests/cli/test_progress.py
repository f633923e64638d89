"""Progress is shown on a terminal's standard error and nowhere else."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.progress import Progress, counting
from exprune_cli.rewrite import rewrite
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


def test_bytes_and_the_time_left_are_shown_as_soon_as_the_total_is_known() -> None:
    with Progress(enabled=True) as progress:
        show = counting(progress, "loading", in_bytes=True)
        assert show is not None and progress._bars is not None
        (left,) = (column for column in progress._bars.columns if type(column).__name__ == "Left")
        (task,) = progress._bars.tasks
        assert re.fullmatch(r"\d+ s", str(left.render(task)))
        for done in range(1, 5):
            show(done * 10**8, 10**9)
            time.sleep(0.01)
        assert re.fullmatch(r"400/1,000 MB, \d+ s left", str(left.render(task)))
        progress.stage("planning", 7)
        show(10**9, 10**9)  # what comes late does not count for the next stage
        assert str(left.render(progress._bars.tasks[0])).startswith("0/7")


def test_steps_that_can_be_counted_are(folder: Path) -> None:
    model, seen = load("mlp.onnx"), []
    matches = match(model, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    plans = {site.name: plan_quantized(site) for site in matches.sites}
    staged = {name: plan for name, plan in plans.items() if plan is not None and plan.staged}
    sites = [site for site in matches.sites if site.name in staged]
    assert sites
    rewrite(model, sites, staged, lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(sites)) for i in range(len(sites))]


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
