"""What every site gets: one plan per budget of lost quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from threadpoolctl import threadpool_limits

from exprune_cli.flops import nonzero_share
from exprune_cli.planning import chunks, low_rank
from exprune_cli.planning.argmax import plan_argmax
from exprune_cli.planning.relu import dense, output_weights, plan_relu
from exprune_cli.sites import Calibration, Site, SitePlan, SiteStatistics

#: The knob: the share of each site's energy (or of a head's rows) that may be lost. 0 is lossless.
BUDGETS = (0.0003, 0.001, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03, 0.045, 0.065, 0.1, 0.15, 0.22)


def plan(
    sites: Sequence[Site],
    calibration: Calibration | None,
    test: str,
    budgets: Sequence[float] = BUDGETS,
    progress: Callable[[int, int], None] | None = None,
    *,
    skip_zeros: bool = False,
) -> list[dict[str, SitePlan]]:
    """Plans all sites once per budget.

    Args:
        sites: From ``match``.
        calibration: From ``observe``; ``threshold`` and ``calibrated`` need it.
        test: One of :data:`exprune_cli.sites.TESTS`; sparse sites need none.
        budgets: Rising.
        progress: Called with (sites done, sites).
        skip_zeros: Whether Convs may leave out their inputs' zeros: that saves FLOPs, not time.

    Returns:
        For each budget, plans by site name.
    """
    # Products of matrices round differently on other numbers of threads, and plans must not.
    with threadpool_limits(limits=1, user_api="blas"):
        return _plan(sites, calibration, test, budgets, progress, skip_zeros)


def _plan(
    sites: Sequence[Site],
    calibration: Calibration | None,
    test: str,
    budgets: Sequence[float],
    progress: Callable[[int, int], None] | None,
    skip_zeros: bool,
) -> list[dict[str, SitePlan]]:
    result: list[dict[str, SitePlan]] = [{} for _ in budgets]
    weights = output_weights(sites) if test == "calibrated" else {}
    for done, site in enumerate(sites):
        statistics = calibration.sites.get(site.name) if calibration else None
        if site.kind == "sparse":
            plans = [plan_sparse(site, statistics)] * len(budgets)
        elif site.kind == "top_k":
            plans = [dense(site, "it is staged for latency only: no FLOPs are saved")] * len(budgets)
        elif site.groups < 2:
            plans = [dense(site, "it sums over one group: nothing to stage")] * len(budgets)
        elif calibration is not None and statistics is None:
            plans = [dense(site, "the calibration has no statistics for it")] * len(budgets)
        elif site.kind == "argmax":
            plans = plan_argmax(site, statistics, test, budgets)
        else:
            plans = plan_relu(site, statistics, test, budgets, weights.get(site.name), skip_zeros)
        if test == "calibrated":
            plans = low_rank.better(site, statistics, plans, budgets, weights.get(site.name))
        plans = _with_shares(site, plans)
        for table, site_plan in zip(result, plans, strict=True):
            table[site.name] = site_plan
        if progress:
            progress(done + 1, len(sites))
    return result


def _with_shares(site: Site, plans: Sequence[SitePlan]) -> list[SitePlan]:
    """The plans, those of statically pruned weights with the share of zeros in each chunk."""
    weight = site.load_weight()
    if nonzero_share(weight) < 1:
        for plan_ in plans:
            if plan_.staged:
                plan_.nonzero = chunks.chunk_shares(weight, plan_.order, plan_.ends)
    return list(plans)


def plan_sparse(site: Site, statistics: SiteStatistics | None) -> SitePlan:
    """A sparse consumer: lossless, worth it if its input has more zeros than the test costs."""
    zeros: float | None = None
    if statistics is not None and statistics.elements:
        zeros = float(statistics.input_zeros.sum()) / (statistics.elements * site.groups)
        if zeros <= 1 / (2 * site.outputs):
            return dense(site, f"only {zeros:.1%} of its input is zero")
    return SitePlan(
        site.name,
        staged=True,
        reason="reads only the rows of inputs that are not zero, lossless",
        test="zero",
        pruned=None if zeros is None else (zeros,),
    )
