"""Plans for ArgMax heads: where to check, and with which margins, for given budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exprune_cli.flops import TEST_COST
from exprune_cli.planning import bound, chunks, head, stats
from exprune_cli.planning.relu import dense
from exprune_cli.sites import Site, SitePlan, SiteStatistics

#: Rows x classes that are looked at when a head is planned.
_ELEMENTS = 2**23


def plan_argmax(
    site: Site, statistics: SiteStatistics | None, test: str, budgets: Sequence[float]
) -> list[SitePlan]:
    """Plans a head once per budget: one check.

    Args:
        site: The site.
        statistics: Required by ``threshold`` and ``calibrated``.
        test: One of :data:`exprune_cli.sites.TESTS`.
        budgets: Shares of rows whose index may change, rising.
    """
    weight = site.load_weight()
    if statistics is None:
        return [_plan_blind(site, weight, test)] * len(budgets)
    limit = max(64, _ELEMENTS // site.outputs)
    rows = statistics.rows[:limit]
    if test == "bound":
        return [_plan_bound(site, weight, rows, statistics)] * len(budgets)
    if test == "stats":
        return _plan_stats(site, weight, rows, budgets)
    return _plan_margin(site, weight, rows, statistics, test, budgets)


def _share(kept: np.ndarray) -> float:
    """Share of classes decided, where a row with one class left is decided whole."""
    alive = kept.sum(axis=1)
    return 1 - float(np.where(alive == 1, 0, alive).mean()) / int(kept.shape[1])


def _saved(site: Site, test: str, end: int, share: float) -> float:
    cost = TEST_COST[test](end) + (2 * end if test == "stats" else 0)
    return chunks.saved_share([end], site.groups, [share], cost / (2 * site.groups))


def _plan(
    site: Site, test: str, order: np.ndarray, end: int, share: float | None, note: str = ""
) -> SitePlan:
    return SitePlan(
        site.name,
        staged=True,
        reason=f"checks after {end} of {site.groups} groups{note}",
        estimate="prefix",
        test=test,
        order=order,
        ends=(end, site.groups),
        pruned=None if share is None else (share,),
    )


def _plan_margin(
    site: Site,
    weight: np.ndarray,
    rows: np.ndarray,
    statistics: SiteStatistics,
    test: str,
    budgets: Sequence[float],
) -> list[SitePlan]:
    """``threshold`` (natural order, one margin) and ``calibrated`` (energy order, one per class)."""
    calibrated = test == "calibrated"
    order = chunks.energy_order(weight, statistics) if calibrated else chunks.natural_order(site.groups)
    ends = chunks.candidate_ends(site.groups)
    sums = chunks.partial_sums(rows, weight, order, ends)
    final = sums[-1] + site.bias
    best: list[tuple[float, SitePlan] | None] = [None] * len(budgets)
    for end, total in zip(ends, sums, strict=False):
        if calibrated:
            form = head.calibrated_form(total, sums[-1], site.bias)
        else:
            form = head.threshold_form(site.bias, site.groups, end)
        needed = np.sort(head.needed_width(total, final, form))
        for i, budget in enumerate(budgets):
            width, lost = head.width_for(needed, budget)
            share = _share(head.candidates(total[: head.SHARE_ROWS], form, width))
            saved = _saved(site, test, end, share)
            held = best[i]
            if saved > 0 and (held is None or saved > held[0]):
                plan = _plan(site, test, order, end, share)
                scale, shift, unit = form
                # One rounding step wider, so that the row that set the width keeps its winner.
                margin = unit * np.nextafter(np.float32(width * (1 + 1e-6)), np.float32(np.inf))
                plan.parameters = {
                    name: values[None].astype(np.float32)
                    for name, values in (("scale", scale), ("shift", shift), ("margin", margin))
                }
                plan.lost_energy = lost
                best[i] = (saved, plan)
    return [held[1] if held else dense(site, "too few classes are decided early") for held in best]


def _plan_stats(site: Site, weight: np.ndarray, rows: np.ndarray, budgets: Sequence[float]) -> list[SitePlan]:
    order = chunks.natural_order(site.groups)
    final = rows[:, :, 0] @ weight[:, :, 0].T + site.bias
    winner = final.argmax(axis=1)
    at = np.arange(len(rows))
    best: list[tuple[float, SitePlan] | None] = [None] * len(budgets)
    for end in chunks.candidate_ends(site.groups):
        if end < 2:
            continue
        scores, _ = head.z_scores(rows, weight, site.bias, end)
        own = np.sort(scores[at, winner])
        for i, budget in enumerate(budgets):
            lowest = own[min(len(own) - 1, int(budget * len(own)))]
            z = max((q for a in stats.ALPHAS if (q := stats.quantile(a)) <= lowest), default=None)
            if z is None:
                continue
            share = _share(~(scores < z))
            saved = _saved(site, "stats", end, share)
            held = best[i]
            if saved > 0 and (held is None or saved > held[0]):
                plan = _plan(site, "stats", order, end, share)
                plan.z, plan.lost_energy = z, float(np.mean(own < z))
                best[i] = (saved, plan)
    return [held[1] if held else dense(site, "the test costs more than it saves") for held in best]


def _plan_bound(site: Site, weight: np.ndarray, rows: np.ndarray, statistics: SiteStatistics) -> SitePlan:
    order = chunks.energy_order(weight, statistics)
    ends = chunks.candidate_ends(site.groups)
    sums = chunks.partial_sums(rows, weight, order, ends)
    squares = np.square(rows[:, :, 0], dtype=np.float64)[:, order]
    tails = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    parameters = bound.bound_parameters(weight, order, ends, one_sided=False)
    best: tuple[float, int, float] | None = None
    for i, end in enumerate(ends):
        reach = parameters["radius"][i] * np.sqrt(tails[:, end])[:, None]
        score = sums[i] + site.bias
        lead = (score - reach).max(axis=1, keepdims=True)
        share = _share(~(score + reach < lead))
        saved = _saved(site, "bound", end, share) - 1 / site.outputs
        if best is None or saved > best[0]:
            best = (saved, i, share)
    if best is None or best[0] <= 0:
        return dense(site, "the bound decides fewer classes than its test costs")
    _, i, share = best
    plan = _plan(site, "bound", order, ends[i], share, ", lossless")
    plan.parameters = {name: values[i : i + 1] for name, values in parameters.items()}
    return plan


def _plan_blind(site: Site, weight: np.ndarray, test: str) -> SitePlan:
    """Without data: the bound at half of the groups, or the paper's check."""
    if test == "bound":
        order = chunks.energy_order(weight, None)
        end = max(1, site.groups // 2)
        plan = _plan(site, test, order, end, None, ", lossless")
        plan.parameters = bound.bound_parameters(weight, order, [end], one_sided=False)
        return plan
    if test != "stats":
        raise ValueError(f"the {test} test needs statistics")
    end = (stats.paper_ends(site.groups) or (site.groups // 2,))[0]
    if end < 2:
        return dense(site, "too few groups for a sample variance")
    plan = _plan(site, test, chunks.natural_order(site.groups), end, None, f", alpha = {stats.DEFAULT_ALPHA}")
    plan.z = stats.quantile(stats.DEFAULT_ALPHA)
    return plan
