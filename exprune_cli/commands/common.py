"""What the commands share: how much they say, and commands to paste."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_KEY = "exprune.verbosity"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_verbosity(command: _Command) -> _Command:
    """Adds ``-q`` and ``-v``, which may stand before or after a command's name."""
    command = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_level,
        help="Also say why each site was planned as it was, and what each step took.",
    )(command)
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_level,
        help="Print the result and errors, nothing else.",
    )(command)


def _set_level(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    wanted = -1 if parameter.name == "quiet" else 1
    if context.meta.get(_KEY, wanted) != wanted:
        raise click.UsageError("--quiet and --verbose exclude each other", context)
    context.meta[_KEY] = wanted
    logging.getLogger("exprune_cli").setLevel(logging.ERROR if wanted < 0 else logging.INFO)


def quiet() -> bool:
    """Whether the running command was told to print its result only."""
    level: int = click.get_current_context().meta.get(_KEY, 0)
    return level < 0


def verbose() -> bool:
    """Whether the running command was told to explain itself."""
    level: int = click.get_current_context().meta.get(_KEY, 0)
    return level > 0


def command_line(*words: str) -> str:
    """A command as a shell takes it."""
    return " ".join(shlex.quote(word) for word in words)


def beside(model: str) -> str:
    """The name of the optimised model next to the original."""
    path = Path(model)
    return str(path.with_name(f"{path.stem}.exprune{path.suffix or '.onnx'}"))
