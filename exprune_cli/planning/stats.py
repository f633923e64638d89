"""The paper's Wald z-test on exchangeable terms (ExPrune, arXiv 2506.02210, Negative Prediction).

After ``k`` groups let ``m`` be the mean of the ``k`` terms plus the per-term share of all offsets
(``offset / G``) and ``var`` their sample variance. The output is taken for negative when
``m / sqrt(var / k) < z`` with ``z = Phi^-1(alpha)``. A BatchNormalization's factor is folded into
the terms. The first ``k`` terms stand for all: only the natural or a random order will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

#: The paper's code checks once, after this many groups.
PAPER_GROUPS = 32
#: Level without calibration data.
DEFAULT_ALPHA = 0.05
#: Levels that calibration chooses from.
ALPHAS = (0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)


def quantile(alpha: float) -> float:
    """``Phi^-1(alpha)``."""
    return float(ndtri(alpha))


def paper_ends(groups: int) -> tuple[int, ...]:
    """The paper's one check, or none where a layer has no more groups than that."""
    return (PAPER_GROUPS,) if groups > PAPER_GROUPS else ()


def z_scores(
    rows: np.ndarray, weight: np.ndarray, offset: np.ndarray, ends: Sequence[int]
) -> list[np.ndarray]:
    """``m / sqrt(var / k)`` in the natural order, for each check: ``S`` arrays ``[R, N]``.

    Args:
        rows: ``[R, G, T]``.
        weight: ``[N, G, T]``.
        offset: ``[N]`` or ``[R, N]``.
        ends: Check positions in groups.
    """
    groups = rows.shape[1]
    count = rows.shape[0]
    total = np.zeros((count, weight.shape[0]))
    squares = np.zeros_like(total)
    scores, start = [], 0
    for end in ends:
        if weight.shape[2] == 1:
            x, w = rows[:, start:end, 0], weight[:, start:end, 0]
            total += x @ w.T
            squares += np.square(x) @ np.square(w).T
        else:
            for group in range(start, end):
                term = rows[:, group] @ weight[:, group].T
                total += term
                squares += np.square(term, dtype=np.float64)
        variance = np.maximum(squares - total * total / end, 0) / max(end - 1, 1)
        mean = total / end + offset / groups
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append(mean / np.sqrt(variance / end))
        start = end
    return scores
