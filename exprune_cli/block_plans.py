"""``--objective latency``: plans of Conv sites in the forms that their kernels run fastest.

Pruning single outputs of a Conv costs more time than it saves, so plans for latency decide blocks; without
data, or where no block is worth it, the whole Conv runs in its exact kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from exprune_cli.model import Model
from exprune_cli.observe_blocks import BlockObserver
from exprune_cli.planning import chunks
from exprune_cli.planning.blocks import can_be_blocks, candidate_ends, exact_plan, plan_blocks
from exprune_cli.planning.panels import can_be_panels, exact_panel_plan, plan_panels
from exprune_cli.sites import Calibration, Site, SitePlan

if TYPE_CHECKING:
    from exprune_cli.data import DataSet


def with_blocks(
    model: Model,
    sites: Sequence[Site],
    steps: Sequence[Mapping[str, SitePlan]],
    budgets: Sequence[float],
    calibration: Calibration | None,
    seen: DataSet | None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, SitePlan]]:
    """Puts block plans in the place of the Convs' plans.

    Args:
        model: The original model.
        sites: All sites.
        steps: Plans of all sites, one table per budget.
        budgets: Shares of a site's energy that may be lost.
        calibration: Statistics, for the order of the groups; None for exact plans.
        seen: Samples that the plan may see; None for exact plans.
        seed: Chooses among them.
        progress: Called with (sites done, sites).
    """
    result = [dict(step) for step in steps]
    convs = [site for site in sites if can_be_blocks(site)]
    data = seen if seen is not None and len(seen) and calibration is not None else None
    observer = BlockObserver(model, convs, data, seed) if data is not None and convs else None
    for done, site in enumerate(convs):
        plans = _plans(site, observer, calibration, budgets, seed)
        for table, plan in zip(result, plans, strict=True):
            table[site.name] = plan
        if progress is not None:
            progress(done + 1, len(convs))
    return result


def exact_plans(site: Site) -> list[SitePlan]:
    """The exact forms of a Conv that its weights allow."""
    return [exact_plan(site)] + ([exact_panel_plan(site)] if can_be_panels(site) else [])


def _plans(
    site: Site,
    observer: BlockObserver | None,
    calibration: Calibration | None,
    budgets: Sequence[float],
    seed: int,
) -> list[SitePlan]:
    """A plan per budget, the other forms among its alternatives."""
    exact, *others = exact_plans(site)
    statistics = calibration.sites.get(site.name) if calibration is not None else None
    ends = candidate_ends(site.groups)
    sums = None
    if observer is not None and statistics is not None and ends:
        order = chunks.energy_order(site.load_weight(), statistics)
        sums = observer.observe(site, order, ends)
    if sums is None:
        return [dataclasses.replace(exact, alternatives=tuple(others))] * len(budgets)
    plans = plan_blocks(site, order, ends, sums, budgets)
    if not others:
        return plans
    panels = plan_panels(site, order, ends, sums, budgets, seed)
    return [
        dataclasses.replace(plan, alternatives=(panel,)) for plan, panel in zip(plans, panels, strict=True)
    ]
