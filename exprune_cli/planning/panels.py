"""Plans for Convs that are decided in panels: 16 output channels x one output position.

The score of an element and the one limit for the site are those of :mod:`.blocks`; a panel's score is the sum over
its channels. A panel can only be skipped where all its channels are low at once, so channels that tend to be low at
the same positions share one: they are collected greedily, by what the next channel adds to the panel's score where
that is still low (a channel's own place does not matter, the kernel writes each where it belongs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from exprune_cli.observe_blocks import BlockStatistics
from exprune_cli.planning.blocks import LEAST_SAVING, above_limit, can_be_blocks, checked_once, element_scores
from exprune_cli.sites import PANEL, Site, SitePlan

#: Work on a position of a list against one in a rectangle.
_LIST_COST = 1.1
#: Positions that channels are collected by, and the share of panels that may count as low.
_POSITIONS, _LOW = 1536, 0.3


def exact_panel_plan(site: Site) -> SitePlan:
    """The whole Conv, exact, in panels: no test, no chunks."""
    return SitePlan(
        site.name,
        staged=True,
        reason="exact: skips the taps that see padding, lossless",
        ends=(site.groups,),
        block=0,
        panel=True,
    )


def can_be_panels(site: Site) -> bool:
    """Whether the panel kernels may take a site: whole panels of finite weights."""
    return can_be_blocks(site) and site.outputs % PANEL == 0


def plan_panels(
    site: Site,
    order: np.ndarray,
    ends: Sequence[int],
    statistics: BlockStatistics,
    budgets: Sequence[float],
    seed: int,
) -> list[SitePlan]:
    """Plans a Conv once per budget: the end that saves most, or the exact form.

    Args:
        site: The site.
        order: ``[G]``, the order of the groups.
        ends: Candidate positions of the one check.
        statistics: Sums at those ends.
        budgets: Shares of the site's energy that may be lost, rising.
        seed: Chooses the positions that channels are collected by.
    """
    final = statistics.final + statistics.offset
    energy = np.square(np.clip(final, 0, site.max), dtype=np.float32)
    total = float(energy.sum(dtype=np.float64))
    best = [exact_panel_plan(site) for _ in budgets]
    saved = [LEAST_SAVING] * len(budgets)
    for end, partial in zip(ends, statistics.partial, strict=True):
        scale, shift, above = element_scores(partial, statistics)
        channels = collect(above, seed)
        score, lost = (_by_panel(values[:, channels]).ravel() for values in (above, energy))
        rank = np.argsort(score, kind="stable")
        cumulated = np.cumsum(lost[rank], dtype=np.float64)
        for i, budget in enumerate(budgets):
            count = int(np.searchsorted(cumulated, budget * total, side="right"))
            share = count / len(score)
            gain = 1 - (end + _LIST_COST * (1 - share) * (site.groups - end)) / site.groups
            if count and gain > saved[i]:
                saved[i] = gain
                plan = checked_once(
                    site,
                    order,
                    end,
                    {"scale": scale, "shift": shift},
                    np.full(site.outputs // PANEL, above_limit(score[rank[count - 1]])),
                    share,
                    float(cumulated[count - 1]) / (total + 1e-30),
                    f"panels of {PANEL} channels",
                )
                parameters = {**plan.parameters, "channels": channels}
                best[i] = dataclasses.replace(plan, block=1, panel=True, parameters=parameters)
    return best


def collect(scores: np.ndarray, seed: int) -> np.ndarray:
    """An order of the output channels in which each run of 16 tends to be low together.

    Args:
        scores: ``[I, N, P]``, what each element adds to its panel's score; ``N`` is a multiple of 16.
        seed: Chooses positions.

    Returns:
        ``[N]`` int64, a permutation.
    """
    outputs = scores.shape[1]
    by_output = scores.transpose(1, 0, 2).reshape(outputs, -1)
    count = by_output.shape[1]
    if count > _POSITIONS:
        chosen = np.random.default_rng(seed).choice(count, _POSITIONS, replace=False)
        by_output = np.ascontiguousarray(by_output[:, np.sort(chosen)])
    # Beyond this a panel is not skipped, however much more there is.
    cap = np.float32(np.quantile(by_output.sum(axis=0), _LOW) * PANEL / outputs)
    left = np.argsort(by_output.sum(axis=1, dtype=np.float64), kind="stable")
    order: list[int] = []
    while len(left):
        total = np.zeros(by_output.shape[1], np.float32)
        for _ in range(PANEL):
            grown = np.minimum(total + by_output[left], cap).sum(axis=1)
            at = int(np.argmin(grown))
            order.append(int(left[at]))
            total += by_output[left[at]]
            left = np.delete(left, at)
    return np.array(order, np.int64)


def _by_panel(values: np.ndarray) -> np.ndarray:
    """Sums over runs of 16 channels, ``[I, N / 16, P]``."""
    images, outputs, positions = values.shape
    summed: np.ndarray = values.reshape(images, outputs // PANEL, PANEL, positions).sum(axis=2)
    return summed
