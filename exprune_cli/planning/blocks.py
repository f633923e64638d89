"""Plans for Convs that are decided in blocks: one output channel x a run of output positions.

The final sum of output n is predicted from its partial sum as in :mod:`.calibrated`: with
``u = (a P + c + o) / sigma``, pruning an element loses the expected energy
``sigma^2 ((1 + u^2) Phi(u) + u phi(u))``. Near the cut that is close to
``0.3 (max(u + 1.5, 0) sigma)^2`` (0.075 against 0.075 at u = -1, 0.68 against 0.5 at 0), which a kernel
computes in four operations. A block's score is the sum of these over its positions, and its limit is one
number for the whole site: skipping any block of a site saves the same work. The limit is the largest one
at which the energy that the blocks below it really lose, on the images looked at, stays in the budget.

The groups before the check are the same for all images, or those that have the most energy in the image at hand: where
energies change from input to input, fewer of them tell as much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from exprune_cli.observe_blocks import BlockStatistics
from exprune_cli.planning import calibrated, chunks
from exprune_cli.sites import Site, SitePlan

#: How far above the prediction an element still counts, in residual deviations.
SLACK = 1.5
#: Where a check may stand, as a share of the groups.
FRACTIONS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
#: Positions of a block, and what a block of so many costs against the longest, per element: short
#: runs share fewer loads.
LENGTHS = {64: 1.0, 32: 1.03, 16: 1.15}
#: What a check costs as a share of the layer, at least: below it the exact kernel is as good.
LEAST_SAVING = 0.03


def exact_plan(site: Site) -> SitePlan:
    """The whole Conv, exact: no test, no chunks."""
    return SitePlan(
        site.name,
        staged=True,
        reason="exact: skips the taps that only see padding, lossless",
        ends=(site.groups,),
        block=0,
    )


def can_be_blocks(site: Site) -> bool:
    """Whether the block kernels may take a site: a Conv whose weights are finite.

    A tap over padding is skipped, which is only the same as a product with 0 for a finite weight.
    """
    return site.kind == "relu" and site.conv is not None and bool(np.isfinite(site.load_weight()).all())


def candidate_ends(groups: int) -> tuple[int, ...]:
    """Group counts at which the check may stand."""
    return chunks.candidate_ends(groups, FRACTIONS)


def plan_blocks(
    site: Site,
    order: np.ndarray | None,
    ends: Sequence[int],
    statistics: BlockStatistics,
    budgets: Sequence[float],
) -> list[SitePlan]:
    """Plans a Conv once per budget: the end and the block length that save most, or the exact form.

    Args:
        site: The site.
        order: ``[G]``, the order of the groups; None where each image has its own.
        ends: Candidate positions of the one check.
        statistics: Sums at those ends.
        budgets: Shares of the site's energy that may be lost, rising.
    """
    final = statistics.final + statistics.offset
    energy = np.square(np.clip(final, 0, site.max), dtype=np.float32)
    total = float(energy.sum(dtype=np.float64))
    positions = final.shape[2]
    lengths = [length for length in LENGTHS if length <= max(positions, min(LENGTHS))]
    best: list[SitePlan] = [exact_plan(site) for _ in budgets]
    saved = [LEAST_SAVING] * len(budgets)
    lost_by_length = {length: _by_block(energy, length) for length in lengths}
    for end, partial in zip(ends, statistics.partial, strict=True):
        scale, shift, above = element_scores(partial, statistics)
        for length in lengths:
            score = _by_block(above, length).ravel()
            lost = lost_by_length[length].ravel()
            rank = np.argsort(score, kind="stable")
            cumulated = np.cumsum(lost[rank], dtype=np.float64)
            # The last block of an image may be shorter, and then skipping it saves less.
            sizes = np.diff(np.append(np.arange(0, positions, length), positions))
            shares = np.cumsum(np.broadcast_to(sizes, (len(score) // len(sizes), len(sizes))).ravel()[rank])
            shares = shares / final.size
            for i, budget in enumerate(budgets):
                count = int(np.searchsorted(cumulated, budget * total, side="right"))
                share = float(shares[count - 1]) if count else 0.0
                saves = _saving(site, end, length, share, order is None)
                if count and saves > saved[i]:
                    saved[i] = saves
                    plan = checked_once(
                        site,
                        order,
                        end,
                        {"scale": scale, "shift": shift},
                        np.full(site.outputs, above_limit(score[rank[count - 1]])),
                        share,
                        float(cumulated[count - 1]) / (total + 1e-30),
                        f"blocks of {length} positions",
                    )
                    best[i] = dataclasses.replace(plan, block=length)
    return best if order is not None else _chosen_per_input(site, best)


def _chosen_per_input(site: Site, plans: Sequence[SitePlan]) -> list[SitePlan]:
    """Of plans without an order those that are not exact, with what the choice of groups needs."""
    energies = {"weight_energy": chunks.weight_energy(site.load_weight()).astype(np.float32)}
    return [
        dataclasses.replace(
            plan,
            reason=f"{plan.reason}, chosen per input",
            dynamic=True,
            parameters={**plan.parameters, **energies},
        )
        if plan.block
        else plan
        for plan in plans
    ]


def saving(site: Site, plan: SitePlan) -> float:
    """Share of the layer that a plan in blocks is expected to save, counted in blocks of the longest; 0 if exact."""
    if not plan.block or not plan.pruned:
        return 0.0
    return _saving(site, plan.ends[0], plan.block, plan.pruned[0], plan.dynamic)


def _saving(site: Site, end: int, length: int, share: float, dynamic: bool) -> float:
    computed = LENGTHS[length] * (end + (1 - share) * (site.groups - end)) / site.groups
    if dynamic and site.conv is not None:  # a multiply-accumulate for each input
        computed += math.prod(site.conv.strides) / (site.outputs * site.taps)
    return 1 - computed


def checked_once(
    site: Site,
    order: np.ndarray | None,
    end: int,
    fit: Mapping[str, np.ndarray],
    limits: np.ndarray,
    share: float,
    lost: float,
    what: str,
) -> SitePlan:
    """A plan with one check, of blocks.

    Args:
        site: The site.
        order: ``[G]``, the order of the groups; None where each image has its own.
        end: Groups before the check.
        fit: ``scale`` and ``shift`` per output, ``[N]`` each.
        limits: One per row of blocks, ``[N]`` or one per panel.
        share: Of elements that are decided.
        lost: Share of the site's energy that is lost.
        what: Names the blocks.
    """
    arrays = {**fit, "limit": limits}
    return SitePlan(
        site.name,
        staged=True,
        reason=f"checks {what} after {end} of {site.groups} groups",
        estimate="prefix",
        test="calibrated",
        order=order,
        ends=(end, site.groups),
        parameters={name: array[None].astype(np.float32) for name, array in arrays.items()},
        pruned=(share,),
        lost_energy=lost,
    )


def element_scores(
    partial: np.ndarray, statistics: BlockStatistics
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``scale`` and ``shift`` per output ``[N]``, and every element's score ``[I, N, P]``, given its partial sum."""
    fit = _fit_outputs(partial, statistics.final)
    scale, shift = fit.slope, fit.intercept + SLACK * fit.sigma
    above = partial * scale[:, None].astype(np.float32)
    above += (statistics.offset + shift[:, None]).astype(np.float32)
    np.maximum(above, 0, out=above)
    above *= above
    return scale, shift, above


def above_limit(score: float) -> np.float32:
    """The least limit that a score is below."""
    higher: np.float32 = np.nextafter(np.float32(score), np.float32(np.inf))
    return max(higher, np.finfo(np.float32).tiny)


def _fit_outputs(partial: np.ndarray, final: np.ndarray) -> calibrated.Fit:
    """The regression per output, ``[I, N, P]`` both."""
    rows = [values.transpose(0, 2, 1).reshape(-1, values.shape[1]) for values in (partial, final)]
    return calibrated.fit(*rows)


def _by_block(values: np.ndarray, length: int) -> np.ndarray:
    """Sums over runs of ``length`` positions, ``[I, N, blocks]``; the last run may be shorter."""
    starts = np.arange(0, values.shape[2], length)
    return np.add.reduceat(values, starts, axis=2)
