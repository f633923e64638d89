"""The search along the knob: how boldly may the model be staged before the drop is too large?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.certify import VERIFY_LEVEL, Drop, boldest, furthest, judge, samples_needed, score_unit
from exprune_cli.data.groups import means_by_group
from exprune_cli.errors import ExpruneError, GateError, UsageError
from exprune_cli.extent import Extent
from exprune_cli.measure import Baseline, measure
from exprune_cli.model import Model
from exprune_cli.record import MOST_TRIED, Record, SiteRecord, write_record
from exprune_cli.rewrite import own, rewrite
from exprune_cli.sites import Site, SitePlan

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.metrics import MetricFunction
    from exprune_cli.progress import Progress

#: Samples that a search without a certificate looks at, at most.
SEARCH_SAMPLES = 3000
#: Metrics whose scores are in [0, 1]: what the p-value needs.
_BOUNDED = ("accuracy", "agreement")
#: Drops that are proposed where a smaller one cannot be certified.
_DROPS = tuple(step * 10.0**power for power in (-4, -3, -2) for step in (1, 2, 5)) + (0.1, 0.2, 0.5)

Plans = Mapping[str, SitePlan]


@dataclass(frozen=True)
class Gate:
    """What has to hold.

    Attributes:
        max_drop: Largest allowed drop of the metric.
        confidence: Level of the certificate; None to verify only.
        metric: See :mod:`exprune_cli.metrics`.
        top_k: Outputs of the model that are top-K values and indices.
    """

    max_drop: float
    confidence: float | None
    metric: str | MetricFunction | None
    top_k: Mapping[str, int] = field(default_factory=dict)

    def holds(self, drop: Drop) -> bool:
        """Whether a measured drop passes."""
        if self.confidence is not None:
            return drop.p_value <= 1 - self.confidence
        return drop.upper <= self.max_drop

    def require(self, samples: Extent) -> None:
        """Refuses at once what so few samples cannot certify, were none of them to change.

        Raises:
            GateError: With the number that is needed.
        """
        if self.confidence is not None and samples.units < samples_needed(self.max_drop, self.confidence):
            raise self.refuse(samples)

    def refuse(self, samples: Extent, drops: Sequence[Drop] = ()) -> GateError:
        """The error to raise when nothing passes.

        Args:
            samples: How many were held out.
            drops: What was measured on them.
        """
        limits = [drop.upper for drop in drops if math.isfinite(drop.upper)]
        least = min(limits, default=math.nan)
        drop = self._next_drop(samples.units, least)
        remedy = (
            {"max_drop": drop}
            if drop
            else {"test": "bound", "max_drop": None, "confidence": None, "metric": None}
        )
        way_out = f"allow a larger --max-drop or give more {samples.unit}s"
        if drop and least > self.max_drop:
            way_out = f"the safest plan that was tried reaches {least:.2g}: try --max-drop {drop:g} or give more {samples.unit}s"
        if self.confidence is None:
            return GateError(
                f"no staging keeps the drop within {self.max_drop:g} on {samples.units} held-out {samples.unit}s "
                f"(upper limit at {VERIFY_LEVEL:.0%}): {way_out}",
                remedy,
            )
        needed = samples_needed(self.max_drop, self.confidence)
        if samples.units < needed:
            return GateError(
                f"a drop of at most {self.max_drop:g} cannot be certified at {self.confidence:g} from {samples.units} "
                f"held-out {samples.unit}s, at least {needed} are needed: give about {-(-needed * 4 // 3)} in --data, "
                "a quarter of which calibrates",
                remedy,
            )
        return GateError(
            f"a drop of at most {self.max_drop:g} cannot be certified at {self.confidence:g} on {samples.units} "
            f"held-out {samples.unit}s: {way_out}",
            remedy,
        )

    def _next_drop(self, units: int, least: float) -> float | None:
        """A drop that may pass: one that the safest plan has reached and that so many draws can certify."""
        found = [_rounded_up(least)] if least > self.max_drop else []
        if self.confidence is not None or (not found and math.isfinite(least)):
            larger = [drop for drop in _DROPS if drop > self.max_drop]
            level = self.confidence
            possible = [d for d in larger if level is None or samples_needed(d, level) <= units]
            if not possible:
                return None
            found.append(possible[0])
        return max(found, default=None)


def _rounded_up(value: float) -> float:
    """A positive number, to two digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.2g}")


@dataclass(frozen=True)
class Candidate:
    """A staged form of the model, measured on held-out samples.

    Attributes:
        plans: The plans it was made from.
        proto: The staged model.
        records: Of its sites.
        flops: Spent on all samples.
        drop: Its drop.
        quality: For the record.
        losses: ``[samples]`` its losses, paired with the original.
        flops_dense: FLOPs of the original on these samples; None if unknown.
    """

    plans: Plans
    proto: onnx.ModelProto
    records: list[SiteRecord]
    flops: float
    drop: Drop
    quality: dict[str, object]
    losses: np.ndarray
    flops_dense: float | None = None


def remember(tried: Sequence[Candidate], gate: Gate, chosen: Candidate | None) -> list[dict[str, object]]:
    """What a file keeps of the candidates: the points of its trade-off, as plain data.

    Args:
        tried: In the order that they were tried.
        gate: What had to hold.
        chosen: The one in the file; None if none is.

    Returns:
        From the least to the most saving, see :class:`exprune_cli.report_data.Alternative`.
    """
    points: list[dict[str, object]] = []
    for candidate in sorted(tried, key=lambda each: -each.flops)[-MOST_TRIED:]:
        known = candidate.flops_dense and np.isfinite(candidate.flops)
        points.append(
            {
                "flops_reduction": 1 - candidate.flops / (candidate.flops_dense or 1) if known else None,
                "drop": candidate.drop.mean,
                "upper": candidate.drop.upper if np.isfinite(candidate.drop.upper) else None,
                "p_value": candidate.drop.p_value if gate.confidence is not None else None,
                "passed": gate.holds(candidate.drop),
                "chosen": candidate is chosen,
                "staged": sum(site.staged for site in candidate.records),
            }
        )
    return points


def search(
    model: Model,
    sites: Sequence[Site],
    plans: Sequence[Plans],
    held_out: DataSet,
    gate: Gate,
    progress: Progress | None = None,
    prepare: Callable[[Plans], Plans] = lambda plans: plans,
    trail: list[Candidate] | None = None,
    baseline: Baseline | None = None,
) -> Candidate | None:
    """Goes as far along the knob, end to end on held-out samples, as the gate holds.

    For a certificate, step by step from the safest on; to verify only, by bisection.

    Args:
        model: The original.
        sites: Its sites.
        plans: Plans of all sites, from the safest to the boldest step of the knob.
        held_out: Samples that the plans have not seen.
        gate: What has to hold.
        progress: Where progress is shown.
        prepare: Changes the plans of a step before it is measured, never because of what was measured
            on ``held_out``: what is tested is then what is kept.
        trail: Gets every candidate that was tried.
        baseline: What results are compared with, if not ``model``.

    Returns:
        The passing candidate that spends the fewest FLOPs, None if none passes.
    """
    count = len(held_out) if gate.confidence is not None else min(len(held_out), SEARCH_SAMPLES)
    samples = held_out.take(count, 0)
    reference = baseline or Baseline(model.proto)
    tried: dict[int, Candidate] = {}

    def holds(step: int) -> bool:
        chosen = prepare(plans[step])
        if not any(plan.staged for plan in chosen.values()):
            return True
        stage = f"trying plans, round {len(tried) + 1}"
        tried[step] = candidate = evaluate(model, sites, chosen, samples, gate, reference, progress, stage)
        if trail is not None:
            trail.append(candidate)
        return gate.holds(candidate.drop)

    walk = boldest if gate.confidence is None else furthest
    last = walk(range(len(plans)), holds)
    passed = [candidate for step, candidate in tried.items() if last is not None and step <= last]
    return min(passed, key=lambda candidate: candidate.flops, default=None)


def evaluate(
    model: Model,
    sites: Sequence[Site],
    plans: Plans,
    samples: DataSet,
    gate: Gate,
    baseline: Baseline,
    progress: Progress | None = None,
    stage: str = "measuring",
    threads: int = 0,
) -> Candidate:
    """Stages the model by these plans and measures it, with ``threads`` inside an operator (0: the default).

    Raises:
        ExpruneError: No metric fits the model's outputs.
        UsageError: A certificate is asked for a metric without bounds.
    """
    proto, records = rewrite(model, sites, plans)
    proto = own(proto, model)
    write_record(proto, Record("exprune", model.sha256, "flops", "", records, top_k=dict(gate.top_k)))
    result = measure(
        proto,
        samples,
        baseline=baseline,
        metric=gate.metric,
        progress=progress,
        stage=stage,
        threads=threads,
    )
    before, after = result.scores_baseline, result.scores_optimized
    if before is None or after is None:
        raise ExpruneError("no metric fits the model's outputs: give one with --metric")
    if gate.confidence is not None and result.metric not in _BOUNDED:
        raise UsageError(
            f"--confidence needs a metric between 0 and 1 ({' or '.join(_BOUNDED)}), not {result.metric}"
        )
    bounded = result.metric in _BOUNDED
    unit = score_unit(np.concatenate([before, after])) if bounded else 1.0
    losses = before - after
    before, after = (means_by_group(scores, result.groups) for scores in (before, after))
    # The smallest change of a group is that of one of its samples.
    drop = judge(before - after, gate.max_drop, bounded=bounded, unit=unit * len(before) / len(losses))
    quality: dict[str, object] = {
        "metric": result.metric,
        "baseline": float(np.mean(before)),
        "optimized": float(np.mean(after)),
        "drop": drop.mean,
        "agreement": result.agreement,
        "samples": len(losses),
    }
    if result.groups is not None:
        quality["groups"] = len(before)
    flops = np.inf if result.flops is None else result.flops
    return Candidate(plans, proto, records, flops, drop, quality, losses, result.flops_dense)
