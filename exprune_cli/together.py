"""Never slower: which of the Convs that are faster alone are staged together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from exprune_cli.model import Model
from exprune_cli.never_slower import is_faster
from exprune_cli.planning.relu import dense
from exprune_cli.rewrite import rewrite
from exprune_cli.sessions import Feeds
from exprune_cli.sites import Site, SitePlan
from exprune_cli.timing import SiteTiming

if TYPE_CHECKING:
    from exprune_cli.progress import Progress

#: By how much Convs have to win alone, in the sets that are timed in the whole model; the last one is empty.
TOGETHER = (1.0, 1.1, 1.2, 1.3, float("inf"))


def keep_together(
    model: Model,
    sites: Sequence[Site],
    plans: Mapping[str, SitePlan],
    timings: Mapping[str, SiteTiming],
    feeds: Sequence[Feeds],
    progress: Progress | None = None,
) -> dict[str, SitePlan]:
    """Of Convs that are faster alone, those with which the whole model is fastest.

    ONNX Runtime keeps neighbouring Convs in a layout of its own, so between them a staged one has to win more than
    it does alone. Sets of those that won by more and more are timed in the whole model.

    Args:
        model: The original.
        sites: Its sites.
        plans: By site name, each faster alone.
        timings: By site name.
        feeds: Inputs of the whole model, one run each.
        progress: Where progress is shown.
    """
    won = {
        site.name: timings[site.name].speedup
        for site in sites
        if site.conv and plans[site.name].staged and site.name in timings
    }
    if not won:
        return dict(plans)
    dropped = {
        site.name: dense(site, f"faster alone ({won[site.name]:.2f}x), but not in the whole model")
        for site in sites
        if site.name in won
    }
    best, best_speedup = dict(plans), 0.0
    tried: set[frozenset[str]] = set()
    for least in TOGETHER:
        left = {name: plan for name, plan in dropped.items() if won[name] < least}
        if frozenset(left) in tried:
            continue
        tried.add(frozenset(left))
        candidate = {**plans, **left}
        proto, _ = rewrite(model, sites, candidate)
        speedup = 1.0 if proto is model.proto else is_faster(model, proto, feeds, progress)
        if speedup > best_speedup:
            best, best_speedup = candidate, speedup
    return best
