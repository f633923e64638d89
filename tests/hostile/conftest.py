"""A child process with limits, for what could crash, hang or fill the memory without its guard."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MEMORY = 4 * 2**30
SECONDS = 60.0

Fails = Callable[..., str]


def run_limited(
    *arguments: str, folder: Path, memory: int = MEMORY, seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, in ``folder``.

    ``seconds`` are of processor time, which a busy machine does not change; a process that sleeps has ten
    times that.

    Raises:
        subprocess.TimeoutExpired: It hangs.
    """
    resource = pytest.importorskip("resource", reason="the system has no limits for processes")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "exprune_cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=10 * seconds,
        preexec_fn=limit,
    )


@pytest.fixture
def refuses(tmp_path: Path) -> Fails:
    """Runs a command that has to end with exit code 3 and one clear line; returns the line."""

    def check(*arguments: str, code: int = 3, seconds: float = SECONDS) -> str:
        before = sorted(tmp_path.iterdir())
        done = run_limited(*arguments, folder=tmp_path, seconds=seconds)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.startswith("exprune: error: ") and done.stderr.count("\n") == 1, done.stderr
        assert "internal" not in done.stderr and "\x1b" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before
        return done.stderr.removeprefix("exprune: error: ").rstrip("\n")

    return check
