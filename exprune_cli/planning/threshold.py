"""The paper's one threshold per site (ExPrune, arXiv 2506.02210): prune when ``m < T``.

``m`` is the mean of the first ``k`` terms plus ``offset / G``. Times ``G``, this is
``(G / k) P + offset < G T``: the form ``scale P + offset < limit`` that the runtime tests, with
one value for all outputs of a site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def threshold_parameters(
    outputs: int, groups: int, ends: Sequence[int], threshold: float
) -> dict[str, np.ndarray]:
    """``scale`` and ``limit``, ``[S, N]`` float32.

    Args:
        outputs: ``N``.
        groups: ``G``.
        ends: Check positions in groups.
        threshold: ``T``.
    """
    scale = np.array([groups / end for end in ends], np.float32)[:, None]
    return {
        "scale": np.broadcast_to(scale, (len(ends), outputs)).copy(),
        "limit": np.full((len(ends), outputs), groups * threshold, np.float32),
    }


def means(
    sums: Sequence[np.ndarray], offset: np.ndarray, groups: int, ends: Sequence[int]
) -> list[np.ndarray]:
    """``m`` at each check, ``[R, N]``; ``sums`` as :func:`.chunks.partial_sums` gives them."""
    return [total / end + offset / groups for total, end in zip(sums, ends, strict=False)]


def largest_threshold(score: np.ndarray, loss: np.ndarray, budget: float) -> float:
    """The largest cut on ``score`` (prune below it) that loses at most ``budget``.

    Args:
        score: Any shape; outputs with the smallest values are pruned first.
        loss: Same shape, >= 0: what pruning an output loses.
        budget: Bound on the sum of losses.

    Returns:
        A cut ``T``: the losses of all entries with ``score < T`` sum to at most ``budget``.
    """
    flat = score.ravel()
    order = np.argsort(flat, kind="stable")
    lost = np.cumsum(loss.ravel()[order], dtype=np.float64)
    count = int(np.searchsorted(lost, budget, side="right"))
    return float(flat[order[count]]) if count < flat.size else float(np.nextafter(flat[order[-1]], np.inf))
