"""The command line: reads options, calls :mod:`exprune_cli.api`, prints what it returns.

Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 a
gate failed, 2 usage, 3 bad model or data, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from exprune_cli import __version__
from exprune_cli.available import limit_memory
from exprune_cli.commands.calibrate import calibrate
from exprune_cli.commands.common import with_verbosity
from exprune_cli.commands.completion import completion
from exprune_cli.commands.optimize import optimize
from exprune_cli.commands.report import report
from exprune_cli.errors import ExpruneError, GateError
from exprune_cli.interrupts import Terminated, tidy_endings

_INTERNAL_ERROR = 3
_INTERRUPTED = 130
#: 128 + SIGTERM, as shells report it.
_TERMINATED = 143
#: As a shell reports a program that a closed pipe ended (128 + SIGPIPE).
_CLOSED_PIPE = 141


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Run 'exprune COMMAND -h' for a command's options.",
)
@with_verbosity
@click.version_option(__version__, message="exprune %(version)s")
def exprune() -> None:
    """Dynamic pruning for ONNX models: skip the work whose result is already clear.

    \b
    exprune report model.onnx                  what can be staged, and what not
    exprune optimize model.onnx out.onnx       lossless staging, needs no data
    exprune calibrate model.onnx --data DIR    statistics, for more than lossless
    """


for _command in (calibrate, optimize, report, completion):
    exprune.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    _show_warnings()
    if arguments is not None:
        return _run(arguments)
    # A process of its own, which may be limited and ended.
    limit_memory()
    try:
        with tidy_endings():
            return _run(None)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except Terminated:
        return _TERMINATED


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = exprune.main(
            list(arguments) if arguments is not None else None, "exprune", standalone_mode=False
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # newer versions of click only
            click.echo(error.format_message(), err=True)
            return error.exit_code
        command = error.ctx.command_path if error.ctx is not None else "exprune"
        return _fail(f"{error.format_message()} (see '{command} -h')", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except ExpruneError as error:
        code = _fail(error.command_line, error.exit_code, error)
        if isinstance(error, GateError) and error.next_command is not None:
            _say(f"next: {error.next_command}")
        return code
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except Terminated:
        return _fail("terminated", _TERMINATED)
    except SystemExit as leave:
        # A shell asked for completions, or click has met a closed pipe first and silenced standard output.
        return _CLOSED_PIPE if leave.code else 0
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    except MemoryError:
        return _fail(
            "not enough memory: close other programs, or give less at once (--batch)", _INTERNAL_ERROR
        )
    except Exception as error:  # noqa: BLE001, the last line of defence
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(
            f"internal error: {text} (run with EXPRUNE_DEBUG=1 for the traceback)", _INTERNAL_ERROR, error
        )


class _Warnings(logging.Handler):
    """Shows what the steps log, in the form of all messages."""

    def emit(self, record: logging.LogRecord) -> None:
        from exprune_cli.render import printable, write_line

        kind = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        write_line(f"exprune: {kind}{printable(' '.join(record.getMessage().split()))}", sys.stderr)


def _show_warnings() -> None:
    logger = logging.getLogger("exprune_cli")
    logger.setLevel(logging.WARNING)  # until -q or -v is read
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings())


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get("EXPRUNE_DEBUG"):
        traceback.print_exception(error)
    _say(f"exprune: error: {' '.join(message.split())}")
    return code


def _say(line: str) -> None:
    from exprune_cli.render import printable, write_line

    # Messages quote names from files.
    write_line(printable(line), sys.stderr)
