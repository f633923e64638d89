"""Quantiles and histograms: many numbers as the few that a report keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exprune_cli.report_data import Histogram, Spread

_BINS = 28
#: Times above this quantile, or so many quartile ranges above the upper quartile, are counted in the last bin:
#: they are the machine's, not the model's.
_LAST, _RANGES = 0.98, 3.0


def spread(values: Sequence[float] | np.ndarray) -> Spread | None:
    """Quantiles of some numbers; None for none, or where one is not finite."""
    array = np.asarray(values, np.float64)
    if not array.size or not np.isfinite(array).all():
        return None
    least, p5, p25, median, p75, p95, most = np.quantile(array, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)).tolist()
    return Spread(least, p5, p25, median, p75, p95, most, int(array.size))


def _usual(times: np.ndarray) -> float:
    """Up to where times are told apart."""
    lower, upper, last = np.quantile(times, (0.25, 0.75, _LAST)).tolist()
    return float(min(last, upper + _RANGES * (upper - lower)))


def histogram(dense: np.ndarray | None, optimized: np.ndarray) -> Histogram:
    """Times of one or two models in common bins.

    Args:
        dense: ``[n]`` milliseconds, of the baseline; None without.
        optimized: ``[n]`` milliseconds.
    """
    sides = [optimized] if dense is None else [dense, optimized]
    low = min(float(side.min()) for side in sides)
    high = max(_usual(side) for side in sides)
    edges = np.linspace(low, max(high, low * 1.01 + 1e-9), _BINS + 1)
    counts = [[int(n) for n in np.histogram(np.minimum(side, edges[-1]), edges)[0]] for side in sides]
    return Histogram([float(edge) for edge in edges], None if dense is None else counts[0], counts[-1])
