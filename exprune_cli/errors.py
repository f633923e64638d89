"""Failures that a user can cause, each with the exit code that the command ends with."""

from __future__ import annotations


class ExpruneError(Exception):
    """A bad model, bad data or a file that cannot be read or written.

    The message is one line: what is wrong, where, and what to do about it.
    """

    exit_code = 3


class UsageError(ExpruneError):
    """Options that do not fit together or name something that does not exist."""

    exit_code = 2


class GateError(ExpruneError):
    """A promise that was asked for (``--max-drop``) cannot be kept or not be shown to hold."""

    exit_code = 1
