"""Low-rank estimates of Gemm sites and heads: ``U (V x)``, of rank r, in place of a prefix.

The output's principal directions over the calibration rows are the best basis of that rank: with the
covariance ``C`` of x and the eigenvectors ``Q`` of ``W C W^T``, ``V = Q^T W`` and ``U = Q`` (reduced-rank
regression; Izenman, Reduced-rank regression for the multivariate linear model, 1975). The means go
into intercepts. Per output the final value is then regressed on the estimate, as on a prefix sum,
and the slope is folded into U. The estimate is no part of the result, so a survivor is computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exprune_cli.flops import TEST_COST
from exprune_cli.planning import calibrated, chunks, head
from exprune_cli.planning.prices import choose
from exprune_cli.sites import Site, SitePlan, SiteStatistics

#: Ranks that are tried, as shares of the smaller side of the weight.
RANKS = (1 / 32, 3 / 64, 1 / 16, 5 / 64, 3 / 32, 1 / 8, 5 / 32, 3 / 16, 1 / 4)
#: Rows x classes that are looked at for a head.
_ELEMENTS = 2**23


@dataclass(frozen=True)
class Basis:
    """Principal directions of a site's output.

    Attributes:
        down: ``V`` of the largest rank, ``[r, G]`` float64, most important first.
        up: ``U``, ``[N, r]``.
    """

    down: np.ndarray
    up: np.ndarray


def basis(weight: np.ndarray, rows: np.ndarray, rank: int) -> Basis:
    """The first ``rank`` directions.

    Args:
        weight: ``[N, G]``.
        rows: ``[R, G]`` inputs.
        rank: At most ``min(N, G)``.
    """
    x = rows.astype(np.float64)
    covariance = np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], x.shape[1])
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    # W root root^T W^T has the eigenvectors (W root) v of the smaller matrix (W root)^T (W root).
    image = weight.astype(np.float64) @ root
    squares, right = np.linalg.eigh(image.T @ image)
    right, squares = right[:, ::-1][:, :rank], squares[::-1][:rank]
    up = image @ right / np.sqrt(np.maximum(squares, 1e-30))
    return Basis(up.T @ weight, up)


def ranks(site: Site) -> list[int]:
    """The ranks that are tried: distinct, and cheaper than the layer."""
    side = min(site.outputs, site.groups)
    tried = sorted({max(1, round(side * share)) for share in RANKS})
    return [rank for rank in tried if estimate_share(site, rank) < 1]


def estimate_share(site: Site, rank: int) -> float:
    """Cost of the estimate and its tests as a share of the dense layer's."""
    cost = rank * (site.outputs + site.groups) + TEST_COST["calibrated"](1) * site.outputs / 2
    return cost / (site.outputs * site.groups)


def better(
    site: Site,
    statistics: SiteStatistics | None,
    plans: Sequence[SitePlan],
    budgets: Sequence[float],
    weights: np.ndarray | None = None,
) -> list[SitePlan]:
    """The plans, those that a low-rank estimate beats replaced by it.

    Args:
        site: A ReLU site or a head; a Conv's plans are returned as they are.
        statistics: Its statistics.
        plans: One per budget.
        budgets: As for the planners of prefixes.
        weights: What an output's energy counts, ``[N]``; None: the same.
    """
    if statistics is None or site.conv is not None or site.kind == "sparse" or not ranks(site):
        return list(plans)
    make = _head if site.kind == "argmax" else _relu
    ours = make(
        site, statistics, budgets, np.ones(site.outputs) if weights is None else weights / weights.mean()
    )
    return [
        b if b is not None and chunks.plan_saving(site, b) > chunks.plan_saving(site, a) else a
        for a, b in zip(plans, ours, strict=True)
    ]


def _relu(
    site: Site, statistics: SiteStatistics, budgets: Sequence[float], weights: np.ndarray
) -> list[SitePlan | None]:
    weight, rows = site.load_weight()[:, :, 0], statistics.rows[:, :, 0]
    final = rows @ weight.T
    offset = chunks.known_offset(site, statistics)
    energy = np.square(np.clip(final + offset, 0, site.max), dtype=np.float64) * weights
    found = basis(weight, rows, ranks(site)[-1])
    best: list[SitePlan | None] = [None] * len(budgets)
    for rank in ranks(site):
        down, up = found.down[:rank].astype(np.float32), found.up[:, :rank].astype(np.float32)
        estimate = (rows @ down.T) @ up.T
        fit = calibrated.fit(estimate, final)
        u = (estimate * fit.slope + fit.intercept + offset) / fit.sigma
        loss = (weights * np.square(fit.sigma) * calibrated.expected_loss(u)).astype(np.float32)
        # One check after no part of the sum, with the estimate's cost as the test's.
        for i, choice in enumerate(choose([loss], energy, [0], 1, budgets, estimate_share(site, rank))):
            held = best[i]
            if choice is None or (held is not None and choice.saved <= (held.saved or 0)):
                continue
            limit = calibrated.cut(fit, choice.price / weights) * fit.sigma - fit.intercept
            limit = limit.astype(np.float32)
            best[i] = _plan(
                site,
                down,
                up * fit.slope[:, None],
                {"limit": limit},
                choice.pruned[0],
                choice.lost,
                choice.saved,
            )
    return best


def _head(
    site: Site, statistics: SiteStatistics, budgets: Sequence[float], weights: np.ndarray
) -> list[SitePlan | None]:
    rows = statistics.rows[: max(64, _ELEMENTS // site.outputs), :, 0]
    weight = site.load_weight()[:, :, 0]
    product = rows @ weight.T
    final = product + site.bias
    found = basis(weight, rows, ranks(site)[-1])
    best: list[SitePlan | None] = [None] * len(budgets)
    for rank in ranks(site):
        down, up = found.down[:rank].astype(np.float32), found.up[:, :rank].astype(np.float32)
        estimate = (rows @ down.T) @ up.T
        form = head.calibrated_form(estimate, product, site.bias)
        slope, shift, sigma = form
        needed = np.sort(head.needed_width(estimate, final, form))
        for i, budget in enumerate(budgets):
            width, lost = head.width_for(needed, budget)
            alive = head.candidates(estimate[: head.SHARE_ROWS], form, width).sum(axis=1)
            share = 1 - float(np.where(alive == 1, 0, alive).mean()) / site.outputs
            saved = share - estimate_share(site, rank)
            held = best[i]
            if saved <= 0 or (held is not None and saved <= (held.saved or 0)):
                continue
            # One rounding step wider, so that the row that set the width keeps its winner.
            margin = sigma * np.nextafter(np.float32(width * (1 + 1e-6)), np.float32(np.inf))
            test = {"shift": shift.astype(np.float32), "margin": margin.astype(np.float32)}
            best[i] = _plan(site, down, up * slope[:, None], test, share, lost, saved)
    return best


def _plan(
    site: Site,
    down: np.ndarray,
    up: np.ndarray,
    test: dict[str, np.ndarray],
    pruned: float,
    lost: float,
    saved: float,
) -> SitePlan:
    """A plan with ``V`` and ``U``, the test's arrays, and what is expected of it."""
    return SitePlan(
        site.name,
        staged=True,
        reason=f"estimate of rank {len(down)}",
        estimate="low-rank",
        test="calibrated",
        parameters={"V": down, "U": up.astype(np.float32), **test},
        pruned=(pruned,),
        lost_energy=lost,
        saved=saved,
    )
