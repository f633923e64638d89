"""What every ``com.exprune`` op must compute, written down plainly: float64, no cleverness.

Each function takes the op's inputs as NumPy arrays (float32 and int64), its attributes as keywords,
and returns an :class:`Outcome`. Letters: ``R`` rows (output positions), ``N`` outputs, ``G`` groups,
``T`` taps, ``S`` checks.

Float32 arithmetic cannot be expected to take a decision that is closer to its cut than rounding
reaches, nor the decisions that follow from it: ``Outcome.unsure`` marks those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

EPS = 2.0**-23
#: Rounding that is allowed for, relative to the sum of the absolute values that were added up.
ROUNDING = 16 * EPS


def sound(reach: np.ndarray, magnitude: np.ndarray, terms: int) -> np.ndarray:
    """The reach of a sound bound with what rounding adds, as ``runtime/kernels/tests.h`` says."""
    rounding = (4 * EPS + 8e-8 * (terms + 4)) * magnitude + 1e-30
    reach = (reach + rounding) * (1 + 1e-5)
    return np.where(reach < 5e31, reach, np.inf)


@dataclass
class Outcome:
    """What an op computes.

    Attributes:
        output: ``Y`` (float64) or the index (int64), in the op's own shape.
        survivors: ``[S]`` int64.
        distance: ``[S, R, N]``: value minus cut of every decision, below 0 where it prunes; NaN
            where nothing is decided any more (or never: ``SparseGemm``).
        rounding: ``[S, R, N]``: how far float32 rounding can move that distance.
        unsure: ``[S, R, N]``: whether rounding can change what is undecided after check s.
    """

    output: np.ndarray
    survivors: np.ndarray
    distance: np.ndarray
    rounding: np.ndarray
    unsure: np.ndarray


def patches(x: np.ndarray, kernel, strides, dilations, pads) -> tuple[np.ndarray, tuple[int, ...]]:
    """Input of a Conv as rows ``[R, G, T]``, and the output's ``(batch, *out)``; R runs over those."""
    rank = len(kernel)
    x = np.pad(x, [(0, 0), (0, 0), *((pads[a], pads[rank + a]) for a in range(rank))])
    out = [(x.shape[2 + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a in range(rank)]
    taps = []
    for tap in np.ndindex(*kernel):
        cut = [slice(None), slice(None)]
        for a in range(rank):
            first = tap[a] * dilations[a]
            cut.append(slice(first, first + (out[a] - 1) * strides[a] + 1, strides[a]))
        taps.append(x[tuple(cut)])
    stacked = np.stack(taps, axis=-1)  # [batch, G, *out, T]
    rows = np.moveaxis(stacked, 1, -2)  # [batch, *out, G, T]
    return rows.reshape(-1, *rows.shape[-2:]), (x.shape[0], *out)


class _Layer:
    """The terms of a layer in the order of its reduction: ``terms [R, N, G]``, all float64."""

    def __init__(self, rows, order, w_head, w_tail):
        weights = np.concatenate([w_head, w_tail], axis=1).astype(np.float64)
        weights = weights.reshape(*weights.shape[:2], -1)
        self.rows = rows.astype(np.float64)[:, order]
        self.terms = np.einsum("rgt,ngt->rng", self.rows, weights)
        self.sizes = np.einsum("rgt,ngt->rng", abs(self.rows), abs(weights))  # what rounding scales with
        self.shape = self.terms.shape
        self.groups_and_taps = weights[0].size

    def norm(self, start):
        """Norm of each row's input over the groups from ``start`` on, ``[R, 1]``."""
        return np.sqrt((self.rows[:, start:] ** 2).sum(axis=(1, 2)))[:, None]


def _spread(terms, sizes_squared, z):
    """``z`` standard errors of the terms' mean, ``[R, N]``, and what rounding may add to it."""
    k = terms.shape[2]
    if k == 1:
        return np.zeros(terms.shape[:2]), np.zeros(terms.shape[:2])
    variance = terms.var(axis=2, ddof=1)
    noise = ROUNDING * sizes_squared / (k - 1)
    widest = np.sqrt((variance + noise) / k)
    narrowest = np.sqrt(np.maximum(variance - noise, 0) / k)
    return z * np.sqrt(variance / k), abs(z) * (widest - narrowest)


def _close(distance, rounding):
    """Decisions within rounding. NaN and infinity decide for certain."""
    return np.isfinite(distance) & (abs(distance) <= rounding)


def _relu(layer, ends, off, ceiling, test):
    """Chunks, checks and ReLU for rows. ``test(s, e)`` gives value, cut and rounding, ``[R, N]``."""
    checks = len(ends) - 1
    alive = np.ones(layer.shape[:2], bool)
    survivors = np.zeros(checks, np.int64)
    distance = np.full((checks, *alive.shape), np.nan)
    rounding = np.zeros_like(distance)
    unsure = np.zeros(distance.shape, bool)
    for s in range(checks):
        value, cut, noise = test(s, ends[s])
        gap = np.where(value == cut, 0, value - cut)
        distance[s] = np.where(alive, gap, np.nan)
        rounding[s] = noise
        unsure[s] = _close(gap, noise) | (unsure[s - 1] if s else False)
        alive &= ~(value < cut)
        survivors[s] = alive.sum()
    value = layer.terms.sum(axis=2) + off
    output = np.where(alive, np.minimum(np.where(value < 0, 0, value), ceiling), 0)
    return output, survivors, distance, rounding, unsure


def _threshold(layer, off, scale, limit):
    def test(s, e):
        value = scale[s] * layer.terms[:, :, :e].sum(axis=2) + off
        noise = abs(scale[s]) * layer.sizes[:, :, :e].sum(axis=2) + abs(off) + abs(limit[s])
        return value, np.broadcast_to(limit[s], value.shape).astype(np.float64), ROUNDING * noise

    return test


def _stats(layer, off, z):
    groups = layer.shape[2]

    def test(s, e):
        terms, sizes = layer.terms[:, :, :e], layer.sizes[:, :, :e]
        mean = terms.sum(axis=2) / e + off / groups
        cut, noise = _spread(terms, (sizes**2).sum(axis=2), z)
        return mean, cut, noise + ROUNDING * (sizes.sum(axis=2) / e + abs(off) / groups + abs(cut))

    return test


def _bound(layer, off, off_size, radius, slack):
    def test(s, e):
        value = layer.terms[:, :, :e].sum(axis=2) + off
        reach = sound(radius[s] * layer.norm(e) + slack[s] * layer.norm(0), off_size, layer.groups_and_taps)
        value = value + reach
        noise = ROUNDING * (layer.sizes[:, :, :e].sum(axis=2) + abs(off) + abs(reach))
        return value, np.zeros_like(value), noise

    return test


def _relu_op(kind, rows, to_rows, from_rows, order, ends, w_head, w_tail, bias, offset, ceiling, *parameters):
    layer = _Layer(rows, order, w_head, w_tail)
    bias, offset = bias.astype(np.float64), offset.astype(np.float64)
    offset = to_rows(offset) if offset.size != 1 else offset.reshape(1, 1)
    off = np.broadcast_to(bias + offset, layer.shape[:2])
    parameters = [p.astype(np.float64) if isinstance(p, np.ndarray) else p for p in parameters]
    if kind == "threshold":
        test = _threshold(layer, off, *parameters)
    elif kind == "stats":
        test = _stats(layer, off, *parameters)
    else:
        test = _bound(layer, off, abs(bias) + abs(offset), *parameters)
    output, *rest = _relu(layer, ends, off, float(ceiling[0]), test)
    return Outcome(from_rows(output), *rest)


def _gemm(kind, x, order, ends, w_head, w_tail, bias, *rest):
    lead, n = x.shape[:-1], bias.size
    return _relu_op(
        kind,
        x.reshape(math.prod(lead), x.shape[-1], 1),
        lambda t: t.reshape(math.prod(lead), n),
        lambda t: t.reshape(*lead, n),
        order, ends, w_head, w_tail, bias, *rest,
    )  # fmt: skip


def _conv(kind, geometry, x, order, ends, w_head, w_tail, bias, *rest):
    rows, (batch, *out) = patches(x, w_head.shape[2:], **geometry)
    n = bias.size
    return _relu_op(
        kind,
        rows,
        lambda t: np.moveaxis(t, 1, -1).reshape(-1, n),
        lambda t: np.moveaxis(t.reshape(batch, *out, n), -1, 1),
        order, ends, w_head, w_tail, bias, *rest,
    )  # fmt: skip


def prefix_gemm_threshold(*inputs):
    """Inputs: X, order, ends, W_head, W_tail, bias, offset, max, scale, limit."""
    return _gemm("threshold", *inputs)


def prefix_gemm_stats(*inputs, z):
    """Inputs: X, order, ends, W_head, W_tail, bias, offset, max."""
    return _gemm("stats", *inputs, z)


def prefix_gemm_bound(*inputs):
    """Inputs: X, order, ends, W_head, W_tail, bias, offset, max, radius, slack."""
    return _gemm("bound", *inputs)


def prefix_conv_threshold(*inputs, **geometry):
    """Inputs as for the Gemm; attributes strides, dilations, pads."""
    return _conv("threshold", geometry, *inputs)


def prefix_conv_stats(*inputs, z, **geometry):
    """Inputs as for the Gemm; attributes strides, dilations, pads, z."""
    return _conv("stats", geometry, *inputs, z)


def prefix_conv_bound(*inputs, **geometry):
    """Inputs as for the Gemm; attributes strides, dilations, pads."""
    return _conv("bound", geometry, *inputs)


def sparse_gemm(x, w, bias):
    """Inputs: X, W, bias. The count is exact, so there are no distances."""
    lead = x.shape[:-1]
    y = x.astype(np.float64).reshape(math.prod(lead), x.shape[-1]) @ w.astype(np.float64) + bias
    nothing = np.zeros((1, *y.shape))
    count = np.array([np.count_nonzero(~(x == 0))])
    return Outcome(y.reshape(*lead, bias.size), count, nothing * np.nan, nothing, nothing.astype(bool))


def _row_winner(scores, alive, last):
    """First (or last) index of the largest score among the alive ones; None when one is NaN."""
    classes = np.flatnonzero(alive)
    if len(classes) == 1:
        return classes[0]
    if np.isnan(scores[classes]).any():
        return None
    best = classes[scores[classes] == scores[classes].max()]
    return best[-1] if last else best[0]


def _argmax_op(x, order, ends, w_head, w_tail, bias, test, keepdims, select_last_index):
    """Head ops. ``test(layer, bias, s, e, row, alive)`` gives value, cut, rounding ``[N]``, or None.

    A row's winner that rounding could change is marked unsure as a whole row; a NaN among the
    scores of an undecided row gives the index -1, "unspecified".
    """
    lead = x.shape[:-1]
    layer = _Layer(x.reshape(math.prod(lead), x.shape[-1], 1), order, w_head, w_tail)
    bias = bias.astype(np.float64)
    checks, (rows, n, _) = len(ends) - 1, layer.shape
    survivors = np.zeros(checks, np.int64)
    distance = np.full((checks, rows, n), np.nan)
    rounding = np.zeros_like(distance)
    unsure = np.zeros(distance.shape, bool)
    index = np.zeros(rows, np.int64)
    for r in range(rows):
        alive = np.ones(n, bool)
        for s in range(checks):
            decided = test(layer, bias, s, ends[s], r, alive) if alive.sum() > 1 else None
            unsure[s, r] = unsure[s - 1, r] if s else False
            if decided is not None:
                value, cut, noise = decided
                gap = np.where(value == cut, 0, value - cut)
                distance[s, r] = np.where(alive, gap, np.nan)
                rounding[s, r] = noise
                unsure[s, r] |= (_close(gap, noise) & alive).any()
                alive &= ~(value < cut)
            survivors[s] += alive.sum() if alive.sum() != 1 else 0
        scores = layer.terms[r].sum(axis=1) + bias
        winner = _row_winner(scores, alive, select_last_index)
        index[r] = -1 if winner is None else winner
        if winner is not None and alive.sum() > 1:
            near = abs(scores - scores[winner]) <= ROUNDING * (layer.sizes[r].sum(axis=1) + abs(bias)).max()
            if (near & alive).sum() > 1 and (layer.terms[r] != layer.terms[r, winner])[near & alive].any():
                unsure[-1, r] = True
    shape = (*lead, 1) if keepdims else lead
    return Outcome(index.reshape(shape), survivors, distance, rounding, unsure)


def prefix_argmax_threshold(
    x, order, ends, w_head, w_tail, bias, scale, shift, margin, *, keepdims, select_last_index
):
    """Inputs: X, order, ends, W_head, W_tail, bias, scale, shift, margin."""

    def test(layer, bias, s, e, r, alive):
        estimate = scale[s].astype(np.float64) * layer.terms[r, :, :e].sum(axis=1) + shift[s]
        lower = estimate - margin[s]
        if np.isnan(lower[alive]).any():
            return None
        noise = abs(scale[s]) * layer.sizes[r, :, :e].sum(axis=1) + abs(shift[s]) + abs(margin[s])
        return estimate + margin[s], np.full(estimate.shape, lower[alive].max()), ROUNDING * 2 * noise.max()

    return _argmax_op(x, order, ends, w_head, w_tail, bias, test, keepdims, select_last_index)


def prefix_argmax_bound(x, order, ends, w_head, w_tail, bias, radius, slack, *, keepdims, select_last_index):
    """Inputs: X, order, ends, W_head, W_tail, bias, radius, slack."""

    def test(layer, bias, s, e, r, alive):
        estimate = layer.terms[r, :, :e].sum(axis=1) + bias
        reach = radius[s].astype(np.float64) * layer.norm(e)[r] + slack[s] * layer.norm(0)[r]
        reach = sound(reach, abs(bias), layer.groups_and_taps)
        lower = estimate - reach
        if np.isnan(lower[alive]).any():
            return None
        noise = (layer.sizes[r, :, :e].sum(axis=1) + abs(bias) + abs(reach)).max()
        return estimate + reach, np.full(estimate.shape, lower[alive].max()), ROUNDING * 2 * noise

    return _argmax_op(x, order, ends, w_head, w_tail, bias, test, keepdims, select_last_index)


def prefix_argmax_stats(x, order, ends, w_head, w_tail, bias, *, z, keepdims, select_last_index):
    """Inputs: X, order, ends, W_head, W_tail, bias."""

    def test(layer, bias, s, e, r, alive):
        groups = layer.shape[2]
        terms, sizes = layer.terms[r, :, :e], layer.sizes[r, :, :e]
        value = terms.sum(axis=1) / e + bias / groups
        leader = _row_winner(value, alive, last=False)
        if leader is None:
            return None
        mean = (terms - terms[leader]).sum(axis=1) / e + (bias - bias[leader]) / groups
        squares = (sizes**2).sum(axis=1)
        cut, noise = _spread((terms - terms[leader])[None], (squares + squares[leader])[None], z)
        noise = noise[0] + ROUNDING * 2 * (sizes.sum(axis=1).max() / e + abs(bias).max() / groups)
        # a leader by less than rounding may be another one elsewhere: then the row is unsure
        runner_up = np.delete(value[alive], np.flatnonzero(alive).tolist().index(leader)).max()
        if value[leader] - runner_up <= ROUNDING * (sizes.sum(axis=1).max() / e + abs(bias).max() / groups):
            noise = np.full_like(noise, np.inf)
        others = np.arange(len(mean)) != leader
        return np.where(others, mean, np.inf), cut[0], noise

    return _argmax_op(x, order, ends, w_head, w_tail, bias, test, keepdims, select_last_index)


def _rows_of_conv(x, w, offset, geometry):
    """Rows of a Conv's input, the offset by row, and how rows become ``Y``; ``w`` is ``[G, N, *kernel]``."""
    rows, lead = patches(x, w.shape[2:], geometry["strides"], geometry["dilations"], geometry["pads"])
    offset = offset.astype(np.float64)
    if offset.size != 1:
        return rows, lead, np.moveaxis(offset, 1, -1).reshape(len(rows), w.shape[1])
    return rows, lead, offset.reshape(1, 1)


def _blocked(x, order, ends, w, bias, offset, ceiling, parameters, sums, size, geometry):
    """A Conv with one decision for the outputs that ``sums`` adds up, at most ``size`` of them."""
    rows, lead, offset = _rows_of_conv(x, w, offset, geometry)
    layer = _Layer(rows, order, np.moveaxis(w, 0, 1), np.moveaxis(w, 0, 1)[:, :0])
    off = bias.astype(np.float64) + offset
    scale, shift, limit = parameters

    def test(s, e):
        value = scale[s] * layer.terms[:, :, :e].sum(axis=2) + off + shift[s]
        positive = np.where(value < 0, 0, value)
        noise = abs(scale[s]) * layer.sizes[:, :, :e].sum(axis=2) + abs(off) + abs(shift[s])
        noise = ROUNDING * noise
        score = sums(positive**2, lead)
        spread = (
            sums(np.where(value < -noise, 0, 2 * noise * abs(positive) + noise**2), lead)
            + ROUNDING * size * score
        )
        return score, np.broadcast_to(limit[s], score.shape).astype(np.float64), spread

    y, survivors, distance, rounding, unsure = _relu(layer, ends, off, float(ceiling[0]), test)
    y = np.moveaxis(y.reshape(*lead, w.shape[1]), -1, 1)
    return Outcome(y, survivors, distance, rounding, unsure)


def prefix_conv_block(x, order, ends, w, bias, offset, ceiling, scale, shift, limit, block, **geometry):
    """Inputs: X, order, ends, W, bias, offset, max, scale, shift, limit, block."""
    run = int(block[0])

    def sums(values, lead):
        """Sums over the blocks, at each of their positions."""
        positions = math.prod(lead[1:])
        by_image = values.reshape(lead[0], positions, w.shape[1])
        total = np.zeros_like(by_image)
        for start in range(0, positions, run):
            total[:, start : start + run] = by_image[:, start : start + run].sum(axis=1, keepdims=True)
        return total.reshape(values.shape)

    return _blocked(x, order, ends, w, bias, offset, ceiling, (scale, shift, limit), sums, run, geometry)


def energy_order(image, weight_energy):
    """Groups of ``[G, *spatial]`` by falling sum of squares times ``weight_energy``, rounded to float32."""
    largest = np.finfo(np.float32).max
    squares = (image.astype(np.float64) ** 2).reshape(len(image), -1).sum(axis=1)
    score = (squares * weight_energy).astype(np.float32)
    return np.argsort(-np.where(score < largest, score, largest), kind="stable")


def dynamic_prefix_conv_block(x, weight_energy, ends, w, bias, offset, *parameters, **geometry):
    """Inputs: X, weight_energy, ends, W, bias, offset, max, scale, shift, limit, block."""
    if not len(x):
        return prefix_conv_block(x, np.arange(len(w)), ends, w, bias, offset, *parameters, **geometry)
    each = []
    for i, image in enumerate(x):
        order = energy_order(image, weight_energy)
        own = offset if offset.size == 1 else offset[i : i + 1]
        each.append(prefix_conv_block(image[None], order, ends, w[order], bias, own, *parameters, **geometry))
    joined = (
        np.concatenate([getattr(e, part) for e in each], axis=1)
        for part in ("distance", "rounding", "unsure")
    )
    return Outcome(
        np.concatenate([e.output for e in each]), np.sum([e.survivors for e in each], axis=0), *joined
    )


def sparse_conv_threshold(x, order, ends, w, bias, offset, ceiling, scale, limit, **geometry):
    """Inputs: X, order, ends, W ``[G, *kernel, N]``, bias, offset, max, scale, limit.

    ``survivors`` goes on with the multiply-accumulates of each chunk: those whose input is not zero, of the
    outputs that the check before left undecided.
    """
    natural = np.moveaxis(w, -1, 1)
    rows, lead, offset = _rows_of_conv(x, natural, offset, geometry)
    layer = _Layer(rows, order, np.moveaxis(natural, 0, 1), np.moveaxis(natural, 0, 1)[:, :0])
    off = bias.astype(np.float64) + offset
    y, survivors, distance, rounding, unsure = _relu(
        layer,
        ends,
        np.broadcast_to(off, layer.shape[:2]),
        float(ceiling[0]),
        _threshold(layer, off, scale, limit),
    )
    undecided = np.full(len(rows), w.shape[-1])
    alive = np.ones(layer.shape[:2], bool)
    work, start = [], 0
    for s, end in enumerate(ends):
        work.append(int(((layer.rows[:, start:end] != 0).sum(axis=(1, 2)) * undecided).sum()))
        start = end
        if s < len(distance):
            alive &= ~(distance[s] < 0)
            undecided = alive.sum(axis=1)
    y = np.moveaxis(y.reshape(*lead, w.shape[-1]), -1, 1)
    return Outcome(y, np.concatenate([survivors, np.array(work, np.int64)]), distance, rounding, unsure)


def conv_relu(x, w, bias, offset, ceiling, **geometry):
    """Inputs: X, W, bias, offset, max. Nothing is decided."""
    rows, lead, offset = _rows_of_conv(x, w, offset, geometry)
    layer = _Layer(rows, np.arange(len(w)), np.moveaxis(w, 0, 1), np.moveaxis(w, 0, 1)[:, :0])
    off = bias.astype(np.float64) + offset
    off = np.broadcast_to(off, layer.shape[:2])
    y, *rest = _relu(layer, [len(w)], off, float(ceiling[0]), None)
    return Outcome(np.moveaxis(y.reshape(*lead, w.shape[1]), -1, 1), *rest)


def panel_weights(w, outputs, channels=None):
    """``[G, N, *kernel]`` in the outputs' order, of ``[ceil(N / 16), *kernel, G, 16]`` in that of ``channels``."""
    rows = np.moveaxis(np.moveaxis(w, -1, 1), -1, 2).reshape(-1, w.shape[-2], *w.shape[1:-2])[:outputs]
    natural = np.empty_like(rows)
    natural[np.arange(outputs) if channels is None else channels] = rows
    return np.moveaxis(natural, 0, 1)


def prefix_conv_panel(x, order, ends, w, bias, offset, ceiling, scale, shift, limit, channels, **geometry):
    """Inputs: X, order, ends, W, bias, offset, max, scale, shift, limit, channels."""
    w = panel_weights(w, len(bias), channels)
    panel = np.empty(len(bias), np.int64)
    panel[channels] = np.arange(len(bias)) // 16
    same = (panel[:, None] == panel[None]).astype(np.float64)

    def sums(values, lead):
        """Sums over the outputs of a panel, at each of them."""
        with np.errstate(invalid="ignore"):
            clean = np.where(np.isfinite(values), values, 0) @ same
            wild = np.where(np.isfinite(values), 0, values)
            total = np.stack([wild[:, panel == p].sum(axis=1) for p in panel], axis=1)
        return np.where(np.isfinite(total), clean, total)

    return _blocked(
        x, order, ends, w, bias, offset, ceiling, (scale, shift, limit[:, panel]), sums, 16, geometry
    )


def conv_relu_panel(x, w, bias, offset, ceiling, **geometry):
    """Inputs: X, W, bias, offset, max. Nothing is decided."""
    return conv_relu(x, panel_weights(w, len(bias)), bias, offset, ceiling, **geometry)


#: The oracle of each op; all take the op's inputs, then its attributes by keyword.
ORACLES = {
    "PrefixGemmThreshold": prefix_gemm_threshold,
    "PrefixGemmStats": prefix_gemm_stats,
    "PrefixGemmBound": prefix_gemm_bound,
    "PrefixConvThreshold": prefix_conv_threshold,
    "PrefixConvStats": prefix_conv_stats,
    "PrefixConvBound": prefix_conv_bound,
    "PrefixConvBlock": prefix_conv_block,
    "DynamicPrefixConvBlock": dynamic_prefix_conv_block,
    "ConvRelu": conv_relu,
    "SparseConvThreshold": sparse_conv_threshold,
    "PrefixConvPanel": prefix_conv_panel,
    "ConvReluPanel": conv_relu_panel,
    "PrefixArgMaxThreshold": prefix_argmax_threshold,
    "PrefixArgMaxStats": prefix_argmax_stats,
    "PrefixArgMaxBound": prefix_argmax_bound,
    "SparseGemm": sparse_gemm,
}
