"""The Python interface: one function per command, with the command's options as arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.paths import PathLike, check_output, external_files

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.model import Model
    from exprune_cli.outlook import Prospects
    from exprune_cli.progress import Progress
    from exprune_cli.record import Record
    from exprune_cli.reporting import Report
    from exprune_cli.sessions import Feeds
    from exprune_cli.sites import Calibration

#: Inputs that latencies are taken on.
_TIMED_INPUTS = 8
#: Samples that are run one at a time, for how pruning is spread over them.
_SPREAD_SAMPLES = 256


@dataclass
class Optimized:
    """What :func:`optimize` did.

    Attributes:
        report: The report of the new model, without measured parts.
        record: What the new model records of itself.
        model: The new model (``onnx.ModelProto``); the original where nothing was staged.
        staged: How many sites are staged.
        output: Where it was written; None if it was not.
    """

    report: Report
    record: Record
    model: object
    staged: int
    output: Path | None


def calibrate(
    model: PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    max_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Runs a model over sample data and collects what planning needs (``exprune calibrate``).

    Args:
        model: Path of the ONNX file.
        data: Folder of samples.
        output: Where to write the calibration file; None to only return it.
        max_samples: Use at most so many samples, drawn with ``seed``; None for all.
        batch_size: Samples per run, where the model's batch is dynamic; None for what memory allows.
        seed: Seed of everything that is drawn.
        progress: Where progress is shown.

    Raises:
        ExpruneError: A bad model, bad data, or ``output`` cannot be written.
        UsageError: ``output`` is the model.
    """
    if output is not None:
        check_output(output, {"the model": model})
    from exprune_cli.calibration import save_calibration
    from exprune_cli.data import open_data
    from exprune_cli.match import match
    from exprune_cli.model import load
    from exprune_cli.observe import observe

    loaded = load(model)
    samples = open_data(data, loaded.proto)
    if max_samples is not None and max_samples < len(samples):
        samples = samples.take(max_samples, seed)
    sites = match(loaded).sites
    calibration = observe(
        loaded,
        sites,
        samples,
        seed=seed,
        batch_size=batch_size,
        progress=progress.counter("calibrating") if progress is not None else None,
    )
    if output is not None:
        save_calibration(calibration, output)
    return calibration


def merge_calibrations(parts: Sequence[PathLike], output: PathLike | None = None) -> Calibration:
    """Makes one calibration of several (``exprune calibrate --merge``).

    Args:
        parts: Calibration files of one model, made with one seed from disjoint samples.
        output: Where to write the result; None to only return it.

    Returns:
        What one pass over all the data, in the order of ``parts``, would have given: the same sampled
        rows, and sums that are the same up to the rounding of the additions.

    Raises:
        UsageError: There is no part, or ``output`` is one of them.
        ExpruneError: A file cannot be read, they do not fit together, or ``output`` cannot be written.
    """
    if not parts:
        raise UsageError("there is no calibration file to merge")
    if output is not None:
        check_output(output, {f"calibration file {i}": part for i, part in enumerate(parts, 1)})
    from exprune_cli.calibration import load_calibration, merge, save_calibration

    # One at a time, so that the memory is that of two parts however many there are.
    merged = load_calibration(parts[0])
    for part in parts[1:]:
        merged = merge(merged, load_calibration(part))
    if output is not None:
        save_calibration(merged, output)
    return merged


def optimize(
    input: PathLike,
    output: PathLike | None = None,
    *,
    calibration: PathLike | None = None,
    data: PathLike | None = None,
    test: Literal["auto", "bound", "stats", "threshold", "calibrated"] = "auto",
    objective: Literal["latency", "flops"] = "latency",
    max_drop: float | None = None,
    confidence: float | None = None,
    metric: str | None = None,
    exclude: Sequence[str] = (),
    top_k: Sequence[str] = (),
    batch: int | None = None,
    measure: bool = True,
    dry_run: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Optimized:
    """Stages a model's sites (``exprune optimize``).

    Args:
        input: Path of the ONNX file.
        output: Where to write the new file, whole or not at all; None to only return it.
        calibration: A calibration file of this model. With ``data`` as well, the statistics
            come from the file and the drop is verified on samples that the file has not seen.
        data: Folder of samples.
        test: Which test decides; ``auto`` takes what is lossless, or certified with data.
        objective: What staging has to lower.
        max_drop: Greatest allowed drop of the metric; needs ``data``.
        confidence: Certify ``max_drop`` at this confidence (0 to 1).
        metric: Name of a metric or ``FILE.py:FUNC``.
        exclude: Glob patterns of sites to leave dense.
        top_k: ``OUTPUT=K``: returns the K largest values of this output and their indices
            (``OUTPUT_values``, ``OUTPUT_indices``) instead of all values.
        batch: The batch size that the model is meant for.
        measure: Whether timings on this machine may decide what is staged.
        dry_run: Do everything but write.
        seed: Seed of everything that is drawn.
        progress: Where progress is shown.

    Raises:
        UsageError: Options that do not fit together; ``output`` is one of the inputs.
        ExpruneError: A bad model, bad data, or ``output`` cannot be written.
        GateError: ``max_drop`` cannot be met or certified. Nothing is written.
    """
    _check_optimize(calibration, data, test, max_drop, confidence, metric, batch)
    if output is not None:
        inputs = {"the input": input}
        if calibration is not None:
            inputs["the calibration file"] = calibration
        check_output(output, inputs)
    from exprune_cli.model import load
    from exprune_cli.pipeline import optimize_model

    model = load(input)
    if output is not None and model.external:
        for weights in external_files(input):
            check_output(output, {"the input's external data": weights})
    statistics = _load_calibration(model, calibration)
    samples = _open_unseen(model, data, statistics)
    done = optimize_model(
        model,
        calibration=statistics,
        data=samples,
        test=test,
        objective=objective,
        max_drop=max_drop,
        confidence=confidence,
        metric=metric,
        exclude=tuple(exclude),
        top_k=tuple(top_k),
        batch=batch,
        measure=measure,
        seed=seed,
        progress=progress,
    )
    return _finish(model, done.proto, done.record, done.staged, None if dry_run else output)


def report(
    model: PathLike,
    baseline: PathLike | None = None,
    data: PathLike | None = None,
    threads: int = 1,
    *,
    progress: Progress | None = None,
) -> Report:
    """Says what a model's sites are, what they cost and, with data, what they really cost.

    Args:
        model: Path of an ONNX file, optimised or not.
        baseline: The model that it was made from.
        data: Folder of samples: measures FLOPs, fidelity (with a baseline or labels), latency.
        threads: Threads that latencies are taken with.
        progress: Where progress is shown.

    Raises:
        ExpruneError: A bad model or bad data; a baseline with other inputs or outputs.
        UsageError: ``threads`` below 1.
    """
    if threads < 1:
        raise UsageError("threads: must be at least 1")
    from exprune_cli.measure import check_interface, latency
    from exprune_cli.measure import measure as run_measure
    from exprune_cli.model import load
    from exprune_cli.recheck import check_certificate
    from exprune_cli.record import read_record
    from exprune_cli.reporting import build_report
    from exprune_cli.top_k import with_top_k

    loaded = load(model)
    record = read_record(loaded.proto)
    dense = load(baseline) if baseline is not None else None
    if dense is not None:
        dense = with_top_k(dense, record.top_k if record is not None else {})
        check_interface(loaded.proto, dense.proto)
    if data is None:
        result = build_report(loaded)
    else:
        from exprune_cli.data import open_data

        samples = open_data(data, loaded.proto)
        measured = run_measure(
            loaded.proto,
            samples,
            baseline=dense.proto if dense is not None else None,
            batch_size=_meant_batch(record),
            metric=_recorded_metric(record, samples.has_labels, dense is not None),
            any_metric=True,
            progress=progress,
            spread_over=_SPREAD_SAMPLES,
        )
        feeds = _some_feeds(samples, record.batch if record is not None else 1)
        timing = latency(
            dense.proto if dense is not None else None, loaded.proto, feeds, threads, progress=progress
        )
        prospects, problem = _prospects(loaded, samples, progress) if record is None else (None, None)
        result = build_report(loaded, measurement=measured, timing=timing, prospects=prospects)
        if problem is not None:
            result.notes.append(f"what could be gained is said from the weights alone: {problem}")
        check_certificate(result, record, measured)
    if dense is not None and record is not None and dense.sha256 != record.source_sha256:
        result.notes.append(f"{baseline} is not the file that {model} was made from")
    if dense is not None and data is None:
        result.notes.append("--baseline is compared on samples: give --data as well")
    if data is not None and result.runtime == "function":
        result.notes.append(
            "without the native runtime staged sites ran as ONNX functions: times say nothing of it"
        )
    return result


def _check_optimize(
    calibration: PathLike | None,
    data: PathLike | None,
    test: str,
    max_drop: float | None,
    confidence: float | None,
    metric: str | None,
    batch: int | None,
) -> None:
    if test == "calibrated" and calibration is None and data is None:
        raise UsageError("--test calibrated needs --calibration or --data")
    if max_drop is not None and data is None:
        raise UsageError("--max-drop needs --data: the drop is measured on samples")
    if max_drop is not None and not 0 <= max_drop < float("inf"):
        raise UsageError("--max-drop must be 0 or more, e.g. 0.01 for one percent")
    if confidence is not None and max_drop is None:
        raise UsageError("--confidence needs --max-drop: it is how sure the drop's bound has to be")
    if confidence is not None and not 0 < confidence < 1:
        raise UsageError("--confidence must be between 0 and 1, e.g. 0.95")
    if metric is not None and data is None:
        raise UsageError("--metric needs --data: it is evaluated on samples")
    if batch is not None and batch < 1:
        raise UsageError("--batch must be at least 1")


def _load_calibration(model: Model, path: PathLike | None) -> Calibration | None:
    if path is None:
        return None
    from exprune_cli.calibration import check_belongs, load_calibration

    calibration = load_calibration(path)
    check_belongs(calibration, model, path)
    return calibration


def _open_unseen(model: Model, data: PathLike | None, calibration: Calibration | None) -> DataSet | None:
    """The samples of a folder; without those that a calibration file was made with."""
    if data is None:
        return None
    from exprune_cli.data import open_data

    samples = open_data(data, model.proto)
    if calibration is None:
        return samples
    unseen = samples.without(calibration.sample_ids)
    if not len(unseen):
        raise ExpruneError(
            f"{os.fspath(data)}: the calibration file has seen all of its {len(samples)} samples: "
            "give others to verify on, or calibrate with fewer (--max-samples)"
        )
    return unseen


def _finish(model: Model, proto: object, record: Record, staged: int, output: PathLike | None) -> Optimized:
    import onnx

    from exprune_cli.model import Model, save, write_bytes
    from exprune_cli.reporting import build_report

    assert isinstance(proto, onnx.ModelProto)
    path = Path(output) if output is not None else None
    # Where nothing was changed the file stays the input's equal; only the report knows what was tried.
    built = build_report(Model(proto, path or model.path, "", model.external), record=record)
    built.optimized = staged > 0
    if path is not None and not staged and not record.top_k and model.path is not None and not model.external:
        try:
            write_bytes(model.path.read_bytes(), path)
        except OSError as error:
            raise ExpruneError(f"{path}: cannot be written ({error.strerror or error})") from None
    elif path is not None:
        save(proto, path)
    return Optimized(built, record, proto, staged, path)


def _meant_batch(record: Record | None) -> int | None:
    """Samples per run, where a model was made for a batch size: with more the dense layers may run."""
    guarded = record is not None and any("most_rows" in site.parameters for site in record.sites)
    return record.batch if record is not None and guarded else None


def _recorded_metric(record: Record | None, has_labels: bool, has_baseline: bool) -> str | None:
    """The built-in metric that the file was verified with, where the data allow it.

    A function's name is not followed: a model file must not choose what code is run.
    """
    name = record.quality.get("metric") if record is not None and record.quality else None
    if not isinstance(name, str) or ":" in name:
        return None
    from exprune_cli.metrics import metric_for

    try:
        metric = metric_for(name, has_labels)
    except UsageError:
        return None
    return name if has_baseline or not metric.needs_baseline else None


def _prospects(
    model: Model, data: DataSet, progress: Progress | None
) -> tuple[Prospects | None, ExpruneError | None]:
    """What a model could gain, by its activations, or why these cannot say it."""
    from exprune_cli.outlook import look_at_activations

    try:
        return look_at_activations(model, data, progress), None
    except ExpruneError as error:
        return None, error


def _some_feeds(samples: DataSet, batch: int) -> list[Feeds]:
    feeds: list[Feeds] = []
    for item in samples.batches(batch):
        feeds.append(item.feeds)
        if len(feeds) == _TIMED_INPUTS:
            break
    return feeds
