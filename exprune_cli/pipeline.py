"""The whole way from a model to its staged form: match, observe, plan, certify, rewrite, verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from exprune_cli import __version__, never_slower
from exprune_cli.choice import Job, lossless_plans, lossy_plans
from exprune_cli.errors import UsageError
from exprune_cli.fusing import fused_where_faster
from exprune_cli.fusion import Fused
from exprune_cli.labels import label
from exprune_cli.match import Matches, match, still_excluded
from exprune_cli.metrics import metric_name
from exprune_cli.model import Model
from exprune_cli.planning.relu import dense
from exprune_cli.progress import begin, counting
from exprune_cli.record import Record, SiteRecord, write_record
from exprune_cli.rewrite import own, refusal_records, rewrite
from exprune_cli.search import Gate
from exprune_cli.sites import TESTS, Calibration, SitePlan
from exprune_cli.top_k import parse_top_k, with_top_k
from exprune_cli.verify import verify
from exprune_cli.weights import kept

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.metrics import MetricFunction
    from exprune_cli.progress import Progress

#: Tests that can change results, and so are verified on held-out samples.
LOSSY = ("stats", "threshold", "calibrated")
#: The drop that is allowed when none is given.
DEFAULT_MAX_DROP = 0.005
#: Of data that both calibrate and verify, a quarter calibrates, within these limits: what is
#: estimated from rows needs fewer samples than a drop does.
_CALIBRATION_SHARE = 0.25
_CALIBRATION_SAMPLES = (16, 2000)
#: Where all samples are held out, so many (or an eighth) are kept apart to plan on; of few draws, none.
_PROBE_SAMPLES = 128
_FEW = 64


@dataclass
class Optimized:
    """The result of :func:`optimize_model`.

    Attributes:
        proto: The staged model; the original if nothing was staged.
        record: What is in its metadata.
        staged: How many sites are staged.
        weights: Holds the files that the weights of a large model are in.
    """

    proto: onnx.ModelProto
    record: Record
    staged: int
    weights: object = None


def optimize_model(
    model: Model,
    *,
    calibration: Calibration | None = None,
    data: DataSet | None = None,
    test: str = "auto",
    objective: str = "latency",
    max_drop: float | None = None,
    confidence: float | None = None,
    metric: str | MetricFunction | None = None,
    exclude: Sequence[str] = (),
    top_k: Sequence[str] = (),
    batch: int | None = None,
    measure: bool = True,
    fuse: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Optimized:
    """Stages a model.

    Args:
        model: The original; not changed.
        calibration: Statistics of an earlier ``calibrate``; made from a part of ``data`` if None.
        data: Samples. Those that the statistics did not see verify the drop.
        test: ``auto`` (``calibrated`` with statistics, else ``bound``) or one of ``TESTS``.
        objective: ``latency`` or ``flops``.
        max_drop: Largest drop of the metric; 0.005 if a test can change results.
        confidence: Asks for a certificate at this level.
        metric: See :mod:`exprune_cli.metrics`.
        exclude: Glob patterns of sites to leave dense.
        top_k: ``OUTPUT=K``: returns the K best of an output's values instead of all.
        batch: Batch size that the model is meant for; the model's own or 1.
        measure: Whether ``latency`` may time sites on this machine.
        fuse: Whether ``latency`` may fuse operators around the sites, where that is faster on this machine.
        seed: Of every random choice.
        progress: Where progress is shown.

    Raises:
        UsageError: Options that do not fit together.
        ExpruneError: The model or the data are bad.
        GateError: The drop cannot be met, or not be certified.
    """
    if test != "auto" and test not in TESTS:
        raise UsageError(f"there is no test {test!r}: choose one of auto, {', '.join(TESTS)}")
    wanted = parse_top_k(top_k)
    model = with_top_k(model, wanted)
    if confidence is not None and data is None:
        raise UsageError("--confidence needs --data: a certificate comes from samples")
    if confidence is not None and calibration is not None and calibration.random:
        raise UsageError(
            "--confidence: a plan made on random data is never certified: calibrate with samples"
        )
    matches = match(model, exclude, counting(progress, "looking for sites"))
    seen, held_out = _split(model, matches, calibration, data, seed)
    probe = None
    if held_out is not None and data is not None:
        probe, held_out = _apart(data, held_out, seed)
    test = _resolve(test, calibration is not None or seen is not None)
    gate = Gate(DEFAULT_MAX_DROP if max_drop is None else max_drop, confidence, metric, wanted)
    if test in LOSSY and held_out:
        gate.require(held_out.extent)
    if calibration is None and seen is not None:
        calibration = _observe(model, matches, seen, seed, progress)
    job = Job(model, matches, calibration, held_out, progress, probe, seed=seed)
    if objective == "latency" and matches.sites:
        job.latency, job.batch = True, batch or 1
        job.feeds = never_slower.timing_feeds(model, probe or data, batch or 1, seed) if measure else None
    fused = Fused(model, {})
    if fuse and job.feeds is not None:
        fused = fused_where_faster(model, job.feeds, progress)
        if fused.counts:
            job.model, job.original = fused.model, model
            job.matches = match(fused.model, still_excluded(matches, fused.model))
    record = Record(
        tool=f"exprune {__version__}",
        source_sha256=model.sha256,
        objective=objective,
        test=test,
        sites=[],
        batch=batch or 1,
        calibration=calibration.data_digest if calibration else None,
        top_k=wanted,
        seed=seed,
        options=_given(
            max_drop=max_drop,
            confidence=confidence,
            metric=metric_name(metric) if metric is not None else None,
            exclude=list(exclude),
            measure=None if measure else False,
            fuse=None if fuse else False,
        ),
        calibration_samples=calibration.samples if calibration else None,
        random_data=calibration is not None and calibration.random,
        fused=fused.counts,
        fused_speedup=fused.speedup,
    )
    if record.test in LOSSY and matches.sites:
        plans = lossy_plans(job, record, max_drop, gate)
    else:
        plans = lossless_plans(job, record.test)
    proto, sites = _finish(job, plans, record)
    return Optimized(proto, record, sum(site.staged for site in sites), model.spills)


def _given(**options: object) -> dict[str, object]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _split(
    model: Model, matches: Matches, calibration: Calibration | None, data: DataSet | None, seed: int
) -> tuple[DataSet | None, DataSet | None]:
    """The samples that statistics are made of, None if they are there, and those that they do not see."""
    if calibration is not None:
        from exprune_cli.calibration import check_belongs

        check_belongs(calibration, model, "the calibration", matches.sites)
        return None, data.without(calibration.sample_ids, calibration.group_ids) if data is not None else None
    if data is None or not matches.sites:
        return None, None
    least, most = _CALIBRATION_SAMPLES
    share = max(_CALIBRATION_SHARE, min(0.5, least / max(len(data), 1)))
    seen, held_out = data.split(share, seed)
    return seen.take(min(len(seen), most), seed), held_out


def _observe(
    model: Model, matches: Matches, seen: DataSet, seed: int, progress: Progress | None
) -> Calibration:
    from exprune_cli.observe import observe

    return observe(model, matches.sites, seen, seed=seed, progress=counting(progress, "observing", len(seen)))


def _apart(data: DataSet, held_out: DataSet, seed: int) -> tuple[DataSet | None, DataSet]:
    """Samples to plan and to time on, and held-out ones, disjoint: a certificate rests on the latter."""
    seen = data.without(held_out.ids)
    if len(seen):
        return seen, held_out
    if held_out.extent.units < _FEW:
        return None, held_out
    probe = held_out.take_groups(min(_PROBE_SAMPLES, len(held_out) // 8), seed)
    return probe, held_out.without(probe.ids)


def _resolve(test: str, statistics: bool) -> str:
    if test == "auto":
        return "calibrated" if statistics else "bound"
    if not statistics and test in ("threshold", "calibrated"):
        raise UsageError(f"--test {test} needs --data or --calibration")
    return test


def _finish(
    job: Job, plans: Mapping[str, SitePlan], record: Record
) -> tuple[onnx.ModelProto, list[SiteRecord]]:
    """Rewrites, checks the whole model's speed, records, verifies."""
    model, sites = job.given, job.matches.sites
    proto, records = rewrite(job.model, sites, plans, counting(job.progress, "rewriting"))
    if proto is job.model.proto:
        proto = model.proto  # what is fused around no site is the user's to fuse
    if kept(model.proto):
        # The codes are in the new model's file: a large model has room for them once.
        job.quantized.clear()
        for site_plan in plans.values():
            site_plan.parameters.clear()
    if job.feeds is not None and proto is not model.proto:
        # Timed again where sets of sites were: the best of several noisy timings looks faster than it is.
        speedup = never_slower.is_faster(model, proto, job.feeds, job.progress)
        if speedup < 1:
            reason = f"faster alone, but the whole model is slower here ({speedup:.2f}x)"
            _, records = rewrite(job.model, sites, {site.name: dense(site, reason) for site in sites})
            proto = model.proto
    records = [never_slower.with_timing(r, job.timings) for r in records] + refusal_records(
        job.matches.refusals
    )
    if proto is model.proto:
        record.fused, record.fused_speedup = {}, None
    position = {n.name or next(iter(n.output), ""): i for i, n in enumerate(job.model.proto.graph.node)}
    record.sites = sorted(records, key=lambda site: position.get(site.name, len(position)))
    if proto is not model.proto or record.top_k:
        proto = own(proto, model)
        write_record(proto, record)
        label(proto, record)
        begin(job.progress, "verifying")
        verify(model, proto)
    return proto, records
