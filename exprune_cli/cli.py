"""The command line: reads options, calls :mod:`exprune_cli.api`, prints what it returns.

Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 a
gate failed, 2 usage, 3 bad model or data, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from exprune_cli import __version__
from exprune_cli.errors import ExpruneError

_INTERNAL_ERROR = 3
_INTERRUPTED = 130
#: As a shell reports a program that a closed pipe ended (128 + SIGPIPE).
_CLOSED_PIPE = 141


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Run 'exprune COMMAND -h' for a command's options.",
)
@click.version_option(__version__, message="exprune %(version)s")
def exprune() -> None:
    """Dynamic pruning for ONNX models: skip the work whose result is already clear.

    \b
    exprune report model.onnx                  what can be staged, and what not
    exprune optimize model.onnx out.onnx       lossless staging, needs no data
    exprune calibrate model.onnx --data DIR    statistics, for more than lossless
    """


@exprune.command()
@click.argument("model", metavar="MODEL", nargs=-1, required=True, type=click.Path())
@click.option("--data", type=click.Path(), metavar="DIR", help="Folder of samples.")
@click.option(
    "--merge",
    is_flag=True,
    help="Take calibration files in place of MODEL, and make one of them: what one pass over the data of "
    "all of them would have given.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Default: MODEL's name with .calib, in this folder.",
)
@click.option("--max-samples", type=click.IntRange(1), metavar="N", help="Use N samples, drawn with --seed.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="B",
    help="Samples per run, where the model's batch is dynamic [default: what memory allows, up to 32].",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="S", help="Seed of what is drawn."
)
def calibrate(
    model: tuple[str, ...],
    data: str | None,
    merge: bool,
    output: str | None,
    max_samples: int | None,
    batch_size: int | None,
    seed: int,
) -> None:
    """Collect the statistics that optimize plans with.

    Runs MODEL once over the samples in DIR. DIR holds *.npz (keys are input names; a key
    'label' holds the label), *.npy (models with one input) or ONNX test_data_set_* folders.

    Parts of the data can be calibrated apart, with one --seed, and merged:

    \b
    exprune calibrate --merge a.calib b.calib -o all.calib
    """
    from exprune_cli import api
    from exprune_cli.progress import Progress
    from exprune_cli.render import plural, write_line

    if merge:
        if len(model) < 2 or output is None:
            raise click.UsageError("--merge needs two or more calibration files, and -o FILE")
        if data is not None or max_samples is not None or batch_size is not None:
            raise click.UsageError("--merge runs no model: it goes with -o alone")
        merged = api.merge_calibrations(model, output)
        sites, samples = plural(len(merged.sites), "site"), plural(merged.samples, "sample")
        write_line(f"{output}: statistics of {sites} from {samples}")
        return
    if len(model) != 1:
        raise click.UsageError(f"got {len(model)} files: give one MODEL, or --merge for calibration files")
    if data is None:
        raise click.UsageError("Missing option '--data'.")
    source = model[0]
    target = output or f"{Path(source).stem}.calib"
    with Progress() as progress:
        done = api.calibrate(
            source, data, target, max_samples=max_samples, batch_size=batch_size, seed=seed, progress=progress
        )
    sites, samples = plural(len(done.sites), "site"), plural(done.samples, "sample")
    write_line(f"{target}: statistics of {sites} from {samples}")
    write_line(f"next: {_command('exprune', 'optimize', source, _beside(source), '--calibration', target)}")


@exprune.command()
@click.argument("input", metavar="IN", type=click.Path())
@click.argument("output", metavar="OUT", type=click.Path())
@click.option("--calibration", type=click.Path(), metavar="FILE", help="What calibrate wrote for IN.")
@click.option(
    "--data",
    type=click.Path(),
    metavar="DIR",
    help="Folder of samples. With --calibration: only verify, on samples that FILE has not seen.",
)
@click.option(
    "--test",
    type=click.Choice(["auto", "bound", "stats", "threshold", "calibrated"]),
    default="auto",
    show_default=True,
    help="What decides that an output is clear.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "flops"]),
    default="latency",
    show_default=True,
    help="What staging has to lower.",
)
@click.option(
    "--max-drop", type=float, metavar="X", help="Greatest drop of the metric, e.g. 0.01; needs --data."
)
@click.option("--confidence", type=float, metavar="X", help="Certify --max-drop, e.g. 0.95.")
@click.option("--metric", metavar="NAME|FILE.py:FUNC", help="What --max-drop is about.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these sites dense. Can be repeated.")
@click.option(
    "--top-k",
    multiple=True,
    metavar="OUTPUT=K",
    help="Return only the K largest values of OUTPUT, and their indices. Can be repeated.",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Batch size that the model is meant for.")
@click.option("--no-measure", is_flag=True, help="Decide without timings on this machine.")
@click.option("--dry-run", is_flag=True, help="Print the plan, write nothing.")
@click.option(
    "--format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the report.",
)
def optimize(
    input: str,
    output: str,
    calibration: str | None,
    data: str | None,
    test: str,
    objective: str,
    max_drop: float | None,
    confidence: float | None,
    metric: str | None,
    exclude: tuple[str, ...],
    top_k: tuple[str, ...],
    batch: int | None,
    no_measure: bool,
    dry_run: bool,
    format: str,
) -> None:
    """Write a model that skips work whose result is already clear.

    Reads the ONNX file IN and writes OUT, whole or not at all. Without data only lossless
    staging is applied.
    """
    from exprune_cli import api, render
    from exprune_cli.progress import Progress

    with Progress() as progress:
        done = api.optimize(
            input,
            output,
            calibration=calibration,
            data=data,
            test=test,  # type: ignore[arg-type]
            objective=objective,  # type: ignore[arg-type]
            max_drop=max_drop,
            confidence=confidence,
            metric=metric,
            exclude=exclude,
            top_k=top_k,
            batch=batch,
            measure=not no_measure,
            dry_run=dry_run,
            progress=progress,
        )
    if format == "json":
        written = str(done.output) if done.output is not None else None
        render.write_line(render.to_json(done.report, output=written))
        return
    render.write_line(render.to_table(done.report, sys.stdout))
    if not done.staged:
        state = "would be the same" if dry_run else "is the same"
        render.write_line(f"nothing was staged: {output} {state} as {input}")
        for reason in render.top_reasons(done.report):
            render.write_line(f"  {reason}")
    if dry_run:
        render.write_line("dry run: nothing was written")
    options = ["--data", data] if data else []
    if done.staged and not dry_run:
        if not data:
            render.write_line("to measure what it saves, add --data DIR to the next command")
        render.write_line(f"next: {_command('exprune', 'report', output, '--baseline', input, *options)}")
    elif not done.staged:
        render.write_line(f"next: {_command('exprune', 'report', input)}")


@exprune.command()
@click.argument("model", type=click.Path())
@click.option("--baseline", type=click.Path(), metavar="IN", help="The model that MODEL was made from.")
@click.option(
    "--data", type=click.Path(), metavar="DIR", help="Folder of samples: measure FLOPs, quality and latency."
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads to time with.",
)
@click.option(
    "--format", type=click.Choice(["table", "json", "html"]), default="table", help="[default: table]"
)
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="Write the report here.")
def report(
    model: str, baseline: str | None, data: str | None, threads: int, format: str, output: str | None
) -> None:
    """Say what is staged, what is not and why, and what it costs.

    Without --data the FLOPs of staged sites are expected values; with --data they are measured.
    """
    from exprune_cli import api, render
    from exprune_cli.paths import check_output
    from exprune_cli.progress import Progress

    if output is not None:
        inputs = {"the model": model} | ({"the baseline": baseline} if baseline is not None else {})
        check_output(output, inputs)
    with Progress() as progress:
        done = api.report(model, baseline, data, threads, progress=progress)
    if format == "json":
        text = render.to_json(done)
    elif format == "html":
        text = render.to_html(done)
    else:
        text = render.to_table(done, None if output is not None else sys.stdout)
    if output is None:
        render.write_line(text.rstrip("\n"))
        return
    from exprune_cli.model import write_bytes

    try:
        write_bytes((text.rstrip("\n") + "\n").encode(), Path(output))
    except OSError as error:
        raise ExpruneError(f"{output}: cannot be written ({error.strerror or error})") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    _show_warnings()
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
        return _fail(str(error), error.exit_code, error)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except SystemExit:
        # Only for a closed pipe: click has met it first and has silenced standard output.
        return _CLOSED_PIPE
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    except Exception as error:  # noqa: BLE001, the last line of defence
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(
            f"internal error: {text} (run with EXPRUNE_DEBUG=1 for the traceback)", _INTERNAL_ERROR, error
        )


class _Warnings(logging.Handler):
    """Shows what the steps log, in the form of all messages."""

    def emit(self, record: logging.LogRecord) -> None:
        from exprune_cli.render import write_line

        write_line(
            f"exprune: {record.levelname.lower()}: {' '.join(record.getMessage().split())}", sys.stderr
        )


def _show_warnings() -> None:
    logger = logging.getLogger("exprune_cli")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get("EXPRUNE_DEBUG"):
        traceback.print_exception(error)
    from exprune_cli.render import write_line

    write_line(f"exprune: error: {' '.join(message.split())}", sys.stderr)
    return code


def _command(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _beside(model: str) -> str:
    path = Path(model)
    return str(path.with_name(f"{path.stem}.exprune{path.suffix or '.onnx'}"))
