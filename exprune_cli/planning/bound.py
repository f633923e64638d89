"""Sound bounds on the part of a sum that was not computed yet.

For an output with weights ``w`` and input ``x``, split into the part that was read (head) and
the rest (tail), Cauchy-Schwarz gives ``w_tail . x_tail <= ||w_tail|| ||x_tail||``. Where all
inputs are >= 0 only positive weights can add, so ``||max(w_tail, 0)|| ||x_tail||`` bounds it too.

Rounding. A float sum of n products errs by at most ``gamma_n sum |w_i x_i|`` with
``gamma_n = n u / (1 - n u)``, ``u = 2^-24`` (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., eq. 3.5), in any order of summation, and ``sum |w_i x_i| <= ||w|| ||x||``.
This holds for the head that we compute and for the sum that the dense model computes, so
``slack = 2 gamma ||w||`` with n raised by the additions of bias and offset covers both; what
their own magnitude adds, 4 eps (|bias| + |offset|), and the rounding of the norms themselves
(a factor 1 + 1e-5) the op adds when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNIT = 2.0**-24


def bound_parameters(
    weight: np.ndarray, order: np.ndarray, ends: Sequence[int], *, one_sided: bool
) -> dict[str, np.ndarray]:
    """The arrays of the ``bound`` test.

    Args:
        weight: ``[N, G, T]``.
        order: ``[G]``.
        ends: Check positions in groups, without the final one.
        one_sided: All inputs are >= 0 and only an upper bound is needed.

    Returns:
        ``radius`` and ``slack``, ``[S, N]`` float32, rounded up.
    """
    ordered = weight[:, order].astype(np.float64)
    squares = np.square(np.maximum(ordered, 0) if one_sided else ordered).sum(axis=2)
    # A NaN weight must give a NaN radius (a survivor); maximum() keeps NaN.
    tails = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    radius = np.sqrt(np.stack([tails[:, end] for end in ends]))
    terms = weight.shape[1] * weight.shape[2] + 4
    gamma = terms * _UNIT / (1 - terms * _UNIT)
    norm = np.sqrt(np.square(ordered).sum(axis=(1, 2)))
    slack = np.broadcast_to(2 * gamma * norm, radius.shape)
    return {"radius": rounding_up(radius), "slack": rounding_up(slack)}


def rounding_up(values: np.ndarray) -> np.ndarray:
    """Float32 numbers that are not below ``values``."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return np.where(single < values, np.nextafter(single, np.float32(np.inf)), single).astype(np.float32)


def bound_pruned(
    rows: np.ndarray,
    sums: Sequence[np.ndarray],
    offset: np.ndarray,
    order: np.ndarray,
    ends: Sequence[int],
    parameters: dict[str, np.ndarray],
) -> list[np.ndarray]:
    """Which outputs the bound decides at each check: ``S`` arrays ``[R, N]`` bool, cumulative."""
    squares = np.square(rows, dtype=np.float64).sum(axis=2)[:, order]
    tails = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    whole = np.sqrt(squares.sum(axis=1))[:, None]
    decided: list[np.ndarray] = []
    for check, end in enumerate(ends):
        reach = (
            parameters["radius"][check] * np.sqrt(tails[:, end])[:, None] + parameters["slack"][check] * whole
        )
        now = sums[check] + offset + reach < 0
        decided.append(now | decided[-1] if decided else now)
    return decided
