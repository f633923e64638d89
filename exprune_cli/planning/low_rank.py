"""Low-rank estimates of Gemm sites and heads: ``U (V x)``, of rank r, in place of a prefix.

The output's principal directions over the calibration rows are the best basis of that rank: with the
covariance ``C`` of x and the eigenvectors ``Q`` of ``W C W^T``, ``V = Q^T W`` and ``U = Q`` (reduced-rank
regression; Izenman, Reduced-rank regression for the multivariate linear model, 1975). The means go
into intercepts. Per output the final value is then regressed on the estimate, as on a prefix sum,
and the slope is folded into U. The estimate is no part of the result, so a survivor is computed whole.

In a cascade a small rank is estimated for all outputs, and a larger one for those that it leaves open: most
outputs are far from their limit, and few directions tell. Directions are uncorrelated, so the slope is the
same at every rank, and the second estimate is the first with more terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exprune_cli.flops import TEST_COST
from exprune_cli.planning import calibrated, chunks, head
from exprune_cli.planning.prices import EARLIER, choose, elements
from exprune_cli.sites import Site, SitePlan, SiteStatistics

#: Ranks that are tried, as shares of the smaller side of the weight.
RANKS = (1 / 48, 1 / 32, 3 / 64, 1 / 16, 5 / 64, 3 / 32, 1 / 8, 5 / 32, 3 / 16, 1 / 4, 3 / 8)
#: Of a head, ranks of a cascade's first estimate, at most, and the shares of the lost rows that it may lose.
_FIRST_RANK, _FIRST_LOSSES = 1 / 16, (0.25, 0.5)
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
    return [rank for rank in tried if estimate_share(site, [rank]) < 1]


def estimate_share(site: Site, ranks: Sequence[int], open_: float = 0.0) -> float:
    """Cost of the estimates and their tests as a share of the dense layer's.

    Args:
        site: The site.
        ranks: One, or a cascade's two.
        open_: Share of outputs that a cascade's first estimate leaves open.
    """
    test = TEST_COST["calibrated"](1) / 2
    cost = ranks[-1] * site.groups + (ranks[0] + test) * site.outputs
    if len(ranks) > 1:
        cost += open_ * (ranks[1] - ranks[0] + test) * site.outputs
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
    # Fits are of all rows; a choice looks at some.
    few = elements(site.outputs)
    offset = chunks.known_offset(site, statistics)
    offset = offset if offset.ndim == 1 else offset[few]
    energy = np.square(np.clip(final[few] + offset, 0, site.max), dtype=np.float64) * weights
    tried = ranks(site)
    found = basis(weight, rows, tried[-1])
    fits, losses = [], []
    for rank in tried:
        estimate = _estimate(found, rows, rank)
        fit = calibrated.fit(estimate, final)
        u = (estimate[few] * fit.slope + fit.intercept + offset) / fit.sigma
        losses.append((weights * np.square(fit.sigma) * calibrated.expected_loss(u)).astype(np.float32))
        fits.append(fit)

    def saved(checks: Sequence[int], pruned: Sequence[float]) -> float:
        return pruned[-1] - estimate_share(site, [tried[i] for i in checks], 1 - pruned[0])

    def limit(at: int, price: float) -> np.ndarray:
        fit = fits[at]
        numbers: np.ndarray = calibrated.cut(fit, price / weights) * fit.sigma - fit.intercept
        return numbers

    plans: list[SitePlan | None] = []
    for choice in choose(losses, energy, [0] * len(tried), 1, budgets, saved, most_checks=2):
        if choice is None:
            plans.append(None)
            continue
        *before, last = choice.checks
        parameters = _parameters(found, [tried[i] for i in choice.checks], fits[last].slope)
        parameters["limit_more" if before else "limit"] = limit(last, choice.price)
        if before:
            parameters["limit"] = limit(before[0], EARLIER * choice.price)
        plans.append(_plan(site, parameters, choice.pruned, choice.lost, choice.saved))
    return plans


def _estimate(found: Basis, rows: np.ndarray, rank: int) -> np.ndarray:
    """``[R, N]`` float32."""
    down, up = found.down[:rank].astype(np.float32), found.up[:, :rank].astype(np.float32)
    estimate: np.ndarray = (rows @ down.T) @ up.T
    return estimate


def _parameters(found: Basis, used: Sequence[int], slope: np.ndarray) -> dict[str, np.ndarray]:
    """``V``, ``U`` and, of a cascade's two ranks, ``U_more``."""
    up = found.up[:, : used[-1]] * slope[:, None]
    parameters = {"V": found.down[: used[-1]], "U": up[:, : used[0]]}
    if len(used) > 1:
        parameters["U_more"] = up[:, used[0] :]
    return parameters


@dataclass(frozen=True)
class _HeadEstimate:
    """A head's estimate of one rank.

    Attributes:
        rank: ``r``.
        form: Slope, shift and sigma, ``[N]``.
        needed_by_row: ``[R]`` the margin factors that keep the rows' winners.
        needed: The same, ascending.
        some: ``[R', N]`` estimates of some rows, slope and shift in them.
    """

    rank: int
    form: tuple[np.ndarray, np.ndarray, np.ndarray]
    needed_by_row: np.ndarray
    needed: np.ndarray
    some: np.ndarray

    def reach(self, width: float) -> np.ndarray:
        """``[N]`` float32: the classes' margins at a factor; one rounding step wider, so that the row that set it
        keeps its winner."""
        margin: np.ndarray = self.form[2] * np.nextafter(np.float32(width * (1 + 1e-6)), np.float32(np.inf))
        return margin.astype(np.float32)


@dataclass(frozen=True)
class _HeadChoice:
    """Estimates, one or a cascade's two, with their margin factors, and what comes of them."""

    estimates: tuple[_HeadEstimate, ...]
    widths: tuple[float, ...]
    pruned: tuple[float, ...]
    lost: float
    saved: float


def _head(
    site: Site, statistics: SiteStatistics, budgets: Sequence[float], weights: np.ndarray
) -> list[SitePlan | None]:
    rows = statistics.rows[: max(64, _ELEMENTS // site.outputs), :, 0]
    weight = site.load_weight()[:, :, 0]
    product = rows @ weight.T
    final = product + site.bias
    tried = ranks(site)
    found = basis(weight, rows, tried[-1])
    estimates = []
    for rank in tried:
        estimate = _estimate(found, rows, rank)
        form = head.calibrated_form(estimate, product, site.bias)
        needed = head.needed_width(estimate, final, form)
        some = estimate[: head.SHARE_ROWS] * form[0] + form[1]
        estimates.append(_HeadEstimate(rank, form, needed, np.sort(needed), some.astype(np.float32)))
    best: list[_HeadChoice | None] = [None] * len(budgets)
    most = max(tried[0], min(site.outputs, site.groups) * _FIRST_RANK)
    for first in estimates:
        for i, budget in enumerate(budgets):
            best[i] = _better(best[i], _alone(site, first, budget))
            if first.rank <= most:
                later = [one for one in estimates if one.rank > first.rank]
                best[i] = _cascade(site, first, later, budget, best[i])
    return [None if choice is None else _head_plan(site, found, choice) for choice in best]


def _better(held: _HeadChoice | None, other: _HeadChoice | None) -> _HeadChoice | None:
    if other is None or other.saved <= (held.saved if held else 0.0):
        return held
    return other


def _alone(site: Site, one: _HeadEstimate, budget: float) -> _HeadChoice:
    width, lost = head.width_for(one.needed, budget)
    share = 1 - _open(site, head.remaining(one.some, one.reach(width)).sum(axis=1))
    saved = share - estimate_share(site, [one.rank])
    return _HeadChoice((one,), (width,), (share,), lost, saved)


def _cascade(
    site: Site, first: _HeadEstimate, later: Sequence[_HeadEstimate], budget: float, held: _HeadChoice | None
) -> _HeadChoice | None:
    """The best second estimate after ``first``; ``held`` where none is better than that."""
    for share in _FIRST_LOSSES:
        width, lost = head.width_for(first.needed, share * budget)
        gone = first.needed_by_row > width
        lost = min(lost, share * budget) if not gone.any() else float(gone.mean())
        mask = head.remaining(first.some, first.reach(width))
        left = _open(site, mask.sum(axis=1))
        at = np.nonzero(mask)
        for second in later:
            cost = estimate_share(site, [first.rank, second.rank], left)
            if held is not None and 1 - cost <= held.saved:
                continue
            # Rows that the first has lost need nothing of the second.
            needed = np.sort(np.where(gone, 0, second.needed_by_row))
            wider, more = head.width_for(needed, budget - lost)
            open_ = _open(site, head.remaining_among(second.some, second.reach(wider), *at))
            pruned = (1 - left, 1 - open_)
            held = _better(
                held, _HeadChoice((first, second), (width, wider), pruned, lost + more, 1 - open_ - cost)
            )
    return held


def _open(site: Site, alive: np.ndarray) -> float:
    """Share of classes that are open, of the classes left by row; a row with one has none."""
    return float(np.where(alive == 1, 0, alive).mean()) / site.outputs


def _head_plan(site: Site, found: Basis, choice: _HeadChoice) -> SitePlan:
    slope = choice.estimates[-1].form[0]
    parameters = _parameters(found, [one.rank for one in choice.estimates], slope)
    before = None
    for one, width in zip(choice.estimates, choice.widths, strict=True):
        shift = one.form[1]
        more = "" if before is None else "_more"
        # A second estimate is added to the first, its shift too.
        parameters["shift" + more] = shift if before is None else shift - before
        parameters["margin" + more] = one.reach(width)
        before = shift
    return _plan(site, parameters, choice.pruned, choice.lost, choice.saved)


def _plan(
    site: Site, parameters: dict[str, np.ndarray], pruned: tuple[float, ...], lost: float, saved: float
) -> SitePlan:
    """A plan with ``V``, ``U``, the test's arrays, and what is expected of it."""
    rank, first = len(parameters["V"]), parameters["U"].shape[1]
    return SitePlan(
        site.name,
        staged=True,
        reason=f"estimate of rank {rank}" if rank == first else f"estimates of ranks {first} and {rank}",
        estimate="low-rank",
        test="calibrated",
        parameters={name: values.astype(np.float32) for name, values in parameters.items()},
        pruned=pruned,
        lost_energy=lost,
        saved=saved,
    )
