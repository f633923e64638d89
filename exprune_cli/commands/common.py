"""What the commands share: how much they say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from exprune_cli.next_step import NextStep
    from exprune_cli.report_data import Report

_LOG = logging.getLogger(__name__)
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


def with_custom_ops(command: _Command) -> _Command:
    """Adds ``--custom-ops``."""
    return click.option(
        "--custom-ops",
        multiple=True,
        type=click.Path(),
        metavar="LIB",
        help="Library of custom operators that MODEL needs; its code is run. Can be repeated.",
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


def explain(report: Report) -> None:
    """With ``-v``: says of each site why it is planned as it is."""
    if not verbose():
        return
    from exprune_cli.render import site_sentence

    for site in report.sites:
        _LOG.info("%s", site_sentence(site))


def print_next(step: NextStep) -> None:
    """Prints what to do next, unless only results are wanted."""
    from exprune_cli.render import write_line

    if not quiet():
        for line in step.lines():
            write_line(line)
