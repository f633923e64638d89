"""The Python interface: one function per command, with the command's options as arguments.

Models are given as a path, as serialised bytes, or as an ``onnx.ModelProto``, which is not changed.
Samples are given as a folder's path, or from memory as :data:`~exprune_cli.data.sources.Data` says:

>>> import exprune_cli
>>> calibration = exprune_cli.calibrate("model.onnx", images)
>>> calibration
<Calibration of 3 sites from 160 samples>
>>> done = exprune_cli.optimize("model.onnx", calibration=calibration, objective="flops")
>>> done.save("staged.onnx")
>>> (scores,) = done.session().run(None, {"x": images[:1]})

With labels, from a generator, and measured:

>>> samples = ({"x": images[i : i + 1], "label": labels[i]} for i in range(160))
>>> report = exprune_cli.report("staged.onnx", baseline="model.onnx", data=samples)
>>> report.fidelity.metric, report.samples
('accuracy', 160)
>>> report.save("report.html")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exprune_cli.arguments import (
    as_calibration,
    calibration_of,
    check_optimize,
    open_unseen,
    paths,
    random_data,
)
from exprune_cli.custom_ops import uses_custom_ops
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.paths import PathLike, check_output, external_files
from exprune_cli.progress import begin, counting

if TYPE_CHECKING:
    from exprune_cli import pipeline, sites
    from exprune_cli.data import Data, DataSet
    from exprune_cli.metrics import MetricFunction
    from exprune_cli.model import Model, ModelSource
    from exprune_cli.outlook import Prospects
    from exprune_cli.progress import Progress
    from exprune_cli.record import Record
    from exprune_cli.results import Calibration, Optimized, Report
    from exprune_cli.sessions import Feeds

Test = Literal["auto", "bound", "stats", "threshold", "calibrated"]
Objective = Literal["latency", "flops"]

#: Inputs that latencies are taken on.
_TIMED_INPUTS = 8
#: Samples that are run one at a time, for how pruning is spread over them.
_SPREAD_SAMPLES = 256


@uses_custom_ops
def calibrate(
    model: ModelSource,
    data: Data | None = None,
    output: PathLike | None = None,
    *,
    max_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    allow_random: bool = False,
    custom_ops: Sequence[PathLike] = (),
    progress: Progress | None = None,
) -> Calibration:
    """Runs a model over sample data and collects what planning needs (``exprune calibrate``).

    Args:
        model: The model.
        data: The samples; None with ``allow_random``.
        output: Where to write the calibration file; None to only return it.
        max_samples: Use at most so many samples, drawn with ``seed``; None for all.
        batch_size: Samples per run, where the model's batch is dynamic; None for what memory allows.
        seed: Seed of everything that is drawn.
        allow_random: Take random numbers for samples. They say nothing of real data, and the result,
            and whatever is made with it, says so.
        custom_ops: Libraries of custom operators that the model needs, for all sessions.
        progress: Where progress is shown.

    Raises:
        ExpruneError: A bad model, bad data, or ``output`` cannot be written.
        UsageError: ``output`` is the model; there is neither ``data`` nor ``allow_random``, or both.
    """
    if output is not None:
        check_output(output, paths({"the model": model}))
    if (data is None) != allow_random:
        raise UsageError("give --data, or --allow-random to calibrate on random numbers, and not both")
    from exprune_cli.data import open_data
    from exprune_cli.match import match
    from exprune_cli.model import load
    from exprune_cli.observe import observe
    from exprune_cli.results import Calibration, widen

    loaded = load(model, counting(progress, "loading", in_bytes=True))
    samples = random_data(loaded, max_samples, seed) if data is None else open_data(data, loaded.proto)
    if max_samples is not None and max_samples < len(samples):
        samples = samples.take_groups(max_samples, seed)  # whole ones leave others to verify on
    found = observe(
        loaded,
        match(loaded).sites,
        samples,
        seed=seed,
        batch_size=batch_size,
        progress=counting(progress, "calibrating", len(samples)),
    )
    found.random = data is None
    calibration = widen(Calibration, found)
    if output is not None:
        calibration.save(output)
    return calibration


def merge_calibrations(
    parts: Sequence[PathLike | sites.Calibration], output: PathLike | None = None
) -> Calibration:
    """Makes one calibration of several (``exprune calibrate --merge``).

    Args:
        parts: Calibrations of one model, or their files, made with one seed from disjoint samples.
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
        check_output(output, paths({f"calibration file {i}": part for i, part in enumerate(parts, 1)}))
    from exprune_cli.calibration import merge
    from exprune_cli.results import Calibration, widen

    # One at a time, so that the memory is that of two parts however many there are.
    merged = as_calibration(parts[0])
    for part in parts[1:]:
        merged = merge(merged, as_calibration(part))
    result = widen(Calibration, merged)
    if output is not None:
        result.save(output)
    return result


@uses_custom_ops
def optimize(
    input: ModelSource,
    output: PathLike | None = None,
    *,
    calibration: PathLike | sites.Calibration | None = None,
    data: Data | None = None,
    test: Test = "auto",
    objective: Objective = "latency",
    max_drop: float | None = None,
    confidence: float | None = None,
    metric: str | MetricFunction | None = None,
    exclude: Sequence[str] = (),
    top_k: Sequence[str] = (),
    batch: int | None = None,
    measure: bool = True,
    fuse: bool = True,
    dry_run: bool = False,
    seed: int = 0,
    allow_random: bool = False,
    custom_ops: Sequence[PathLike] = (),
    progress: Progress | None = None,
) -> Optimized:
    """Stages a model's sites (``exprune optimize``).

    Args:
        input: The model.
        output: Where to write the new file, whole or not at all; None to only return it.
        calibration: A calibration of this model, or its file. With ``data`` as well, the statistics
            come from it and the drop is verified on samples that it has not seen.
        data: The samples.
        test: Which test decides; ``auto`` takes what is lossless, or certified with data.
        objective: What staging has to lower.
        max_drop: Greatest allowed drop of the metric; needs ``data``.
        confidence: Certify ``max_drop`` at this confidence (0 to 1).
        metric: Name of a metric, ``FILE.py:FUNC``, or a function as :mod:`exprune_cli.metrics` describes.
        exclude: Glob patterns of sites to leave dense.
        top_k: ``OUTPUT=K``: returns the K largest values of this output and their indices
            (``OUTPUT_values``, ``OUTPUT_indices``) instead of all values.
        batch: The batch size that the model is meant for.
        measure: Whether timings on this machine may decide what is staged.
        fuse: Whether operators around the sites may be fused, where timings say that it is faster: equal
            results up to rounding.
        dry_run: Do everything but write.
        seed: Seed of everything that is drawn.
        allow_random: Plan on random numbers where there are no samples; nothing is verified then, and the
            file and its report say so.
        custom_ops: Libraries of custom operators that the model needs, for all sessions.
        progress: Where progress is shown.

    Raises:
        UsageError: Options that do not fit together; ``output`` is one of the inputs.
        ExpruneError: A bad model, bad data, or ``output`` cannot be written.
        GateError: ``max_drop`` cannot be met or certified. Nothing is written.
    """
    check_optimize(calibration, data, test, max_drop, confidence, metric, batch, allow_random)
    if output is not None:
        check_output(output, paths({"the input": input, "the calibration file": calibration}))
    from exprune_cli.model import data_path, load
    from exprune_cli.pipeline import optimize_model

    model = load(input, counting(progress, "loading", in_bytes=True))
    if output is not None and model.external:
        assert model.path is not None  # bytes and protos have no files beside them
        for weights in external_files(model.path):
            check_output(output, {"the input's external data": weights})
            # The name that the output's own weights would get.
            check_output(data_path(Path(output)), {"the input's external data": weights})
    if allow_random:
        calibration = calibrate(input, seed=seed, allow_random=True, progress=progress)
    statistics = calibration_of(model, calibration)
    samples = open_unseen(model, data, statistics)
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
        fuse=fuse,
        seed=seed,
        progress=progress,
    )
    original = input if isinstance(input, bytes) else None
    return _finish(model, original, done, None if dry_run else output, progress)


@uses_custom_ops
def report(
    model: ModelSource,
    baseline: ModelSource | None = None,
    data: Data | None = None,
    threads: int = 1,
    *,
    custom_ops: Sequence[PathLike] = (),
    progress: Progress | None = None,
) -> Report:
    """Says what a model's sites are, what they cost and, with data, what they really cost.

    Args:
        model: A model, optimised or not.
        baseline: The model that it was made from.
        data: Samples: measures FLOPs, fidelity (with a baseline or labels), latency.
        threads: Threads that latencies are taken with.
        custom_ops: Libraries of custom operators that the model needs, for all sessions.
        progress: Where progress is shown.

    Raises:
        ExpruneError: A bad model or bad data; a baseline with other inputs or outputs.
        UsageError: ``threads`` below 1.
    """
    if threads < 1:
        raise UsageError("threads: must be at least 1")
    from exprune_cli.latency import latency, layout_notes
    from exprune_cli.measure import check_interface
    from exprune_cli.measure import measure as run_measure
    from exprune_cli.model import load
    from exprune_cli.recheck import check_certificate
    from exprune_cli.record import read_record
    from exprune_cli.reporting import build_report
    from exprune_cli.results import Report, widen
    from exprune_cli.top_k import with_top_k

    loaded = load(model, counting(progress, "loading", in_bytes=True))
    record = read_record(loaded.proto)
    dense = load(baseline) if baseline is not None else None
    if dense is not None:
        dense = with_top_k(dense, record.top_k if record is not None else {})
        check_interface(loaded.proto, dense.proto)
    if data is None:
        begin(progress, "looking for sites")
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
    result.baseline = os.fspath(baseline) if isinstance(baseline, (str, os.PathLike)) else None
    result.data = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
    if dense is not None and record is not None and dense.sha256 != record.source_sha256:
        names = dense.path or "the baseline", loaded.path or "the model"
        result.notes.append(f"{names[0]} is not the file that {names[1]} was made from")
    if dense is not None and data is None:
        result.notes.append("--baseline is compared on samples: give --data as well")
    if data is not None:
        result.notes += layout_notes(loaded.proto)
    if data is not None and result.runtime == "function":
        result.notes.append(
            "without the native runtime staged sites ran as ONNX functions: times say nothing of it"
        )
    return widen(Report, result)


def _finish(
    model: Model,
    original: bytes | None,
    result: pipeline.Optimized,
    output: PathLike | None,
    progress: Progress | None,
) -> Optimized:
    from exprune_cli.model import Model
    from exprune_cli.reporting import build_report
    from exprune_cli.results import Optimized, Report, widen

    path = Path(output) if output is not None else None
    proto, record, staged = result.proto, result.record, result.staged
    # Where nothing was changed the file stays the input's equal; only the report knows what was tried.
    unchanged = not staged and not record.top_k and not model.external
    built = build_report(Model(proto, path or model.path, "", model.external), record=record)
    built.optimized = staged > 0
    equal = (model.path or original) if unchanged else None
    done = Optimized(widen(Report, built), record, proto, staged, path, equal, result.weights)
    if path is not None:
        done.save(path, progress)
    return done


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
