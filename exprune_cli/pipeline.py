"""The whole way from a model to its staged form: match, observe, plan, certify, rewrite, verify."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx

from exprune_cli import __version__, never_slower
from exprune_cli.block_plans import exact_plans, with_blocks
from exprune_cli.errors import GateError, UsageError
from exprune_cli.labels import label
from exprune_cli.match import Matches, match
from exprune_cli.measure import Baseline
from exprune_cli.metrics import metric_name
from exprune_cli.model import Model
from exprune_cli.planning.allocation import LEVELS, OFFERS, allocate, walk_levels
from exprune_cli.planning.planner import BUDGETS, plan
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.planning.relu import dense
from exprune_cli.progress import begin, counting
from exprune_cli.record import Record, SiteRecord, write_record
from exprune_cli.rewrite import own, refusal_records, rewrite
from exprune_cli.search import Candidate, Gate, evaluate, remember, search
from exprune_cli.sensitivity import measure_sensitivity
from exprune_cli.sessions import Feeds
from exprune_cli.shapes import infer_shapes
from exprune_cli.sites import TESTS, Calibration, Site, SitePlan
from exprune_cli.timing import SiteTiming
from exprune_cli.together import keep_together
from exprune_cli.top_k import parse_top_k, with_top_k
from exprune_cli.verify import verify
from exprune_cli.weights import kept

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.metrics import MetricFunction
    from exprune_cli.progress import Progress

_log = logging.getLogger(__name__)

#: Tests that can change results, and so are verified on held-out samples.
LOSSY = ("stats", "threshold", "calibrated")
#: The drop that is allowed when none is given.
DEFAULT_MAX_DROP = 0.005
#: The step of the knob that is taken when there are no samples to verify on.
UNVERIFIED_BUDGET = 0.003
#: Of data that both calibrate and verify, a quarter calibrates, within these limits: what is
#: estimated from rows needs fewer samples than a drop does.
_CALIBRATION_SHARE = 0.25
_CALIBRATION_SAMPLES = (16, 2000)
#: Where all samples are held out, so many (or an eighth) are kept apart to plan on; of fewer than that, none.
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


@dataclass
class _Job:
    """What the steps of one run share.

    ``probe`` are samples to plan on, apart from ``held_out``; ``settled`` are the plans of sites whose form
    does not depend on the knob any more; ``quantized`` holds the lossless plans that were made so far;
    ``tried`` is what was measured on ``held_out``.
    """

    model: Model
    matches: Matches
    calibration: Calibration | None
    held_out: DataSet | None
    progress: Progress | None
    probe: DataSet | None = None
    feeds: Sequence[Feeds] | None = None
    latency: bool = False
    batch: int = 1
    settled: dict[str, SitePlan] = field(default_factory=dict)
    quantized: dict[str, SitePlan | None] = field(default_factory=dict)
    seed: int = 0
    timings: dict[str, SiteTiming] = field(default_factory=dict)
    tried: list[Candidate] = field(default_factory=list)


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
    begin(progress, "looking for sites")
    matches = match(model, exclude)
    calibration, held_out = _statistics(model, matches, calibration, data, seed, progress)
    probe = None
    if held_out is not None and data is not None:
        probe, held_out = _apart(data, held_out, seed)
    job = _Job(model, matches, calibration, held_out, progress, probe, seed=seed)
    if objective == "latency" and matches.sites:
        job.latency, job.batch = True, batch or 1
        job.feeds = never_slower.timing_feeds(model, probe or data, batch or 1, seed) if measure else None
    record = Record(
        tool=f"exprune {__version__}",
        source_sha256=model.sha256,
        objective=objective,
        test=_resolve(test, calibration),
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
        ),
        calibration_samples=calibration.samples if calibration else None,
        random_data=calibration is not None and calibration.random,
    )
    if record.test in LOSSY and matches.sites:
        plans = _lossy(
            job,
            record,
            max_drop,
            Gate(DEFAULT_MAX_DROP if max_drop is None else max_drop, confidence, metric, wanted),
        )
    else:
        plans = _faster(job, _plans(job, record.test)[0], together=True)
    proto, sites = _finish(job, plans, record)
    return Optimized(proto, record, sum(site.staged for site in sites), model.spills)


def _given(**options: object) -> dict[str, object]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _statistics(
    model: Model,
    matches: Matches,
    calibration: Calibration | None,
    data: DataSet | None,
    seed: int,
    progress: Progress | None,
) -> tuple[Calibration | None, DataSet | None]:
    """The statistics to plan with, and the samples that they did not see."""
    if calibration is not None:
        from exprune_cli.calibration import check_belongs

        check_belongs(calibration, model, "the calibration", matches.sites)
        return calibration, data.without(calibration.sample_ids) if data is not None else None
    if data is None or not matches.sites:
        return None, None
    from exprune_cli.observe import observe

    least, most = _CALIBRATION_SAMPLES
    share = max(_CALIBRATION_SHARE, min(0.5, least / max(len(data), 1)))
    seen, held_out = data.split(share, seed)
    seen = seen.take(min(len(seen), most), seed)
    return observe(
        model, matches.sites, seen, seed=seed, progress=counting(progress, "observing", len(seen))
    ), held_out


def _apart(data: DataSet, held_out: DataSet, seed: int) -> tuple[DataSet | None, DataSet]:
    """Samples to plan and to time on, and held-out ones, disjoint: a certificate rests on the latter."""
    seen = data.without(held_out.ids)
    if len(seen):
        return seen, held_out
    if len(held_out) < _FEW:
        return None, held_out
    probe = held_out.take(min(_PROBE_SAMPLES, len(held_out) // 8), seed)
    return probe, held_out.without(probe.ids)


def _resolve(test: str, calibration: Calibration | None) -> str:
    if test == "auto":
        return "bound" if calibration is None else "calibrated"
    if calibration is None and test in ("threshold", "calibrated"):
        raise UsageError(f"--test {test} needs --data or --calibration")
    return test


def _plans(job: _Job, test: str, budgets: Sequence[float] = BUDGETS) -> list[dict[str, SitePlan]]:
    sites = job.matches.sites
    show = counting(job.progress, "planning", len(sites))
    steps = plan(sites, job.calibration, test, budgets, show, skip_zeros=not job.latency)
    if job.feeds is None or test not in ("calibrated", "bound"):
        return steps
    seen, report = (
        (job.probe if test == "calibrated" else None),
        counting(job.progress, "planning blocks", len(sites)),
    )
    return with_blocks(job.model, sites, steps, budgets, job.calibration, seen, job.seed, report)


def _knob(job: _Job, test: str) -> list[dict[str, SitePlan]]:
    """Plans of all sites along the knob, from the safest; sites that cannot be faster stay dense."""
    sites, calibration = job.matches.sites, job.calibration
    # Under ``latency`` one budget goes for all sites: a price per microsecond needs a time for every offer.
    priced = test == "calibrated" and not job.latency and job.probe is not None and calibration is not None
    steps = _plans(job, test, OFFERS if priced else BUDGETS)
    # Where the boldest step does not win, or not against a lossless form, a more careful one cannot.
    boldest = _faster(job, steps[-1], together=True)
    steps = [{name: _like(p, boldest[name]) for name, p in step.items()} for step in steps]
    job.settled = {
        name: p for name, p in boldest.items() if p.estimate != steps[-1][name].estimate or not p.staged
    }
    steps = [{**step, **job.settled} for step in steps]
    if not priced:
        return steps
    assert job.probe is not None and calibration is not None
    show = job.progress.counter("measuring sensitivity") if job.progress is not None else None
    sensitivity = measure_sensitivity(job.model, sites, steps, job.probe, progress=show)
    if sensitivity is None:
        return steps
    return [{**step, **job.settled} for step in allocate(sites, calibration, steps, sensitivity)]


def _like(plan: SitePlan, chosen: SitePlan) -> SitePlan:
    """The form of a plan that timing chose for its site: in panels or not."""
    return next((p for p in (plan, *plan.alternatives) if p.panel == chosen.panel), plan)


def _lossy(job: _Job, record: Record, max_drop: float | None, gate: Gate) -> Mapping[str, SitePlan]:
    """Plans of a test that can change results, as bold as the gate allows."""
    if job.held_out is None:
        if max_drop is not None:
            raise GateError("--max-drop cannot be shown to hold without samples: give --data")
        return _faster(job, _plans(job, record.test)[BUDGETS.index(UNVERIFIED_BUDGET)], together=True)
    if not len(job.held_out):
        raise GateError(
            "every sample of --data was used by the calibration: none is left to verify the drop: "
            "give others, or calibrate with fewer (--max-samples)"
        )
    steps, sites = _knob(job, record.test), job.matches.sites
    if gate.confidence is not None:
        # What timing drops after the walk would have to be tested again on the same samples, which
        # breaks the level. So every step is timed before it is tested; timings know no losses.
        if len(steps) == len(LEVELS):
            steps = steps[walk_levels(gate.max_drop)]
        found = search(
            job.model,
            sites,
            steps,
            job.held_out,
            gate,
            job.progress,
            lambda step: _faster(job, step),
            job.tried,
        )
    else:
        found = search(job.model, sites, steps, job.held_out, gate, job.progress, trail=job.tried)
    record.tried = remember(job.tried, gate, None)
    if found is not None:
        plans = found.plans
        if gate.confidence is None:
            plans = _faster(job, found.plans)
        if any(plans[name] is not found.plans[name] for name in plans):
            found = evaluate(
                job.model, sites, plans, job.held_out, gate, Baseline(job.model.proto), job.progress
            )
            job.tried.append(found)
        if gate.holds(found.drop):
            record.quality = found.quality
            record.tried = remember(job.tried, gate, found)
            record.certificate = _certificate(gate, found.quality["metric"], found.drop.p_value, job.held_out)
            return plans
    if (max_drop is not None or gate.confidence is not None) and any(p.staged for p in steps[-1].values()):
        raise gate.refuse(len(job.held_out), [each.drop for each in job.tried])
    if any(p.staged for p in steps[-1].values()):
        _log.warning(
            "the %s test was not verified to keep the drop within %g on %d held-out samples: staged losslessly "
            "instead; allow more with --max-drop or give more samples",
            record.test,
            gate.max_drop,
            len(job.held_out),
        )
    record.test = "bound"
    return _faster(job, _plans(job, "bound")[0], together=True)


def _certificate(gate: Gate, metric: object, p_value: float, held_out: DataSet) -> dict[str, object] | None:
    if gate.confidence is None:
        return None
    return {
        "metric": metric,
        "max_drop": gate.max_drop,
        "confidence": gate.confidence,
        "holds": True,
        "samples": len(held_out),
        "p_value": p_value,
        "data_digest": held_out.digest,
    }


def _faster(job: _Job, plans: Mapping[str, SitePlan], together: bool = False) -> Mapping[str, SitePlan]:
    """Under ``latency``: only what is faster, lossless forms among it. Under ``flops``: all.

    With ``together``, and not only alone.
    """
    if not job.latency:
        return plans
    sites = [site for site in job.matches.sites if site.name not in job.settled]
    options = {site.name: _options(job, site, plans[site.name]) for site in sites}
    if job.feeds is None:
        kept = never_slower.keep_expected(sites, options, infer_shapes(job.model.proto))
    else:
        kept, timings = never_slower.keep_faster(
            job.model, sites, options, job.feeds, job.progress, job.batch
        )
        job.timings.update(timings)
        if together:
            kept = keep_together(
                job.model,
                job.matches.sites,
                {**plans, **job.settled, **kept},
                job.timings,
                job.feeds,
                job.progress,
            )
    return {**plans, **job.settled, **kept}


def _options(job: _Job, site: Site, chosen: SitePlan) -> list[SitePlan]:
    """The forms of a site to choose from by their speed.

    A lossless prefix is none of them where there is a quantised form: it decides next to nothing
    before most of the sum is known.
    """
    if site.name not in job.quantized:
        statistics = job.calibration.sites.get(site.name) if job.calibration else None
        job.quantized[site.name] = plan_quantized(site, statistics)
    quantized = job.quantized[site.name]
    if quantized is None:
        forms = (chosen, *chosen.alternatives)
        if chosen.block is None:
            return [chosen]
        exact = [p for p in exact_plans(site) if not any(p.panel == c.panel and not c.block for c in forms)]
        return [*forms, *exact]
    return [quantized] if chosen.test == "bound" or not chosen.staged else [chosen, quantized]


def _finish(
    job: _Job, plans: Mapping[str, SitePlan], record: Record
) -> tuple[onnx.ModelProto, list[SiteRecord]]:
    """Rewrites, checks the whole model's speed, records, verifies."""
    model, sites = job.model, job.matches.sites
    begin(job.progress, "rewriting")
    proto, records = rewrite(model, sites, plans)
    if kept(model.proto):
        # The codes are in the new model's file: a large model has room for them once.
        job.quantized.clear()
        for site_plan in plans.values():
            site_plan.parameters.clear()
    if job.feeds is not None and proto is not model.proto:
        speedup = never_slower.is_faster(model, proto, job.feeds, job.progress)
        if speedup < 1:
            reason = f"faster alone, but the whole model is slower here ({speedup:.2f}x)"
            proto, records = rewrite(model, sites, {site.name: dense(site, reason) for site in sites})
    records = [never_slower.with_timing(r, job.timings) for r in records] + refusal_records(
        job.matches.refusals
    )
    position = {n.name or next(iter(n.output), ""): i for i, n in enumerate(model.proto.graph.node)}
    record.sites = sorted(records, key=lambda site: position.get(site.name, len(position)))
    if proto is not model.proto or record.top_k:
        proto = own(proto, model)
        write_record(proto, record)
        label(proto, record)
        begin(job.progress, "verifying")
        verify(model, proto)
    return proto, records
