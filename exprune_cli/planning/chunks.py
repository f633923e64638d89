"""Orders of the reduction groups, chunk sizes, and the partial sums that they give."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from exprune_cli.flops import TEST_COST, nonzero_share
from exprune_cli.sites import Site, SitePlan, SiteStatistics

#: Where a check may stand, as a share of the groups.
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)


def natural_order(groups: int) -> np.ndarray:
    """``[G]`` int64: the model's own order. The paper's tests need it: they take the first
    terms as a sample of all (exchangeability), which a sorted order breaks."""
    return np.arange(groups, dtype=np.int64)


def energy_order(
    weight: np.ndarray, statistics: SiteStatistics | None, alive: np.ndarray | None = None
) -> np.ndarray:
    """``[G]`` int64: groups by falling calibrated energy ``E[x_g^2] ||W_g||^2``.

    Of a statically pruned weight, by energy per weight that is not zero; likewise per input that is not
    zero where ``alive`` says what share of each group's is.

    Args:
        weight: ``[N, G, T]``.
        statistics: Supplies ``E[x_g^2]``; without it the weights alone decide.
        alive: ``[G]`` positive, where zeros of the input are skipped.
    """
    energy = weight_energy(weight)
    if statistics is not None and statistics.elements:
        energy = energy * (statistics.energy / statistics.elements)
    if nonzero_share(weight) < 1:
        energy = energy / np.maximum(np.count_nonzero(weight, axis=(0, 2)), 1)
    if alive is not None:
        energy = energy / alive
    return np.argsort(-energy, kind="stable").astype(np.int64)


def weight_energy(weight: np.ndarray) -> np.ndarray:
    """``[G]`` float64: each group's sum of squared weights, of ``[N, G, T]``."""
    energy: np.ndarray = np.square(weight, dtype=np.float64).sum(axis=(0, 2))
    return energy


def image_order(image: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """``[G]`` int64: groups by falling energy in one image, equal ones by index, as a dynamic prefix takes them.

    Args:
        image: ``[G, *spatial]``, finite.
        energies: ``[G]`` float32, :func:`weight_energy`.
    """
    squares = np.square(image, dtype=np.float64).reshape(len(image), -1).sum(axis=1)
    return np.argsort(-(squares * energies).astype(np.float32), kind="stable").astype(np.int64)


def cumulative_work(
    weight: np.ndarray, order: np.ndarray, ends: Sequence[int], alive: np.ndarray | None = None
) -> list[int]:
    """Multiply-accumulates per row up to each of ``ends`` and in all: weights that are not zero.

    Args:
        weight: ``[N, G, T]``.
        order: ``[G]``.
        ends: Increasing group counts, all less than ``G``.
        alive: ``[G]``: share of each group's inputs that is not zero, where zeros are skipped.
    """
    if nonzero_share(weight) == 1:
        per_group = np.full(weight.shape[1], weight.shape[0] * weight.shape[2])
    else:
        per_group = np.count_nonzero(weight, axis=(0, 2))[order]
    if alive is not None:
        per_group = per_group * alive[order]
    total = np.cumsum(per_group)
    return [max(1, int(total[end - 1])) for end in (*ends, weight.shape[1])]


def chunk_shares(weight: np.ndarray, order: np.ndarray | None, ends: Sequence[int]) -> tuple[float, ...]:
    """:attr:`SitePlan.nonzero` of a plan with this order and these ends (the last is ``G``)."""
    if nonzero_share(weight) == 1:
        return ()
    per_group = np.count_nonzero(weight, axis=(0, 2)) / (weight.shape[0] * weight.shape[2])
    per_group = per_group if order is None else per_group[order]
    bounds = [0, *(ends or [weight.shape[1]])]
    return tuple(float(per_group[a:b].mean()) for a, b in pairwise(bounds))


def candidate_ends(groups: int, fractions: Sequence[float] = FRACTIONS) -> tuple[int, ...]:
    """Group counts at which a check may stand: distinct, at least 1, less than ``groups``."""
    ends = sorted({max(1, round(groups * fraction)) for fraction in fractions})
    return tuple(end for end in ends if end < groups)


def partial_sums(
    rows: np.ndarray, weight: np.ndarray, order: np.ndarray, ends: Sequence[int]
) -> list[np.ndarray]:
    """Sums over the first ``end`` groups in ``order``, for each of ``ends`` and for all groups.

    Args:
        rows: ``[R, G, T]`` inputs.
        weight: ``[N, G, T]``.
        order: ``[G]``.
        ends: Increasing group counts, all less than ``G``.

    Returns:
        ``len(ends) + 1`` arrays ``[R, N]`` float32.
    """
    count, groups = rows.shape[0], rows.shape[1]
    sums: list[np.ndarray] = []
    total = np.zeros((count, weight.shape[0]), np.float32)
    start = 0
    for end in (*ends, groups):
        chunk = order[start:end]
        left = rows[:, chunk].reshape(count, -1)
        right = weight[:, chunk].reshape(weight.shape[0], -1)
        total = total + left @ right.T
        sums.append(total)
        start = end
    return sums


def known_offset(site: Site, statistics: SiteStatistics) -> np.ndarray:
    """Bias plus the computed offset: ``[N]``, or ``[R, N]`` for a site with one."""
    if statistics.offsets is None:
        return site.bias
    offset: np.ndarray = statistics.offsets + site.bias
    return offset


def saved_share(ends: Sequence[int], groups: int, pruned: Sequence[float], test_cost: float = 0.0) -> float:
    """Share of a site's dense FLOPs that is saved.

    Args:
        ends: Check positions in groups (without the final one).
        groups: ``G``.
        pruned: Share of outputs decided at or before each check.
        test_cost: Cost of one test as a share of one output's dense FLOPs.
    """
    saved, before = 0.0, 0.0
    for end, share in zip(ends, pruned, strict=True):
        saved += (share - before) * (1 - end / groups) - (1 - before) * test_cost
        before = share
    return saved


def plan_saving(site: Site, plan: SitePlan) -> float:
    """Share of a site's dense FLOPs that a plan is expected to save, its tests paid; 0 if unknown.

    Args:
        site: A ReLU site or a head.
        plan: Any plan of it. A quantised one computes all outputs, in integers: it saves none.
    """
    if not plan.staged or plan.pruned is None or plan.estimate == "quantized":
        return 0.0
    if plan.saved is not None:
        return plan.saved
    cost = TEST_COST[plan.test or "calibrated"](1) / (2 * site.groups * site.taps)
    return saved_share(plan.ends[:-1], site.groups, plan.pruned, cost)
