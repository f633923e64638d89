"""Plans for ReLU sites: where to check, and with which numbers, for given budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from exprune_cli.flops import TEST_COST
from exprune_cli.planning import bound, calibrated, chunks, stats, threshold, zeros
from exprune_cli.planning.prices import MOST_CHECKS, WORTH, choose, prices
from exprune_cli.sites import Site, SitePlan, SiteStatistics

#: The least weight of an output, as a share of the mean.
_LEAST_WEIGHT = 0.05


def plan_relu(
    site: Site,
    statistics: SiteStatistics | None,
    test: str,
    budgets: Sequence[float],
    weights: np.ndarray | None = None,
    skip_zeros: bool = False,
) -> list[SitePlan]:
    """Plans a ReLU site once per budget.

    Args:
        site: The site.
        statistics: Required by every test but ``bound`` and ``stats``.
        test: One of :data:`exprune_cli.sites.TESTS`.
        budgets: Shares of the site's energy ``sum relu(z)^2`` that may be lost, rising.
        weights: ``[N]`` positive: what an output's energy counts, see :func:`output_weights`; for
            ``calibrated``. None: all count the same.
        skip_zeros: Whether a Conv may leave out its input's zeros.
    """
    weight = site.load_weight()
    alive = zeros.nonzero_inputs(site, statistics) if skip_zeros else None
    if alive is not None and test == "bound":
        return [zeros.lossless(site, alive)] * len(budgets)
    if test == "bound":
        plan = _plan_bound(site, weight, statistics)
        return [plan] * len(budgets)
    if statistics is None:
        if test != "stats":
            raise ValueError(f"the {test} test needs statistics")
        return [_plan_stats_blind(site)] * len(budgets)
    if test == "calibrated":
        even = np.ones(site.outputs) if weights is None else weights / weights.mean()
        return _plan_calibrated(site, weight, statistics, budgets, even, alive)
    return _plan_one_cut(site, weight, statistics, test, budgets)


def output_weights(sites: Sequence[Site]) -> dict[str, np.ndarray]:
    """What an output's energy counts in the sites that read it: ``sum ||W[:, c]||^2``, by site name.

    Sites whose output no other site reads directly are left out. A floor keeps outputs that seem to be
    read by nobody from being free: what reads them may be no site.
    """
    readers: dict[str, list[Site]] = {}
    for site in sites:
        readers.setdefault(site.input, []).append(site)
    weights = {}
    for site in sites:
        found = [r for r in readers.get(site.output, []) if r.groups == site.outputs]
        if site.kind == "relu" and found:
            total = sum(np.square(r.load_weight(), dtype=np.float64).sum(axis=(0, 2)) for r in found)
            weights[site.name] = np.maximum(total, _LEAST_WEIGHT * total.mean() + 1e-30)
    return weights


def dense(site: Site, reason: str) -> SitePlan:
    """A plan that leaves the site as it is."""
    return SitePlan(site.name, staged=False, reason=reason)


def _output_energy(site: Site, final: np.ndarray) -> np.ndarray:
    energy: np.ndarray = np.square(np.clip(final, 0, site.max), dtype=np.float64)
    return energy


def _test_share(site: Site, test: str, width: int) -> float:
    return TEST_COST[test](width) / (2 * site.groups * site.taps)


# --- calibrated ------------------------------------------------------------------------------


def _plan_calibrated(
    site: Site,
    weight: np.ndarray,
    statistics: SiteStatistics,
    budgets: Sequence[float],
    weights: np.ndarray,
    alive: np.ndarray | None,
) -> list[SitePlan]:
    order = chunks.energy_order(weight, statistics, alive)
    ends = chunks.candidate_ends(site.groups)
    sums = chunks.partial_sums(statistics.rows, weight, order, ends)
    offset = chunks.known_offset(site, statistics)
    fits = [calibrated.fit(total, sums[-1]) for total in sums[:-1]]
    *work, whole = chunks.cumulative_work(weight, order, ends, alive)
    dense_work = chunks.cumulative_work(weight, order, ())[-1]
    test_cost = TEST_COST["calibrated"](1) * site.outputs / (2 * whole)
    losses = [_expected(f, total, offset, weights) for f, total in zip(fits, sums, strict=False)]
    energy = _output_energy(site, sums[-1] + offset) * weights
    plans: list[SitePlan] = []

    def saved(checks: Sequence[int], pruned: Sequence[float]) -> float:
        return chunks.saved_share([work[i] for i in checks], whole, pruned, test_cost)

    for choice in choose(losses, energy, work, whole, budgets, saved):
        if choice is None or (alive is not None and not plans):
            # The first offer of a site that skips zeros is the lossless one.
            plans.append(
                zeros.lossless(site, alive)
                if alive is not None
                else dense(site, "no check saves more than it costs within the budget")
            )
            continue
        at = [ends[i] for i in choice.checks]
        plan = SitePlan(
            site.name,
            staged=True,
            reason=_reason(at, site.groups),
            estimate="prefix",
            test="calibrated",
            order=order,
            ends=(*at, site.groups),
            parameters=calibrated.limits(
                [fits[i] for i in choice.checks],
                prices(choice.price, [work[i] for i in choice.checks], whole),
                weights,
            ),
            saved=choice.saved,
            pruned=choice.pruned,
            lost_energy=choice.lost,
        )
        plans.append(plan if alive is None else zeros.skipping(site, plan, alive, dense_work, whole))
    return plans


def _expected(
    fit: calibrated.Fit, partial: np.ndarray, offset: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    u = (partial * fit.slope + fit.intercept + offset) / fit.sigma
    loss: np.ndarray = weights * np.square(fit.sigma) * calibrated.expected_loss(u)
    return loss.astype(np.float32)


def _reason(ends: Sequence[int], groups: int) -> str:
    where = ", ".join(str(end) for end in ends)
    return f"checks after {where} of {groups} groups"


# --- the paper's two tests -------------------------------------------------------------------


def _plan_one_cut(
    site: Site, weight: np.ndarray, statistics: SiteStatistics, test: str, budgets: Sequence[float]
) -> list[SitePlan]:
    """``threshold`` and ``stats``: one check, one number for the whole site, natural order."""
    ends = chunks.candidate_ends(site.groups)
    order = chunks.natural_order(site.groups)
    sums = chunks.partial_sums(statistics.rows, weight, order, ends)
    offset = chunks.known_offset(site, statistics)
    energy = _output_energy(site, sums[-1] + offset)
    if test == "threshold":
        scores = threshold.means(sums, offset, site.groups, ends)
    else:
        scores = stats.z_scores(statistics.rows, weight, offset, ends)
        scores = [np.where(np.isnan(score), np.inf, score) for score in scores]
    return [_best_cut(site, test, order, ends, scores, energy, budget) for budget in budgets]


def _best_cut(
    site: Site,
    test: str,
    order: np.ndarray,
    ends: Sequence[int],
    scores: Sequence[np.ndarray],
    energy: np.ndarray,
    budget: float,
) -> SitePlan:
    total = float(energy.sum())
    best: tuple[float, int, float, float, float] | None = None
    for i, (end, score) in enumerate(zip(ends, scores, strict=True)):
        if test == "stats" and end < 2:
            continue  # one term has no variance
        cut = threshold.largest_threshold(score, energy, budget * total)
        if test == "stats":
            cut = max((z for a in stats.ALPHAS if (z := stats.quantile(a)) <= cut), default=-np.inf)
        decided = score < cut
        share = float(decided.mean())
        saved = chunks.saved_share([end], site.groups, [share], _test_share(site, test, end))
        if best is None or saved > best[0]:
            best = (saved, i, cut, share, float(energy[decided].sum()) / (total + 1e-30))
    if best is None or best[0] <= 0:
        return dense(site, "the test costs more than it saves within the budget")
    _, i, cut, share, lost = best
    plan = SitePlan(
        site.name,
        staged=True,
        reason=_reason([ends[i]], site.groups),
        estimate="prefix",
        test=test,
        order=order,
        ends=(ends[i], site.groups),
        pruned=(share,),
        lost_energy=lost,
    )
    if test == "stats":
        plan.z = cut
    else:
        plan.parameters = threshold.threshold_parameters(site.outputs, site.groups, [ends[i]], cut)
    return plan


def _plan_stats_blind(site: Site) -> SitePlan:
    """The z-test needs no data: the paper's check, or half of a layer with fewer groups."""
    ends = stats.paper_ends(site.groups) or (site.groups // 2,)
    if ends[0] < 2:
        return dense(site, "too few groups for a sample variance")
    return SitePlan(
        site.name,
        staged=True,
        reason=_reason(ends, site.groups) + f", alpha = {stats.DEFAULT_ALPHA}",
        estimate="prefix",
        test="stats",
        order=chunks.natural_order(site.groups),
        ends=(*ends, site.groups),
        z=stats.quantile(stats.DEFAULT_ALPHA),
    )


# --- lossless --------------------------------------------------------------------------------


def _plan_bound(site: Site, weight: np.ndarray, statistics: SiteStatistics | None) -> SitePlan:
    order = chunks.energy_order(weight, statistics)
    every = chunks.candidate_ends(site.groups)
    ends: tuple[int, ...] = tuple(end for end in every if end >= site.groups // 4)[-3:]
    pruned: tuple[float, ...] | None = None
    if statistics is not None:
        ends, pruned = _choose_bound(site, weight, statistics, order, every)
        if not ends:
            return dense(site, "the bound decides fewer outputs than its test costs")
    parameters = bound.bound_parameters(weight, order, ends, one_sided=site.nonnegative)
    return SitePlan(
        site.name,
        staged=True,
        reason=_reason(ends, site.groups) + ", lossless",
        estimate="prefix",
        test="bound",
        order=order,
        ends=(*ends, site.groups),
        parameters=parameters,
        pruned=pruned,
    )


def _choose_bound(
    site: Site, weight: np.ndarray, statistics: SiteStatistics, order: np.ndarray, every: Sequence[int]
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    rows = statistics.rows
    sums = chunks.partial_sums(rows, weight, order, every)
    offset = chunks.known_offset(site, statistics)
    parameters = bound.bound_parameters(weight, order, every, one_sided=site.nonnegative)
    decided = bound.bound_pruned(rows, sums, offset, order, every, parameters)
    shares = [float(mask.mean()) for mask in decided]
    cost = _test_share(site, "bound", 1)
    norms = 1 / site.outputs  # the norms of the tails: 2 G T per row
    picked = _greedy(range(len(every)), lambda at: _saved(every, shares, at, site.groups, cost))
    if not picked or _saved(every, shares, picked, site.groups, cost) <= norms:
        return (), None
    return tuple(every[i] for i in picked), tuple(shares[i] for i in picked)


def _saved(
    ends: Sequence[int], shares: Sequence[float], at: Sequence[int], groups: int, cost: float
) -> float:
    return chunks.saved_share([ends[i] for i in at], groups, [shares[i] for i in at], cost)


def _greedy(options: range, value: Callable[[Sequence[int]], float]) -> tuple[int, ...]:
    picked: tuple[int, ...] = ()
    best = 0.0
    for _ in range(MOST_CHECKS):
        trials = [tuple(sorted((*picked, i))) for i in options if i not in picked]
        if not trials:
            break
        top = max(trials, key=value)
        if value(top) <= best + WORTH:
            break
        picked, best = top, value(top)
    return picked
