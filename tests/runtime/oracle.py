"""The staged ops in numpy, straight from their definition, in double precision.

A float32 kernel may take another decision where a value lies within rounding of its cut. So every check
also yields which decisions are *close*; comparisons allow either outcome there and demand the same one
everywhere else. Sums are compared relative to the sum of their terms' magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.oracle import sound

#: Relative rounding allowed to a float32 sum, as a share of the sum of magnitudes.
ROUNDING = 1e-5


@dataclass
class Staged:
    """A staged reduction: weights ``[N, G, T]`` in the model's order, and its stages."""

    weight: np.ndarray
    bias: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    z: float = 0.0

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The op's inputs, but for X, offset and max; weights ``[N, groups]`` (taps are unfolded later)."""
        ordered, head = self.weight[:, self.order], self.ends[0]
        return {
            "order": self.order,
            "ends": self.ends,
            "W_head": np.ascontiguousarray(ordered[:, :head]),
            "W_tail": np.ascontiguousarray(ordered[:, head:]),
            "bias": self.bias,
        }


def sample_variance(sums, squares, k):
    """Variance with ddof=1 from sums; 0 for one term; NaN stays."""
    if k < 2:
        return np.zeros_like(sums)
    variance = (squares - sums * sums / k) / (k - 1)
    return np.where(variance < 0, 0.0, variance)


def patches(x, kernel, strides, dilations, pads):
    """``[B, OH*OW, G, T]`` from ``[B, G, *spatial]``, padding as zeros."""
    rank = len(kernel)
    padded = np.pad(x, [(0, 0), (0, 0)] + [(pads[a], pads[rank + a]) for a in range(rank)])
    out = [(padded.shape[2 + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a in range(rank)]
    columns = []
    for tap in np.ndindex(*kernel):
        where = tuple(
            slice(tap[a] * dilations[a], tap[a] * dilations[a] + (out[a] - 1) * strides[a] + 1, strides[a])
            for a in range(rank)
        )
        columns.append(padded[(slice(None), slice(None), *where)].reshape(*x.shape[:2], int(np.prod(out))))
    return np.stack(columns, -1).transpose(0, 2, 1, 3), tuple(out)


@dataclass
class Expected:
    """Results, and where a float32 kernel may differ."""

    finished: np.ndarray  # Y of an output that survives
    scale: np.ndarray  # magnitude that its rounding is relative to
    alive: np.ndarray  # whether it survives all checks
    close: np.ndarray  # whether some check was too close to call
    survivors_low: np.ndarray
    survivors_high: np.ndarray

    def compare(self, y, survivors):
        """Asserts that a kernel's results are these."""
        with np.errstate(invalid="ignore"):
            same = np.abs(y - self.finished) <= ROUNDING * self.scale + 1e-30
        same |= (y == self.finished) | (np.isnan(y) & np.isnan(self.finished))
        # Where the true result is infinite or not a number, so is the kernel's, though maybe the other one.
        same |= ~np.isfinite(self.scale) & ~np.isfinite(y)
        same |= ~np.isfinite(self.scale) & (y == 0)  # min(inf - inf ...) may clip to either end
        zero = y == 0
        good = np.where(self.close, same | zero, np.where(self.alive, same, zero))
        assert good.all(), (y[~good][:5], self.finished[~good][:5], self.alive[~good][:5])
        assert (self.survivors_low <= survivors).all() and (survivors <= self.survivors_high).all(), (
            survivors,
            self.survivors_low,
            self.survivors_high,
        )


def staged_relu(kind, site: Staged, rows, offset, maximum) -> Expected:
    """A ReLU site on ``rows`` ``[M, G, T]`` with ``offset`` ``[M, N]`` (or a scalar)."""
    with np.errstate(all="ignore"):
        return _staged_relu(kind, site, rows, offset, maximum)


def _staged_relu(kind, site, rows, offset, maximum):
    x = rows[:, site.order].astype(np.float64)
    w = site.weight[:, site.order].astype(np.float64)
    products = x[:, None] * w[None]  # [M, N, G, T]
    terms, sizes = products.sum(-1), np.abs(products).sum(-1)
    bias = site.bias.astype(np.float64)
    offset = np.broadcast_to(np.asarray(offset, np.float64), terms.shape[:2])
    off = bias + offset
    alive = np.ones(off.shape, bool)
    close = np.zeros(off.shape, bool)
    norm = np.sqrt((x * x).sum((1, 2)))[:, None]
    low, high = [], []
    for check, k in enumerate(int(e) for e in site.ends[:-1]):
        partial, size = terms[..., :k].sum(-1), sizes[..., :k].sum(-1)
        p = {name: value[check].astype(np.float64) for name, value in site.parameters.items()}
        if kind == "Threshold":
            gap = p["scale"] * partial + off - p["limit"]
            doubt = ROUNDING * (
                np.abs(p["scale"]) * size + np.abs(bias) + np.abs(offset) + np.abs(p["limit"])
            )
        elif kind == "Stats":
            squares = (terms[..., :k] ** 2).sum(-1)
            variance = sample_variance(partial, squares, k)
            mean = partial / k + off / terms.shape[-1]
            cut = site.z * np.sqrt(variance / k)
            gap = mean - cut
            slip = (
                0.0
                if k < 2
                else ROUNDING * (squares + size * size / k + (sizes[..., :k] ** 2).sum(-1)) / (k - 1)
            )
            ends = [site.z * np.sqrt(np.maximum(variance + s, 0) / k) for s in (-slip, slip)]
            doubt = np.maximum(np.abs(ends[0] - cut), np.abs(ends[1] - cut))
            doubt = doubt + ROUNDING * (size / k + (np.abs(bias) + np.abs(offset)) / terms.shape[-1])
        else:
            tail = np.sqrt((x[:, k:] ** 2).sum((1, 2)))[:, None]
            magnitude = np.abs(bias) + np.abs(offset)
            reach = sound(p["radius"] * tail + p["slack"] * norm, magnitude, w[0].size)
            gap = partial + off + reach
            doubt = ROUNDING * (size + np.abs(bias) + np.abs(offset) + np.abs(reach))
        close |= alive & (np.abs(gap) <= doubt) & (doubt > 0)
        alive &= ~(gap < 0)
        low.append((alive & ~close).sum())
        high.append((alive | close).sum())
    z = terms.sum(-1) + off
    y = np.where(z <= 0, 0.0, z)
    y = np.where(y > maximum, maximum, y)
    scale = sizes.sum(-1) + np.abs(bias) + np.abs(offset)
    return Expected(y, scale, alive, close, np.array(low), np.array(high))


@dataclass
class ExpectedHead:
    """Indices of rows, and which rows are too close to call."""

    index: np.ndarray
    close: np.ndarray
    survivors: np.ndarray

    def compare(self, index, survivors):
        """Asserts that a kernel's results are these."""
        index = index.reshape(-1)
        assert (index[~self.close] == self.index[~self.close]).all(), (index, self.index, self.close)
        if not self.close.any():
            assert (survivors == self.survivors).all(), (survivors, self.survivors)


def staged_argmax(kind, site: Staged, rows, select_last=False, rounding=ROUNDING) -> ExpectedHead:
    """An ArgMax head on ``rows`` ``[M, G]``. With ``rounding=0`` nothing is close: for exact data."""
    with np.errstate(all="ignore"):
        results = [_argmax_row(kind, site, row, select_last, rounding) for row in rows]
    counts = sum((r[2] for r in results), np.zeros(len(site.ends) - 1, np.int64))
    index = np.array([r[0] for r in results], np.int64)
    return ExpectedHead(index, np.array([r[1] for r in results], bool), counts)


def _argmax_row(kind, site, row, select_last, rounding):
    x = row[site.order].astype(np.float64)
    w = site.weight[:, site.order, 0].astype(np.float64)
    b = site.bias.astype(np.float64)
    terms = w * x
    groups = len(x)
    alive = np.ones(len(b), bool)
    counts = np.zeros(len(site.ends) - 1, np.int64)
    close = False
    for check, k in enumerate(int(e) for e in site.ends[:-1]):
        if alive.sum() == 1:
            break
        partial, size = terms[:, :k].sum(1), np.abs(terms[:, :k]).sum(1)
        p = {name: value[check].astype(np.float64) for name, value in site.parameters.items()}
        if kind == "Stats":
            v = partial / k + b / groups
            if np.isnan(v[alive]).any():
                counts[check] = alive.sum()
                continue
            leader = int(np.argmax(np.where(alive, v, -np.inf)))
            doubt = rounding * (size / k + np.abs(b) / groups)
            rivals = alive & (v >= v[leader] - doubt - doubt[leader])
            close |= rivals.sum() > 1 and rounding > 0
            lead = (w - w[leader]) * x
            sums, squares = lead[:, :k].sum(1), (lead[:, :k] ** 2).sum(1)
            variance = sample_variance(sums, squares, k)
            cut = site.z * np.sqrt(variance / k)
            gap = sums / k + (b - b[leader]) / groups - cut
            slip = 0.0 if k < 2 else rounding * (squares + (size + size[leader]) ** 2) / (k - 1)
            ends = [site.z * np.sqrt(np.maximum(variance + s, 0) / k) for s in (-slip, slip)]
            doubt = doubt + doubt[leader] + np.maximum(np.abs(ends[0] - cut), np.abs(ends[1] - cut))
            gap[leader] = np.inf
        else:
            if kind == "Threshold":
                e, h = p["scale"] * partial + p["shift"], p["margin"]
                sizes = np.abs(p["scale"]) * size + np.abs(p["shift"]) + np.abs(h)
            else:
                tail, norm = np.linalg.norm(x[k:]), np.linalg.norm(x)
                e = partial + b
                h = sound(p["radius"] * tail + p["slack"] * norm, np.abs(b), x.size)
                sizes = size + np.abs(b) + np.abs(h)
            lower = e - h
            if np.isnan(lower[alive]).any():
                counts[check] = alive.sum()
                continue
            best = int(np.argmax(np.where(alive, lower, -np.inf)))
            gap = e + h - lower[best]
            doubt = rounding * (sizes + sizes[best])
        close |= bool((alive & (np.abs(gap) <= doubt) & (doubt > 0) & np.isfinite(gap)).any())
        alive &= ~(gap < 0)
        counts[check] = alive.sum() if alive.sum() > 1 else 0
    values = terms.sum(1) + b
    classes = np.flatnonzero(alive)
    top = classes[0]
    if len(classes) > 1:  # a NaN is above nothing, but nothing is above one in first place
        known = classes[~np.isnan(values[classes])]
        best = known[values[known] == values[known].max()] if len(known) else classes[:0]
        top = 0 if (alive[0] and np.isnan(values[0])) or not len(known) else best[-1 if select_last else 0]
    doubt = rounding * (np.abs(terms).sum(1) + np.abs(b))
    others = classes[classes != top]
    if len(classes) > 1 and rounding > 0:
        close |= bool((values[others] + doubt[others] >= values[top] - doubt[top]).any())
    return int(top), bool(close), counts
