"""Sessions made, run and freed many times: ``python -m tests.runtime.sessions --times 10000 [--library LIB]``.

Prints by how much the process's memory and its open files grew after the first tenth.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

import numpy as np

from exprune_cli.functions import OPS
from exprune_cli.runtime import runtime_library

from .ops import Call, model, open_session, valid


def calls() -> list[Call]:
    """A call of some size of every op."""
    found = []
    for op in OPS:
        some = (valid(op, np.random.default_rng(seed)) for seed in range(1000))
        found.append(next(c for c in some if c.inputs["X"].size >= 100 and len(c.inputs["bias"]) >= 16))
    return found


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def churn(library: str, times: int) -> tuple[int, int]:
    """Makes, runs and frees so many sessions; growth of memory in bytes, and of open files."""
    known = [(model(c, constants=True, function=False), c.inputs["X"]) for c in calls()]
    expected = [open_session(data, library).run(None, {"X": x}) for data, x in known]
    memory = files = 0
    for i in range(times):
        if i == times // 10:
            gc.collect()
            memory, files = resident(), open_files()
        data, x = known[i % len(known)]
        results = open_session(data, library, threads=1 + i % 2).run(None, {"X": x})
        for a, b in zip(results, expected[i % len(known)], strict=True):
            np.testing.assert_array_equal(a, b)
    gc.collect()
    return resident() - memory, open_files() - files


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--library", default=str(runtime_library()))
    arguments = parser.parse_args()
    memory, files = churn(arguments.library, arguments.times)
    print(f"{arguments.times} sessions: memory grew by {memory / 2**20:.1f} MiB, open files by {files}")


if __name__ == "__main__":
    main()
