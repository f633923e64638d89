"""Failures that a user can cause, each with the exit code that the command ends with."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: An option, and the number that may be given with it.
_OPTION = re.compile(r"(?<![\w-])--(no-)?([a-z]+(?:-[a-z]+)*)(?: (-?\d[\w.+-]*))?(?![\w-])")


class ExpruneError(Exception):
    """A bad model, bad data or a file that cannot be read or written.

    The message is one line: what is wrong, where, and what to do about it. It is written for the command
    line; as text of the exception it names parameters in place of options.
    """

    exit_code = 3

    @property
    def command_line(self) -> str:
        """The message in the words of the command line."""
        return super().__str__()

    def __str__(self) -> str:
        return in_python(super().__str__())


class UsageError(ExpruneError):
    """Options that do not fit together or name something that does not exist."""

    exit_code = 2


class GateError(ExpruneError):
    """A promise that was asked for (``max_drop``) cannot be kept or not be shown to hold.

    Attributes:
        remedy: Parameters, and values with which the same call may pass; None leaves one out. Empty if unknown.
        next_command: What to run next, where that is known.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.remedy = dict(remedy or {})
        self.next_command: str | None = None


def in_python(message: str) -> str:
    """A message in the words of Python.

    >>> in_python("try --max-drop 0.02, or leave --no-measure out")
    'try max_drop=0.02, or leave measure=False out'
    """

    def parameter(found: re.Match[str]) -> str:
        name = found[2].replace("-", "_")
        value = "False" if found[1] else found[3]
        return f"{name}={value}" if value else name

    return _OPTION.sub(parameter, message)
