"""Ctrl-C and termination, also while native code runs and Python cannot look at its signals.

Python handles a signal when it is back in its own code; a model that loops for ever never lets it be.
So a thread is told of signals as they come, and ends what runs in ONNX Runtime. If the program is not
at its end soon after, or a second signal comes, the thread removes temporary files and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import IO, Any

#: Seconds that the program has to end by itself after a signal.
_GRACE = 3.0
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(BaseException):
    """SIGTERM came."""


@cache
def _running() -> list[Any]:
    """``RunOptions`` of what runs in ONNX Runtime now."""
    return []


@cache
def _temporaries() -> set[str]:
    """Temporary files and folders that exist now."""
    return set()


def note_temporary(path: Path) -> None:
    """A temporary file that is to be gone when a signal ends the process."""
    _temporaries().add(str(path))


def remove_temporary(path: Path) -> None:
    """Removes one that was noted."""
    with contextlib.suppress(OSError):
        path.unlink()
    _temporaries().discard(str(path))


@contextlib.contextmanager
def stoppable(options: Any, seconds: float | None = None) -> Iterator[None]:
    """While the block runs, a signal (or the end of ``seconds``) sets ``options.terminate``."""
    timer = None if seconds is None else threading.Timer(seconds, _stop, (options,))
    _running().append(options)
    try:
        if timer is not None:
            timer.start()
        yield
    finally:
        _running().remove(options)
        if timer is not None:
            timer.cancel()


def _stop(options: Any) -> None:
    options.terminate = True


@contextlib.contextmanager
def replacing(path: Path, mode: int) -> Iterator[IO[bytes]]:
    """A new file beside ``path`` that takes its place when the block ends well, and is gone otherwise.

    Args:
        path: The file.
        mode: Permissions of the new one.

    Raises:
        OSError: As the system says; nothing is left behind.
    """
    # Noted before it exists, so that there is no moment at which a signal leaves it behind.
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    _temporaries().add(str(temporary))
    try:
        with open(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        _temporaries().discard(str(temporary))


@contextlib.contextmanager
def tidy_endings() -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM end it, whatever it does, and leave nothing behind.

    Does nothing outside the main thread, and where the system has no such signals.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    known = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, _terminate)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals")
    watcher.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(known)
        os.write(writer, b"\0")
        watcher.join()
        os.close(writer)
        os.close(reader)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _watch(reader: int) -> None:
    while number := os.read(reader, 1)[0]:
        if number not in _WORDS:
            continue
        for options in list(_running()):
            options.terminate = True
        ready, _, _ = select.select([reader], [], [], _GRACE)
        if not ready or os.read(reader, 1)[0]:
            _leave(number)
        return


def _leave(number: int) -> None:
    for name in list(_temporaries()):
        with contextlib.suppress(OSError):
            os.unlink(name)
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bars hide it
    os.write(sys.stderr.fileno(), f"{cursor}exprune: error: {_WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)
