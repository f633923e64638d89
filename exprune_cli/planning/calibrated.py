"""Per-output regression on the partial sum, and the energy that pruning is expected to lose.

For output n with partial sum P and known offset o, least squares over the calibration rows give
``z - o ~ a P + c`` with residual deviation ``sigma``. With ``u = (a P + c + o) / sigma`` and a
Gaussian residual, pruning loses the expected energy::

    g(u) = E[relu(z)^2] = sigma^2 ((1 + u^2) Phi(u) + u phi(u))

which falls with -u. An output is pruned where ``g`` is below a price that is one number per
site; in terms of the op, where ``a P + o < limit`` with ``limit = u* sigma - c``. Where the price
is high that takes outputs too that are expected to be positive, but small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

#: Ridge added to the variance of P, as a share of it: keeps outputs that hardly vary finite.
_RIDGE = 1e-3
#: An output's deviation is at least this share of its root mean square value.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Fit:
    """Regression of the final value on the partial sum at one check; all ``[N]`` float64.

    Attributes:
        slope: ``a``.
        intercept: ``c``.
        sigma: Residual deviation.
    """

    slope: np.ndarray
    intercept: np.ndarray
    sigma: np.ndarray


def fit(partial: np.ndarray, final: np.ndarray) -> Fit:
    """Least squares of ``final`` on ``partial`` per output, both ``[R, N]`` without offsets."""
    mean_p, mean_f = partial.mean(axis=0, dtype=np.float64), final.mean(axis=0, dtype=np.float64)
    count = len(final)
    # In single precision, once the means are off; sums over rows are of a few thousand terms.
    centred, residual = partial - mean_p.astype(np.float32), final - mean_f.astype(np.float32)
    variance = np.einsum("rn,rn->n", centred, centred) / count
    square = np.einsum("rn,rn->n", residual, residual) / count
    covariance = np.einsum("rn,rn->n", centred, residual) / count
    slope = covariance.astype(np.float64) / (variance * (1 + _RIDGE) + 1e-30)
    intercept = mean_f - slope * mean_p
    residual -= centred * slope.astype(np.float32)
    scale = np.sqrt(square + np.square(mean_f))
    error = np.sqrt(np.einsum("rn,rn->n", residual, residual) / count)
    sigma = np.maximum(error, _FLOOR * scale + 1e-12)
    return Fit(slope, intercept, sigma)


def expected_loss(u: np.ndarray) -> np.ndarray:
    """``g(u) / sigma^2``: expected energy lost by pruning at standardised prediction ``u``."""
    density = np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)
    lost: np.ndarray = np.maximum((1 + u * u) * ndtr(u) + u * density, 0)
    return lost


def cut(fit_: Fit, price: float | np.ndarray) -> np.ndarray:
    """``u*`` per output, ``[N]``: the largest u with ``sigma^2 g(u) <= price`` (one, or ``[N]``)."""
    target = price / np.square(fit_.sigma)
    # g(u) is at least u^2 for positive u.
    low, high = np.full_like(target, -8.0), np.sqrt(target)
    for _ in range(48):
        middle = (low + high) / 2
        fits = expected_loss(middle) <= target
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(expected_loss(low) <= target, low, -np.inf)


def limits(fits: Sequence[Fit], prices: Sequence[float], weights: np.ndarray) -> dict[str, np.ndarray]:
    """``scale`` and ``limit``, ``[S, N]`` float32, for one price per check and a weight per output."""
    scale = np.stack([f.slope for f in fits]).astype(np.float32)
    limit = [cut(f, price / weights) * f.sigma - f.intercept for f, price in zip(fits, prices, strict=True)]
    return {"scale": scale, "limit": np.stack(limit).astype(np.float32)}
