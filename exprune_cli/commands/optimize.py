"""``exprune optimize``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from exprune_cli.commands.common import (
    explain,
    next_after,
    print_next,
    quiet,
    with_custom_ops,
    with_verbosity,
)
from exprune_cli.errors import GateError

if TYPE_CHECKING:
    from exprune_cli.api import Objective, Test


@click.command()
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
@click.option(
    "--allow-random",
    is_flag=True,
    help="Without samples: plan on random numbers. Nothing is verified; OUT and the report say so.",
)
@click.option("--no-measure", is_flag=True, help="Decide without timings on this machine.")
@click.option("--no-fuse", is_flag=True, help="Leave the operators around the sites as they are.")
@click.option("--dry-run", is_flag=True, help="Print the plan, write nothing.")
@click.option(
    "--format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the report.",
)
@with_custom_ops
@with_verbosity
def optimize(
    input: str,
    output: str,
    calibration: str | None,
    data: str | None,
    test: Test,
    objective: Objective,
    max_drop: float | None,
    confidence: float | None,
    metric: str | None,
    exclude: tuple[str, ...],
    top_k: tuple[str, ...],
    batch: int | None,
    allow_random: bool,
    no_measure: bool,
    no_fuse: bool,
    dry_run: bool,
    format: str,
    custom_ops: tuple[str, ...],
) -> None:
    """Write a model that skips work whose result is already clear.

    Reads the ONNX file IN and writes OUT, whole or not at all. Without data only lossless
    staging is applied.
    """
    from exprune_cli import api, render
    from exprune_cli.next_step import after_optimize
    from exprune_cli.progress import Progress

    try:
        with Progress(False if quiet() else None) as progress:
            done = api.optimize(
                input,
                output,
                calibration=calibration,
                data=data,
                test=test,
                objective=objective,
                max_drop=max_drop,
                confidence=confidence,
                metric=metric,
                exclude=exclude,
                top_k=top_k,
                batch=batch,
                measure=not no_measure,
                fuse=not no_fuse,
                custom_ops=custom_ops,
                dry_run=dry_run,
                allow_random=allow_random,
                progress=progress,
            )
    except GateError as error:
        next_after(error)
        raise
    explain(done.report)
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
        render.write_line("dry run: nothing was written; leave --dry-run out to write it")
    step = after_optimize(
        input, output, data, staged=bool(done.staged), dry_run=dry_run, custom_ops=custom_ops
    )
    print_next(step)
