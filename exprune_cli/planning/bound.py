"""Sound bounds on the part of a sum that was not computed yet.

The claim. An output's value is ``v = w . x + b + o``, with weights w, inputs x, a bias b and an
offset o, all float32. The dense model computes a float ``dense(v)`` in an order of summation that
we do not know, with or without fused multiply-adds; we compute the partial sum ``P`` over the first
inputs, the head, as a float ``p``. An output is pruned only if ``dense(v) <= 0`` whatever that order
is: then its ReLU is 0. The dense model here is the site as it is planned, after constants next to it
(a BatchNormalization) were folded into w and b.

In exact arithmetic Cauchy-Schwarz gives ``w_tail . x_tail <= ||w_tail|| ||x_tail||``. Where all
inputs are >= 0 only positive weights can add, so ``||max(w_tail, 0)|| ||x_tail||`` bounds it too.

Rounding, with ``u = 2^-24``, n products and ``gamma_n = n u / (1 - n u)`` (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 4.2: sums of any order; a fused multiply-add only
saves roundings). Write ``A = sum |w_i x_i| <= ||w|| ||x||`` and ``B = |b| + |o|``.

1. The dense sum has n + 2 terms, so it errs by at most ``gamma_(n+2) (A + B)``. A scale that was
   folded into w (a Gemm's alpha) costs it one rounding more: ``gamma_(n+3)``.
2. Ours is ``fl(p + fl(b + o))``. It errs by ``gamma_(n+1) A`` for p and the last sum, and by
   ``2 u B (1 + u)`` for both sums.
3. ``slack = 2 gamma_(n+4) ||w||`` covers the A of 1 and 2 with two more roundings each to spare.
   The op adds ``(8 u + 1.34 (n + 4) u) B`` for the B; for n + 4 < 2^22 that is more than
   ``gamma_(n+4) + 3 u``. It counts at run time because only the op knows o. For larger n nothing is
   decided there, and ``slack`` is infinite from ``n u = 1/4`` on.
4. ``radius`` and ``slack`` are rounded up. The norms of x are sums of squares in double, which neither
   overflow nor vanish, rounded to float; the op's products and sums of them are fewer than eight float
   operations on numbers >= 0. Each costs at most u of the result: the factor ``1 + 1e-5`` covers them.
5. The comparison ``fl(p + b + o + reach) < 0`` has the sign of the exact sum of its two operands, as
   float additions never change it.

Underflow. Products below 2^-126 lose up to 2^-150 each, absolutely, or up to 2^-126 where ONNX Runtime
is told to flush subnormal numbers; sums lose nothing unless flushed. The op adds 1e-30 to the reach,
which is more than 2 n of those for n < 2^24.

Overflow. Steps 1 to 3 hold while no sum, in any order, leaves the range of float. As the reach holds
``2 gamma_(n+4) ||w|| ||x|| >= 6e-7 A`` and ``8 u B``, a reach below 5e31 leaves ``A < 0.9e38`` and
``B < 1.1e38``: every partial sum is below 2.0e38. From 5e31 on the reach counts as infinite and nothing
is decided, because the dense model may compute an infinity, or the NaN of two, where the exact sum is
finite. So do infinite and NaN inputs, weights, biases and offsets: they make the reach, or the sum it
is added to, infinite or NaN, and what is not below 0 survives.

For an ArgMax the same reach stands on both sides of a class's score. A class is out only if the upper
end of its score is below the lower end of another's, so ``dense`` of the one is below ``dense`` of the
other; adding the reach to the score is one of the roundings to spare in 3.

``python -m tests.runtime.attack_bounds`` looks for counterexamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNIT = 2.0**-24
_ELEMENTS = 2**24  # in work at once, in double precision


def gamma(terms: int) -> float:
    """``n u / (1 - n u)``, and infinity where so many roundings have no bound of use."""
    share = terms * _UNIT
    return share / (1 - share) if share < 0.25 else float("inf")


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
    radius = np.empty((len(ends), len(weight)))
    norm = np.empty(len(weight))
    step = max(1, _ELEMENTS // max(1, weight[:1].size))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        ordered = weight[rows, order].astype(np.float64)
        squares = np.square(np.maximum(ordered, 0) if one_sided else ordered).sum(axis=2)
        # A NaN weight must give a NaN radius (a survivor); maximum() keeps NaN.
        tails = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
        radius[:, rows] = np.sqrt(np.stack([tails[:, end] for end in ends]))
        norm[rows] = np.sqrt(np.square(ordered).sum(axis=(1, 2)))
    with np.errstate(invalid="ignore"):
        slack = 2 * gamma(weight.shape[1] * weight.shape[2] + 4) * norm
    slack = np.broadcast_to(slack, radius.shape)
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
