"""Work in a fork: its result comes back, its failure does not, and only a limited process forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")

#: Runs ``run_apart(work, 2 ** 28)``, with the limit of the command line unless told otherwise.
PROGRAM = """
import os, sys, threading
import exprune_cli.available as available
from exprune_cli.apart import run_apart
{limit}
parent = os.getpid()
def work():
    {work}
found = run_apart(work, 2 ** 28)
print(None if found is None else found.decode())
assert os.getpid() == parent
try:
    os.waitpid(-1, os.WNOHANG)
    print("a child is left")
except ChildProcessError:
    pass
"""
LIMIT = "available.limit_memory()"


def run(work: str, limit: str = LIMIT) -> tuple[str, str]:
    program = PROGRAM.format(work=work, limit=limit)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("return b'x' * 10**6", "x" * 10**6),
        ("return str(os.getpid() != parent).encode()", "True"),
        ("raise ValueError", "None"),
        ("return bytes(2 ** 29)[:1] + b'never'", "None"),
        ("os.abort()", "None"),
        ("sys.stderr.write('last words'); sys.stderr.flush(); return b'said'", "said"),
    ],
    ids=["much", "in a fork", "raises", "too much memory", "ends the process", "says nothing"],
)
def test_what_a_limited_process_gets(work: str, expected: str) -> None:
    assert run(work) == (expected, "")


@pytest.mark.parametrize(
    ("work", "expected"),
    [("return str(os.getpid() == parent).encode()", "True"), ("raise ValueError", "None")],
)
def test_a_process_that_is_not_limited_does_not_fork(work: str, expected: str) -> None:
    assert run(work, limit="") == (expected, "")


def test_an_interruption_ends_the_child(tmp_path: Path) -> None:
    program = PROGRAM.format(
        limit=LIMIT + "\nimport signal, time\nsignal.alarm(1)\n"
        "def stop(*_): raise KeyboardInterrupt\nsignal.signal(signal.SIGALRM, stop)",
        work=f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)",
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "KeyboardInterrupt" in done.stderr
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()
