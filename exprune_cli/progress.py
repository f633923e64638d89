"""Progress bars on standard error, and only where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


@final
class Progress:
    """Shows one bar per stage on standard error if that is a terminal; does nothing otherwise.

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

    def stage(self, name: str, total: int | None = None) -> None:
        """Starts a new stage of ``total`` steps (None: unknown); the stage before it is done."""
        if not self._enabled:
            return
        bars = self._open()
        self._finish()
        self._task = bars.add_task(name, total=total)

    def advance(self, n: int = 1) -> None:
        """Says that ``n`` more steps of the current stage are done."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)

    def counter(self, name: str, total: int | None = None) -> Callable[[int, int], None]:
        """A function ``(done, total)`` that shows a new stage ``name``, for steps that count so.

        The stage starts at once where ``total`` is given, otherwise when the function is first called.
        """
        seen = -1
        if total is not None:
            self.stage(name, total)
            seen = 0

        def show(done: int, total: int) -> None:
            nonlocal seen
            if seen < 0:
                self.stage(name, total)
                seen = 0
            self.advance(done - seen)
            seen = done

        return show

    def close(self) -> None:
        """Removes the bars. Can be called twice; a later :meth:`stage` opens them again."""
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
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self._bars

    def _finish(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
