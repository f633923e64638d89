"""Progress bars on standard error, and only where somebody watches."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


_LOG = logging.getLogger(__name__)

#: Is told how many steps or bytes are done, and of how many.
Counter = Callable[[int, int], None]


def _clock(seconds: float | None) -> str:
    """A time as ``7 s`` or ``2:05``."""
    whole = round(seconds or 0)
    return f"{whole} s" if whole < 100 else f"{whole // 60}:{whole % 60:02}"


@final
class Progress:
    """Shows one bar per stage on standard error if that is a terminal; nothing otherwise.

    What each stage took is logged at level INFO in any case.

    Use as a context manager, so that the bars are gone when an error is printed. Steps take a
    ``Progress | None`` and treat None as "quiet".
    """

    def __init__(self, enabled: bool | None = None) -> None:
        """Args:
        enabled: True or False to force it, None to look whether standard error is a terminal.
        """
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._bars: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage: tuple[str, float] | None = None

    def stage(self, name: str, total: int | None = None, *, in_bytes: bool = False) -> None:
        """Starts a new stage of ``total`` steps or bytes (None: unknown); the stage before it is done."""
        self._finish()
        self._stage = name, time.perf_counter()
        if self._enabled:
            self._task = self._open().add_task(name, total=total, in_bytes=in_bytes)

    def advance(self, n: int = 1) -> None:
        """Says that ``n`` more steps of the current stage are done."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)

    def counter(self, name: str, total: int | None = None, *, in_bytes: bool = False) -> Counter:
        """Starts a new stage ``name``; returns what shows that ``(done, total)`` of its steps are done.

        Where ``total`` is unknown at first, the time so far is shown until the first step says it.
        """
        self.stage(name, total, in_bytes=in_bytes)
        bars, task = self._bars, self._task

        def show(done: int, total: int) -> None:
            if bars is not None and task is not None and task == self._task:
                bars.update(task, completed=done, total=total)

        return show

    def close(self) -> None:
        """Removes the bars. Can be called twice; a later :meth:`stage` opens them again."""
        self._finish()
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task = None, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> RichProgress:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
            from rich.progress import Progress as RichProgress
            from rich.text import Text

            class Left(ProgressColumn):
                """Steps done and the time left; the time so far where the number of steps is unknown."""

                def render(self, task: Task) -> Text:
                    if task.total is None:
                        return Text(_clock(task.elapsed))
                    steps = f"{int(task.completed)}/{int(task.total)}"
                    if task.fields["in_bytes"]:
                        steps = f"{task.completed / 1e6:,.0f}/{task.total / 1e6:,.0f} MB"
                    left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
                    return Text(steps + left)

            self._bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                Left(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self._bars

    def _finish(self) -> None:
        if self._stage is not None:
            name, start = self._stage
            self._stage = None
            _LOG.info("%s took %.2f s", name, time.perf_counter() - start)
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def begin(progress: Progress | None, stage: str, total: int | None = None) -> None:
    """Starts a stage, where somebody wants to know."""
    if progress is not None:
        progress.stage(stage, total)


def counting(
    progress: Progress | None, stage: str, total: int | None = None, *, in_bytes: bool = False
) -> Counter | None:
    """Starts a stage, and returns what counts its steps as ``(done, total)``; None where nobody asks."""
    return None if progress is None else progress.counter(stage, total, in_bytes=in_bytes)
