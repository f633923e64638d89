"""ArgMax heads: which classes can leave the race after a part of the sum.

Class j has the predicted score ``e_j = scale_j P_j + shift_j`` and is dropped when
``e_j + margin_j < max_i (e_i - margin_i)``. The paper's Dominance Prediction with one threshold
is ``scale = G / k``, ``shift = bias``, one margin; the calibrated form regresses the final score
on the partial sum per class and takes ``margin_j = width * sigma_j``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exprune_cli.planning.calibrated import fit

#: How much wider a margin gets, as a share, for every factor of e that a budget is below one row.
_TAIL = 0.25
#: Rows that the share of decided classes is estimated on: every row holds all classes.
SHARE_ROWS = 256


def threshold_form(bias: np.ndarray, groups: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, shift and unit margin of the paper's form, each ``[N]``."""
    ones = np.ones(bias.shape[0])
    return ones * (groups / end), bias.astype(np.float64), ones


def calibrated_form(
    partial: np.ndarray, final: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, shift and sigma per class, each ``[N]``, from ``[R, N]`` sums without bias."""
    regression = fit(partial, final)
    return regression.slope, regression.intercept + bias, regression.sigma


def needed_width(partial: np.ndarray, final: np.ndarray, form: Sequence[np.ndarray]) -> np.ndarray:
    """``[R]``: the smallest margin factor that keeps each row's true winner in the race.

    With ``best_w(t) = max_i (e_i - t unit_i)`` the winner w stays when
    ``e_w + t unit_w >= best_w(t)``, which is monotone in t.

    Args:
        partial: ``[R, N]`` partial sums.
        final: ``[R, N]`` final scores, bias included.
        form: Scale, shift, unit margin.
    """
    scale, shift, unit = form
    predicted = partial * scale + shift
    winner = final.argmax(axis=1)
    at = np.arange(len(winner))
    # Every rival i asks for (e_i - e_w) / (unit_i + unit_w) at least.
    asked = (predicted - predicted[at, winner][:, None]) / (unit + unit[winner][:, None])
    needed: np.ndarray = np.maximum(asked.max(axis=1), 0.0)
    return needed


def width_for(needed: np.ndarray, budget: float) -> tuple[float, float]:
    """The margin factor that loses ``budget`` of the rows, and the share that it is expected to lose.

    Rows that calibrate know nothing of budgets below one of them: the largest factor that any of them
    needs is then widened, as an exponential tail would be.

    Args:
        needed: ``[R]`` from :func:`needed_width`, ascending.
        budget: Share of rows whose winner may be lost.
    """
    count = len(needed)
    if budget * count < 1:
        width = (
            float(needed[-1]) * (1 + _TAIL * float(np.log(1 / (budget * count)))) if budget > 0 else np.inf
        )
        return width, budget
    width = float(needed[min(count - 1, int(np.ceil((1 - budget) * count)) - 1)])
    return width, (float(np.sum(needed > width)) + 0.5) / count


def candidates(partial: np.ndarray, form: Sequence[np.ndarray], width: float) -> np.ndarray:
    """``[R, N]`` bool: the classes that stay in the race at margin factor ``width``."""
    scale, shift, unit = form
    return remaining(partial * scale + shift, width * unit)


def remaining(predicted: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """``[R, N]`` bool: the classes whose upper end is not below the best lower end; ``reach`` is ``[N]``."""
    lead = (predicted - reach).max(axis=1, keepdims=True)
    alive: np.ndarray = ~(predicted + reach < lead)
    return alive


def remaining_among(
    predicted: np.ndarray, reach: np.ndarray, rows: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """``[R]``: how many of some classes remain as :func:`remaining` has it.

    Args:
        predicted: ``[R, N]``.
        reach: ``[N]``.
        rows: Of the classes that are in the race, row by row; every row has one.
        classes: Which they are, as long as ``rows``.
    """
    value, width = predicted[rows, classes], reach[classes]
    starts = np.searchsorted(rows, np.arange(len(predicted)))
    lead = np.maximum.reduceat(value - width, starts)
    alive: np.ndarray = np.add.reduceat(~(value + width < lead[rows]), starts, dtype=np.int64)
    return alive


def z_scores(
    rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dominance Prediction's test statistic after ``end`` groups in the natural order.

    Args:
        rows: ``[R, G, 1]``.
        weight: ``[N, G, 1]``.
        bias: ``[N]``.
        end: ``k``.

    Returns:
        ``[R, N]`` statistics ``m_j / sqrt(var_j / k)`` of the terms ``(w_j - w_lead)_i x_i`` (the
        leader's own is +inf), and ``[R]`` leaders.
    """
    x, w = rows[:, :end, 0].astype(np.float64), weight[:, :end, 0].astype(np.float64)
    groups = rows.shape[1]
    sums, squares = x @ w.T, np.square(x) @ np.square(w).T
    value = sums / end + bias / groups
    leader = value.argmax(axis=1)
    at = np.arange(len(x))
    cross = (np.square(x) * w[leader]) @ w.T
    total = sums - sums[at, leader][:, None]
    square = np.maximum(squares + squares[at, leader][:, None] - 2 * cross, 0)
    variance = np.maximum(square - total * total / end, 0) / max(end - 1, 1)
    mean = value - value[at, leader][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        score = mean / np.sqrt(variance / end)
    score[at, leader] = np.inf
    return np.where(np.isnan(score), np.inf, score), leader
