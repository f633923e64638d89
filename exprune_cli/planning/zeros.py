"""Zeros in a Conv's input: a site that reads a ReLU's output need not multiply them.

That is exact, and goes with any test: what a chunk costs is then its inputs that are not zero. It saves
FLOPs; on processors with vectors a dense Conv is usually as fast, so that plans for latency leave it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from exprune_cli.flops import TEST_COST
from exprune_cli.planning import chunks
from exprune_cli.sites import Site, SitePlan, SiteStatistics


def nonzero_inputs(site: Site, statistics: SiteStatistics | None) -> np.ndarray | None:
    """``[G]``: the share of each group's inputs that is not zero; None where skipping zeros does not pay.

    Looking for zeros costs one FLOP per input and output position.
    """
    if site.conv is None or statistics is None or not statistics.elements or site.groups < 2:
        return None
    if not np.isfinite(site.load_weight()).all():  # a zero times infinity is a NaN
        return None
    alive = np.asarray(1 - statistics.input_zeros / statistics.elements, np.float64)
    test = TEST_COST["calibrated"](1) / (2 * site.groups * site.taps)
    if 1 - alive.mean() <= 1 / (2 * site.outputs) + test:
        return None
    # A group that was zero on all samples may not be on others: it costs a little, for its place in the order.
    return np.maximum(alive, 1 / (statistics.elements + 1))


def chunk_alive(alive: np.ndarray, order: np.ndarray, ends: Sequence[int]) -> tuple[float, ...]:
    """The share of each chunk's inputs that is not zero; ``ends`` includes the last."""
    return tuple(float(alive[order[a:b]].mean()) for a, b in pairwise([0, *ends]))


def skipping(site: Site, plan: SitePlan, alive: np.ndarray, dense_work: float, work: float) -> SitePlan:
    """A prefix plan that leaves the zeros out.

    Args:
        site: The site.
        plan: Its plan; ``saved`` is the share of ``work`` that its checks save.
        alive: From :func:`nonzero_inputs`.
        dense_work: Multiply-accumulates of a row, all inputs taken.
        work: Those whose input is not zero, as expected.
    """
    assert plan.order is not None and plan.saved is not None
    spent = (1 - plan.saved) * work / dense_work + site.groups * site.taps / (2 * dense_work)
    return dataclasses.replace(
        plan,
        reason=f"{plan.reason}, zeros of the input skipped",
        input_nonzero=chunk_alive(alive, plan.order, plan.ends),
        saved=1 - spent,
    )


def lossless(site: Site, alive: np.ndarray) -> SitePlan:
    """The plan that only leaves zeros out: one check that decides nothing."""
    weight = site.load_weight()
    order = chunks.natural_order(site.groups)
    ends = (site.groups // 2, site.groups)
    work, dense_work = (
        chunks.cumulative_work(weight, order, ends[:-1], share)[-1] for share in (alive, None)
    )
    shape = (1, site.outputs)
    plan = SitePlan(
        site.name,
        staged=True,
        reason="lossless",
        test="zero",
        order=order,
        ends=ends,
        parameters={"scale": np.ones(shape, np.float32), "limit": np.full(shape, -np.inf, np.float32)},
        pruned=(0.0,),
        saved=-TEST_COST["calibrated"](1) * site.outputs / (2 * work),
    )
    return skipping(site, plan, alive, dense_work, work)
