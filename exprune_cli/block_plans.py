"""``--objective latency``: plans of Conv sites in the forms that their kernels run fastest.

Pruning single outputs of a Conv costs more time than it saves, so plans for latency decide blocks; without
data, or where no block is worth it, the whole Conv runs in its exact kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from exprune_cli.model import Model
from exprune_cli.observe_blocks import BlockObserver
from exprune_cli.planning import chunks
from exprune_cli.planning.blocks import can_be_blocks, candidate_ends, exact_plan, plan_blocks, saving
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
        weight = site.load_weight()
        order = chunks.energy_order(weight, statistics)
        sums = observer.observe(site, order, ends)
    if observer is None or sums is None:
        return [dataclasses.replace(exact, alternatives=tuple(others))] * len(budgets)
    forms = [plan_blocks(site, order, ends, sums, budgets)]
    if others:
        forms.append(plan_panels(site, order, ends, sums, budgets, seed))
    energies = chunks.weight_energy(weight).astype(np.float32)
    chosen = observer.observe(site, partial(chunks.image_order, energies=energies), ends)
    if chosen is not None:
        forms.append(plan_blocks(site, None, ends, chosen, budgets))
    return [_best_first(site, plans) for plans in zip(*forms, strict=True)]


def _best_first(site: Site, plans: Sequence[SitePlan]) -> SitePlan:
    """The plan in blocks that saves most, the others among its alternatives; of exact plans one of a kind."""
    in_blocks = sorted((plan for plan in plans if not plan.panel), key=lambda plan: -saving(site, plan))
    others = [plan for plan in plans if plan.panel] + [plan for plan in in_blocks[1:] if plan.block]
    return dataclasses.replace(in_blocks[0], alternatives=tuple(others))
