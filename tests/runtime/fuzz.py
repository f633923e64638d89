"""Random calls of every op, valid and subtly broken: an error of ONNX Runtime, or the function's result.

``python -m tests.runtime.fuzz --seconds N [--library LIB] [--seed S]`` runs them in child processes, so that a
crash, a hang or a sanitizer's report is found and the next call goes on. ``LIB`` may be built with sanitizers
(``tests/runtime/sanitizers.py``). Case number S is the same call everywhere: ``--case S`` runs it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from exprune_cli.functions import OPS
from exprune_cli.runtime import runtime_library

from .breakage import break_once
from .ops import HEADS, Call, model, open_session, valid
from .sanitizers import environment

ROOT = Path(__file__).resolve().parents[2]
_BATCH = 400
#: What the address sanitizer ends with instead of an exception, for an output that ONNX Runtime cannot get.
_OUT_OF_MEMORY = "out-of-memory"
#: Seconds that a batch of calls may take, and bytes that one call may add to the process.
_PATIENCE, _MOST_MEMORY = 240, 1 << 30


def make(number: int) -> tuple[Call, bool, bool, int]:
    """Call ``number``, whether it is a promise and whether it is valid, and for how many threads."""
    rng = np.random.default_rng(number)
    call = valid(OPS[number % len(OPS)], rng)
    breaks = int(rng.choice([0, 1, 1, 1, 2, 3]))
    kept = [break_once(call, rng) for _ in range(breaks)]
    return call, all(kept), breaks == 0, int(rng.integers(1, 3))


class Runner:
    """Runs calls and keeps their sessions, so that inputs change from run to run of one session."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.sessions: dict = {}

    def _session(self, call: Call, library: str | None, threads: int, constants: bool = False):
        key = (call.op, repr(sorted(call.attributes.items())), library, threads)
        if constants:
            return open_session(model(call, constants=True), library, threads)
        if key not in self.sessions:
            if len(self.sessions) > 200:
                self.sessions.clear()
            self.sessions[key] = open_session(model(call), library, threads)
        return self.sessions[key]

    def run(self, number: int) -> str:
        """``ok``, ``error``, ``function`` (only the native op takes the call), or what is wrong."""
        call, promised, whole, threads = make(number)
        constants = number // len(OPS) % 8 == 0
        feed = {"X": call.inputs["X"]} if constants else call.inputs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            results = self._session(call, self.library, threads, constants).run(None, feed)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has one class per code
            if whole:
                return f"refused: {error}"
            return "error"
        finally:
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if grown > _MOST_MEMORY:
                print(f"memory {number} {call.op} {grown}", flush=True)
        try:
            expected = self._session(call, None, 1).run(None, call.inputs)
        except Exception as error:  # noqa: BLE001
            return f"function refuses what is valid: {error}" if whole else "function"
        return differs(call, results, expected, promised) or "ok"


def differs(call: Call, results, expected, promised: bool) -> str | None:
    """What is wrong with the results, if anything; ``expected`` are the function's."""
    for name, a, b in zip(call.outputs[:-1], results[:-1], expected[:-1], strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"mismatch: {name} is {a.dtype}{a.shape}, not {b.dtype}{b.shape}"
    if call.op in HEADS:
        classes = len(call.inputs["bias"])
        index = results[-2]
        if index.size and not (0 <= index.min() and index.max() < classes):
            return "mismatch: an index out of range"
    if any(v.dtype == np.float32 and _wild(n, v) for n, v in call.inputs.items()) or not promised:
        return None
    if call.op in HEADS:
        return _other_classes(call, results, expected)
    y, want = results[0].astype(np.float64), expected[0].astype(np.float64)
    scale = 1e-4 * max(1.0, np.abs(np.where(np.isfinite(want), want, 0)).max(initial=0.0))
    same = (np.abs(y - want) <= scale) | (y == want) | (np.isnan(y) & np.isnan(want))
    # Decisions within rounding of their cut may fall the other way: few, and one side is 0.
    decided = np.zeros_like(same) if call.lossless else (y == 0) != (want == 0)
    wrong = ~same & ~decided
    most = 2 + 0.02 * same.size if not call.op.endswith("PrefixConvBlock") else 130 + 0.05 * same.size
    if wrong.any() or (~same).sum() > most:
        return f"mismatch: {(~same).sum()} of {same.size}, e.g. {y[~same][:3]}, not {want[~same][:3]}"
    return None


def _wild(name: str, value: np.ndarray) -> bool:
    """Numbers whose sums depend on their order."""
    size = np.abs(value[np.isfinite(value)]).max(initial=0.0)
    return bool(size > 1e6 and name != "max") or bool(name != "max" and np.isinf(value).any())


def _other_classes(call: Call, results, expected) -> str | None:
    weight = call.inputs.get("W")
    if weight is None:
        ordered = np.concatenate([call.inputs["W_head"], call.inputs["W_tail"]], 1)
        weight = np.empty_like(ordered)
        weight[:, call.inputs["order"]] = ordered
    x, index, want = call.inputs["X"], results[-2].reshape(-1), expected[-2].reshape(-1)
    scores = x.reshape(-1, x.shape[-1]).astype(np.float64) @ weight.T.astype(np.float64) + call.inputs["bias"]
    row = np.arange(len(index)) * len(scores) // max(1, len(index))
    gap = np.abs(scores[row, index] - scores[row, want])
    wrong = (index != want) & ~(gap <= 1e-4) & ~np.isnan(scores[row]).any(axis=1)
    if wrong.sum() > (0 if call.lossless else 1 + 0.05 * len(index)):
        return f"mismatch: {wrong.sum()} of {len(index)} classes, gaps {gap[wrong][:3]}"
    return None


def child(library: str, first: int, count: int) -> None:
    """Runs some calls; says before each which one it is."""
    with contextlib.suppress(ValueError, OSError):
        if "LD_PRELOAD" not in os.environ:  # sanitizers need the addresses
            resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    runner = Runner(library)
    for number in range(first, first + count):
        print(f"case {number}", flush=True)
        print(f"done {runner.run(number)}", flush=True)


def fuzz(library: str, seconds: float, first: int = 0, batch: int = _BATCH) -> tuple[Counter, list[str]]:
    """Runs calls from ``first`` on for some time; counts by op and outcome, and what went wrong."""
    counts: Counter = Counter()
    faults: list[str] = []
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end:
        command = [sys.executable, "-m", "tests.runtime.fuzz", "--library", library]
        command += ["--child", str(number), str(batch)]
        done = _run(command, environment(library), max(5.0, min(_PATIENCE, end + 60 - time.monotonic())))
        last, finished = number - 1, True
        for line in done[0].splitlines():
            what, _, rest = line.partition(" ")
            if what == "case":
                last, finished = int(rest), False
            elif what == "done":
                finished = True
                kind = rest.split(":")[0] if rest else "?"
                counts[OPS[last % len(OPS)], kind] += 1
                if kind not in ("ok", "error", "function"):
                    faults.append(f"case {last} {OPS[last % len(OPS)]}: {rest[:300]}")
            elif what == "memory":
                faults.append(f"case {last}: {line}")
        if not finished and _OUT_OF_MEMORY in done[2]:
            counts[OPS[last % len(OPS)], "error"] += 1
        elif not finished or done[1] != 0:
            counts[OPS[last % len(OPS)], "crash"] += 1
            faults.append(f"case {last} {OPS[last % len(OPS)]}: ended with {done[1]}: {done[2][-1500:]}")
        number = max(last, number) + 1
    return counts, faults


def _run(command: list[str], env: dict[str, str], patience: float) -> tuple[str, int | str, str]:
    try:
        done = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired as late:
        texts = [t.decode() if isinstance(t, bytes) else t or "" for t in (late.stdout, late.stderr)]
        return texts[0], "a timeout", texts[1]
    return done.stdout, done.returncode, done.stderr


def table(counts: Counter) -> str:
    """The counts as text."""
    kinds = sorted({kind for _, kind in counts})
    lines = [f"{'op':24}" + "".join(f"{k:>12}" for k in ["tried", *kinds])]
    for op in OPS:
        row = [counts[op, k] for k in kinds]
        lines.append(f"{op:24}" + "".join(f"{n:12}" for n in [sum(row), *row]))
    total = [sum(n for (_, k), n in counts.items() if k == kind) for kind in kinds]
    lines.append(f"{'all':24}" + "".join(f"{n:12}" for n in [sum(total), *total]))
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--library", default=str(runtime_library()))
    parser.add_argument("--seed", type=int, default=0, help="number of the first call")
    parser.add_argument("--case", type=int, help="run this call alone, here")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.library, *arguments.child)
    if arguments.case is not None:
        return child(arguments.library, arguments.case, 1)
    counts, faults = fuzz(arguments.library, arguments.seconds, arguments.seed)
    print(table(counts))
    print("\n".join(faults) or "no crash, no mismatch")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
