"""Fuzzing for as long as wanted: ``python -m tests.fuzz --seconds 600 --target model``.

Every input runs in a child process with limits on memory and time, so that a fault of native code,
a hang and an input that asks for all memory are found like any other failure, and named by their
seed: ``python -m tests.fuzz --target model --seed 123`` runs that one again, with its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import TARGETS, run_one

_MEMORY = 6 * 2**30
_INPUT_SECONDS = 30.0
_START_SECONDS = 120.0
_INPUTS_PER_CHILD = 500


#: A target whose inputs 1, 2 and 3 crash, hang and fail: the driver has to find that.
_SELF_TEST = "self-test"


@dataclass
class Round:
    """What was tried of one target."""

    target: str
    tried: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def child(target: str, first: int, count: int, log: Path) -> None:
    """Runs ``count`` inputs; ``log`` gets a line when one starts, and its failure if it has one."""
    faulthandler.enable()
    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with log.open("a", buffering=1) as file:
        for seed in range(first, first + count):
            file.write(f"{seed}\n")
            with tempfile.TemporaryDirectory() as folder:
                try:
                    (run_one if target != _SELF_TEST else _misbehave)(target, seed, Path(folder))
                except MemoryError:
                    pass  # the limit's work: the command line reports it in one line
                except Exception as error:  # noqa: BLE001
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    file.write(f"FAIL {seed} {text} ({Path(place.filename).name}:{place.lineno})\n")
        file.write("done\n")


def _misbehave(target: str, seed: int, folder: Path) -> None:
    if seed == 1:
        ctypes.string_at(0)
    if seed == 2:
        time.sleep(10_000)
    assert seed != 3, "on purpose"


def fuzz(target: str, seconds: float, first: int, say: bool = True) -> Round:
    """Runs inputs from seed ``first`` on, until the time is over."""
    result, start, seed = Round(target), time.monotonic(), first
    while (left := seconds - (time.monotonic() - start)) > 0:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            command = [sys.executable, "-m", "tests.fuzz", "--target", target, "--seed", str(seed)]
            command += ["--child", str(log)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            hung = _watch(process, log, left)
            errors = process.stderr.read() if process.stderr else ""
            lines = log.read_text().splitlines() if log.exists() else []
        started = [int(line) for line in lines if line.isdigit()]
        found = [line for line in lines if line.startswith("FAIL")]
        code = process.returncode
        if hung:
            found.append(f"FAIL {started[-1] if started else seed} hang: {' '.join(errors.split())[:1500]}")
        elif code and not (code == -signal.SIGKILL and time.monotonic() - start >= seconds):
            found.append(
                f"FAIL {started[-1] if started else seed} exit {code}: {' '.join(errors.split())[:1500]}"
            )
        result.failures += found
        for line in found if say else ():
            print(f"{target}: {line}", flush=True)
        result.tried += len(started)
        seed = started[-1] + 1 if started else seed + 1
    result.seconds = time.monotonic() - start
    return result


def _watch(process: subprocess.Popen[str], log: Path, left: float) -> bool:
    """Waits for a child's end; kills it if one input takes too long (then True) or the time is over."""
    end, seen, since = time.monotonic() + left, -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        now, size = time.monotonic(), log.stat().st_size if log.exists() else 0
        if size != seen:
            seen, since = size, now
        # Before its first input a child is starting, which a busy machine may take its time for.
        patience = _INPUT_SECONDS if size else _START_SECONDS
        if now > end or now - since > patience:
            hung = now - since > patience
            process.send_signal(signal.SIGABRT if hung else signal.SIGKILL)  # the former shows where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            return hung
    return False


def main() -> int:
    """Parses the options; returns 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=[*TARGETS, "all", _SELF_TEST], default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for every target")
    parser.add_argument("--seed", type=int, help="run this one input again; without --seconds")
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.target, options.seed, _INPUTS_PER_CHILD, options.child)
        return 0
    if options.seed is not None:
        if options.target == "all":
            parser.error("--seed is of one --target")
        with tempfile.TemporaryDirectory() as folder:
            run_one(options.target, options.seed, Path(folder))
        return 0
    failures = 0
    for target in TARGETS if options.target == "all" else [options.target]:
        done = fuzz(target, options.seconds, options.first)
        failures += len(done.failures)
        print(
            f"{target}: {done.tried} inputs in {done.seconds:.0f} s, {len(done.failures)} failures",
            flush=True,
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
