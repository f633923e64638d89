"""``--objective latency``: a site is staged only where it is faster.

With a measurement, each staged site is timed against its dense layer on this machine, and at
last the whole model against the original. Without one, a cost model decides, the same everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx

from exprune_cli.measure import latency
from exprune_cli.model import Model
from exprune_cli.planning.blocks import can_be_blocks, exact_plan
from exprune_cli.planning.chunks import saved_share
from exprune_cli.planning.relu import dense
from exprune_cli.sessions import Feeds
from exprune_cli.sites import Site, SitePlan
from exprune_cli.timing import EXPECTED_SHARE, MARGIN, SiteTiming, random_feeds, time_site

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.progress import Progress

#: Pruning must be this much faster than the exact kernel: a lost output should bring something.
WORTH = 1.02
#: Inputs that sites are timed on.
_FEEDS = 8


def timing_feeds(model: Model, data: DataSet | None, batch: int, seed: int) -> list[Feeds] | None:
    """Inputs to time on: samples of the data, or random ones; None if none can be made."""
    if data is None or not len(data):
        return random_feeds(model, batch, seed)
    feeds = []
    for item in data.take(min(len(data), _FEEDS * batch), seed).batches(batch):
        feeds.append(item.feeds)
    return feeds[:_FEEDS]


def keep_faster(
    model: Model,
    sites: Sequence[Site],
    plans: Mapping[str, SitePlan],
    feeds: Sequence[Feeds],
    progress: Progress | None = None,
) -> tuple[dict[str, SitePlan], dict[str, SiteTiming]]:
    """Times every staged site; those that do not win stay dense.

    Returns:
        The plans, and the timings by site name.
    """
    if progress is not None:
        progress.stage("timing sites", len(sites))
    kept, timings = dict(plans), {}
    for site in sites:
        if plans[site.name].staged:
            kept[site.name], timing = _fastest(model, site, plans[site.name], feeds)
            timings[site.name] = timing
            if timing.speedup < MARGIN:
                kept[site.name] = dense(
                    site, f"slower here: {timing.staged_us:.0f} us staged, {timing.dense_us:.0f} us dense"
                )
        if progress is not None:
            progress.advance()
    return kept, timings


def _fastest(model: Model, site: Site, plan: SitePlan, feeds: Sequence[Feeds]) -> tuple[SitePlan, SiteTiming]:
    """The plan, or the exact kernel where pruning is not faster than that, with its timing."""
    timing = time_site(model, site, plan, feeds)
    if plan.block == 0 or not can_be_blocks(site):
        return plan, timing
    exact = exact_plan(site)
    whole = time_site(model, site, exact, feeds)
    return (plan, timing) if timing.speedup > whole.speedup * WORTH else (exact, whole)


def keep_expected(sites: Sequence[Site], plans: Mapping[str, SitePlan]) -> dict[str, SitePlan]:
    """Without a measurement: keeps the sites whose expected saving makes up for skipping's cost."""
    kept = dict(plans)
    for site in sites:
        plan = plans[site.name]
        if plan.staged and expected_saving(site, plan) < EXPECTED_SHARE:
            kept[site.name] = dense(site, "not expected to be faster (nothing was measured)")
    return kept


def expected_saving(site: Site, plan: SitePlan) -> float:
    """Share of the site's FLOPs that its plan expects to save; 0 if unknown."""
    if plan.pruned is None:
        return 0.0
    if site.kind == "sparse":
        return plan.pruned[0]
    return saved_share(plan.ends[:-1], site.groups, plan.pruned)


def is_faster(model: Model, proto: onnx.ModelProto, feeds: Sequence[Feeds]) -> float:
    """Speed-up of the whole staged model on these inputs, one thread."""
    times = latency(model.proto, proto, feeds, 1, rounds=3, min_runs=20, max_seconds=10.0)
    assert times.speedup is not None
    return times.speedup


def with_timing(record, timings: Mapping[str, SiteTiming]):
    """A site's record with its timing, if it has one."""
    timing = timings.get(record.name)
    if timing is None:
        return record
    return dataclasses.replace(record, latency_dense_us=timing.dense_us, latency_us=timing.staged_us)
