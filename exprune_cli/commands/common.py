"""What the commands share: how much they say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from exprune_cli.errors import GateError
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


def next_after(error: GateError) -> None:
    """Says in an error what to run next, unless only results are wanted: the same command, remedied."""
    if error.remedy and not quiet():
        error.next_command = again(click.get_current_context(), error.remedy)


def again(context: click.Context, changes: Mapping[str, object]) -> str:
    """The running command, as a shell takes it, with some options changed or, where they are None, left out."""
    from exprune_cli.next_step import command_line

    words = ["exprune", str(context.info_name)]
    options: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        value = changes.get(name, context.params.get(name) if given else None)
        if value is None or value is False:
            continue
        several: list[object] = list(value) if isinstance(value, (list, tuple)) else [value]
        if isinstance(parameter, click.Argument):
            words += [str(each) for each in several]
        for each in several if isinstance(parameter, click.Option) else ():
            options += [parameter.opts[-1]] + ([] if each is True else [_plain(each)])
    return command_line(*words, *options)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_next(step: NextStep) -> None:
    """Prints what to do next, unless only results are wanted."""
    from exprune_cli.render import write_line

    if not quiet():
        for line in step.lines():
            write_line(line)
