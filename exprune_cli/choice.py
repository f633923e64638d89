"""Which plan every site gets: by its test, by its speed, and by what the model may lose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from exprune_cli import never_slower
from exprune_cli.block_plans import exact_plans, with_blocks
from exprune_cli.errors import GateError
from exprune_cli.match import Matches
from exprune_cli.measure import Baseline
from exprune_cli.metrics import metric_for
from exprune_cli.model import Model
from exprune_cli.planning.allocation import OFFERS, Knob, allocate
from exprune_cli.planning.planner import BUDGETS, plan
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.progress import counting
from exprune_cli.record import Record
from exprune_cli.search import Candidate, Gate, evaluate, remember, search
from exprune_cli.sensitivity import measure_sensitivity
from exprune_cli.sessions import Feeds
from exprune_cli.shapes import infer_shapes
from exprune_cli.sites import Calibration, Site, SitePlan
from exprune_cli.timing import SiteTiming
from exprune_cli.together import keep_together
from exprune_cli.whole_model import Setting, keep_even, keep_in_whole

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.progress import Progress

_log = logging.getLogger(__name__)

#: The step of the knob that is taken when there are no samples to verify on.
UNVERIFIED_BUDGET = 0.003


@dataclass
class Job:
    """What the steps of one run share.

    ``probe`` are samples to plan on, apart from ``held_out``; ``settled`` are the plans of sites whose form
    does not depend on the knob any more; ``quantized`` holds the lossless plans that were made so far;
    ``tried`` is what was measured on ``held_out``; ``original`` is the user's model, where ``model`` is a fused form.
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
    original: Model | None = None

    @property
    def given(self) -> Model:
        """The user's model: what results and times are compared with."""
        return self.original or self.model


def lossless_plans(job: Job, test: str = "bound") -> Mapping[str, SitePlan]:
    """Plans that need no verifying, of a test that changes no result."""
    return faster(job, _along(job, test)[0], together=True)


def lossy_plans(job: Job, record: Record, max_drop: float | None, gate: Gate) -> Mapping[str, SitePlan]:
    """Plans of a test that can change results, as bold as the gate allows.

    Args:
        job: The run.
        record: Gets what was measured and, where lossless plans stand in, their test in the other's place.
        max_drop: The drop that was asked for; None if none was.
        gate: What has to hold.

    Raises:
        GateError: The drop that was asked for is not kept, and lossless plans cannot stand in: under ``flops``, for a
            certificate, or where none is faster.
    """
    if job.held_out is None:
        if max_drop is not None:
            raise GateError("--max-drop cannot be shown to hold without samples: give --data")
        return faster(job, _along(job, record.test)[BUDGETS.index(UNVERIFIED_BUDGET)], together=True)
    if not len(job.held_out):
        raise GateError(
            "every sample of --data was used by the calibration: none is left to verify the drop: "
            "give others, or calibrate with fewer (--max-samples)"
        )
    steps, sites = _knob(job, record.test, gate), job.matches.sites
    baseline = Baseline(job.given.proto)
    prepare: Callable[[Mapping[str, SitePlan]], Mapping[str, SitePlan]] = lambda step: step
    if gate.confidence is not None:
        # What timing drops after the walk would have to be tested again on the same samples, which
        # breaks the level. So every step is timed before it is tested; timings know no losses.
        if isinstance(steps, Knob):
            steps = steps.walk(gate.max_drop)
        prepare = partial(faster, job)
    found = search(job.model, sites, steps, job.held_out, gate, job.progress, prepare, job.tried, baseline)
    record.tried = remember(job.tried, gate, None)
    if found is not None:
        plans = found.plans
        if gate.confidence is None:
            plans = faster(job, found.plans)
        if any(plans[name] is not found.plans[name] for name in plans):
            found = evaluate(job.model, sites, plans, job.held_out, gate, baseline, job.progress)
            job.tried.append(found)
        if gate.holds(found.drop):
            record.quality = found.quality
            record.tried = remember(job.tried, gate, found)
            record.certificate = _certificate(gate, found.quality["metric"], found.drop.p_value, job.held_out)
            return plans
    lossy = any(p.staged for p in steps[-1].values())
    asked = max_drop is not None or gate.confidence is not None
    refusal = gate.refuse(job.held_out.extent, [each.drop for each in job.tried]) if lossy and asked else None
    # Lossless staging can save time and keeps any drop, but there is nothing to certify; FLOPs it costs.
    if refusal is not None and (gate.confidence is not None or not job.latency):
        raise refusal
    plans = lossless_plans(job)
    if refusal is not None and not any(p.staged for p in plans.values()):
        raise refusal
    if lossy:
        extent = job.held_out.extent
        _log.warning(
            "the %s test was not verified to keep the drop within %g on %d held-out %ss: staged losslessly "
            "instead; allow more with --max-drop or give more %ss",
            record.test,
            gate.max_drop,
            extent.units,
            extent.unit,
            extent.unit,
        )
    record.test = "bound"
    return plans


def _certificate(gate: Gate, metric: object, p_value: float, held_out: DataSet) -> dict[str, object] | None:
    if gate.confidence is None:
        return None
    certificate = {
        "metric": metric,
        "max_drop": gate.max_drop,
        "confidence": gate.confidence,
        "holds": True,
        "samples": len(held_out),
        "p_value": p_value,
        "data_digest": held_out.digest,
    }
    groups = held_out.extent.groups
    return certificate if groups is None else certificate | {"groups": groups}


def _along(job: Job, test: str, budgets: Sequence[float] = BUDGETS) -> list[dict[str, SitePlan]]:
    """Plans of all sites for each budget, as the test makes them."""
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


def _knob(job: Job, test: str, gate: Gate) -> Sequence[dict[str, SitePlan]]:
    """Plans of all sites along the knob, from the safest; sites that cannot be faster stay dense."""
    sites, calibration = job.matches.sites, job.calibration
    # Under ``latency`` one budget goes for all sites: a price per microsecond needs a time for every offer.
    priced = test == "calibrated" and not job.latency and job.probe is not None and calibration is not None
    steps = _along(job, test, OFFERS if priced else BUDGETS)
    # Where the boldest step does not win, or not against a lossless form, a more careful one cannot.
    boldest = faster(job, steps[-1], together=True)
    steps = [{name: like(p, boldest[name]) for name, p in step.items()} for step in steps]
    job.settled = {
        name: p for name, p in boldest.items() if p.estimate != steps[-1][name].estimate or not p.staged
    }
    steps = [{**step, **job.settled} for step in steps]
    if not priced:
        return steps
    assert job.probe is not None and calibration is not None
    show = job.progress.counter("measuring sensitivity") if job.progress is not None else None
    labelled = metric_for(gate.metric, job.probe.has_labels).name == "accuracy"
    sensitivity = measure_sensitivity(job.model, sites, steps, job.probe, progress=show, labelled=labelled)
    if sensitivity is None:
        return steps
    return allocate(sites, calibration, steps, sensitivity)


def like(plan: SitePlan, chosen: SitePlan) -> SitePlan:
    """The form of a plan that timing chose for its site: in panels or not, with groups chosen per input or not."""
    forms = [p for p in (plan, *plan.alternatives) if p.panel == chosen.panel]
    return next((p for p in forms if p.dynamic == chosen.dynamic), forms[0] if forms else plan)


def faster(job: Job, plans: Mapping[str, SitePlan], together: bool = False) -> Mapping[str, SitePlan]:
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
            setting = Setting(job.model, job.given, job.feeds, job.seed, job.batch)
            kept = keep_in_whole(
                setting,
                job.matches.sites,
                {**plans, **job.settled, **kept},
                options,
                job.timings,
                job.progress,
            )
            kept = keep_even(setting, job.matches.sites, {**plans, **job.settled, **kept}, job.progress)
    return {**plans, **job.settled, **kept}


def _options(job: Job, site: Site, chosen: SitePlan) -> list[SitePlan]:
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
