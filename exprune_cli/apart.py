"""Work that may ask for any amount of memory, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable

from exprune_cli.available import memory_limit, own_data


def run_apart(work: Callable[[], bytes], size: int) -> bytes | None:
    """What ``work`` returns, or None if it raises or takes more than ``size`` bytes of memory.

    A limit holds for a whole process, and that of ONNX Runtime has threads that end it where memory is short. So the
    work is done in a fork, which has no other threads. A process without a limit is neither limited nor forked: others
    share it. The command line limits its own, see :func:`~exprune_cli.available.limit_memory`.

    Args:
        work: Needs no other thread. What it changes is lost where it runs in a fork.
        size: Bytes that it may take beyond what the process has.
    """
    limit = memory_limit()
    if limit is not None:
        reader, writer = os.pipe()
        child = None
        with contextlib.suppress(OSError), warnings.catch_warnings():
            # Newer Pythons warn of forks of processes with threads: none of ours is needed in the child.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _in_child(work, min(limit, own_data() + size), writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            if child is not None:
                return _result(child, pipe.read)
    with contextlib.suppress(Exception):
        return work()
    return None


def _in_child(work: Callable[[], bytes], limit: int, writer: int) -> None:
    """Does the work, hands its result over and ends this process, with code 0 if all went well."""
    code = 1
    try:
        import resource

        signal.set_wakeup_fd(-1)  # its other end is read by the parent
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the C library's last words
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        with open(writer, "wb") as pipe:
            pipe.write(work())
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's is closed, flushed or deleted


def _result(child: int, read: Callable[[], bytes]) -> bytes | None:
    """What the child hands over. It does not outlive an interruption."""
    try:
        data = read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    _, status = os.waitpid(child, 0)
    return data if status == 0 else None
