"""``exprune report``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from exprune_cli.commands.common import explain, quiet, with_custom_ops, with_verbosity
from exprune_cli.errors import ExpruneError


def _print_schema(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib.resources import files

        from exprune_cli.render import write_line

        write_line((files("exprune_cli") / "report.schema.json").read_text(encoding="utf-8").rstrip("\n"))
        context.exit()


@click.command()
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
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON schema of --format json and exit.",
)
@click.option("--min-saving", type=float, metavar="X", help="Fail if less of the FLOPs is saved, e.g. 0.2.")
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="Fail if the metric drops by more, e.g. 0.01; needs --data and --baseline.",
)
@click.option(
    "--min-speedup",
    type=float,
    metavar="X",
    help="Fail if it is less fast than this times the baseline, e.g. 1.1; needs --data and --baseline.",
)
@click.option("--min-staged", type=click.IntRange(0), metavar="N", help="Fail if fewer sites are staged.")
@with_custom_ops
@with_verbosity
def report(
    model: str,
    baseline: str | None,
    data: str | None,
    threads: int,
    format: str,
    output: str | None,
    custom_ops: tuple[str, ...],
    min_saving: float | None,
    max_drop: float | None,
    min_speedup: float | None,
    min_staged: int | None,
) -> None:
    """Say what is staged, what is not and why, and what it costs.

    Without --data the FLOPs of staged sites are expected values; with --data they are measured.

    With bounds (--min-saving, --max-drop, --min-speedup, --min-staged) the exit code is 1 where
    the report leaves one of them; it is printed or written all the same.
    """
    from exprune_cli import api, render
    from exprune_cli.gates import Bounds
    from exprune_cli.next_step import after_gate, after_report
    from exprune_cli.paths import check_output
    from exprune_cli.progress import Progress

    if output is not None:
        inputs = {"the model": model} | ({"the baseline": baseline} if baseline is not None else {})
        check_output(output, inputs)
    bounds = Bounds(min_saving, max_drop, min_speedup, min_staged)
    bounds.check_options(data=data is not None, baseline=baseline is not None)
    with Progress(False if quiet() else None) as progress:
        done = api.report(model, baseline, data, threads, custom_ops=custom_ops, progress=progress)
    explain(done)
    left = bounds.failure(done)
    if format == "json":
        text = render.to_json(done)
    elif format == "html":
        from exprune_cli.page import to_html

        text = to_html(done)
    else:
        text = render.to_table(done, None if output is not None else sys.stdout)
        text += "" if quiet() or left is not None else "\n" + "\n".join(after_report(done).lines())
    if output is None:
        render.write_line(text.rstrip("\n"))
    else:
        _write(text, output)
    if left is not None:
        if not quiet():
            left.next_command = after_gate(done, max_drop).command
        raise left


def _write(text: str, output: str) -> None:
    from exprune_cli.model import write_bytes

    try:
        write_bytes((text.rstrip("\n") + "\n").encode(), Path(output))
    except OSError as error:
        raise ExpruneError(f"{output}: cannot be written ({error.strerror or error})") from None
