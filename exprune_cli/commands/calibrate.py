"""``exprune calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from exprune_cli.commands.common import print_next, quiet, with_custom_ops, with_verbosity


@click.command()
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
@click.option(
    "--allow-random",
    is_flag=True,
    help="Calibrate on random numbers in place of --data. They say nothing of real inputs; FILE says so.",
)
@with_custom_ops
@with_verbosity
def calibrate(
    model: tuple[str, ...],
    data: str | None,
    merge: bool,
    output: str | None,
    max_samples: int | None,
    batch_size: int | None,
    seed: int,
    allow_random: bool,
    custom_ops: tuple[str, ...],
) -> None:
    """Collect the statistics that optimize plans with.

    Runs MODEL once over the samples in DIR. DIR holds *.npz (keys are input names; a key
    'label' holds the label, a key 'group' says which samples belong together), *.npy (models
    with one input) or ONNX test_data_set_* folders.

    Parts of the data can be calibrated apart, with one --seed, and merged:

    \b
    exprune calibrate --merge a.calib b.calib -o all.calib
    """
    from exprune_cli import api
    from exprune_cli.next_step import after_calibrate
    from exprune_cli.progress import Progress
    from exprune_cli.render import plural, write_line

    if merge:
        if len(model) < 2 or output is None:
            raise click.UsageError("--merge needs two or more calibration files, and -o FILE")
        if data is not None or allow_random or max_samples is not None or batch_size is not None:
            raise click.UsageError("--merge runs no model: it goes with -o alone")
        merged = api.merge_calibrations(model, output)
        sites, samples = plural(len(merged.sites), "site"), plural(merged.samples, "sample")
        write_line(f"{output}: statistics of {sites} from {samples}")
        return
    if len(model) != 1:
        raise click.UsageError(f"got {len(model)} files: give one MODEL, or --merge for calibration files")
    if data is None and not allow_random:
        raise click.UsageError("Missing option '--data'.")
    source = model[0]
    target = output or f"{Path(source).stem}.calib"
    with Progress(False if quiet() else None) as progress:
        done = api.calibrate(
            source,
            data,
            target,
            max_samples=max_samples,
            batch_size=batch_size,
            seed=seed,
            allow_random=allow_random,
            custom_ops=custom_ops,
            progress=progress,
        )
    kind = "random sample" if done.random else "sample"
    sites, samples = plural(len(done.sites), "site"), plural(done.samples, kind)
    write_line(f"{target}: statistics of {sites} from {samples}")
    print_next(after_calibrate(source, target))
