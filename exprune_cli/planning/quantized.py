"""The quantised estimate: codes of the weights, and a sound bound on what they hide.

A row of weights ``w`` is coded as ``w^ = scale (code - zero)``, an input ``x`` when the site runs
as ``x^`` (one or two planes of 8 bits with a common step, or one of 16). Then, by Cauchy-Schwarz,

    |w x - w^ x^| = |(w - w^) x + w^ (x - x^)| <= ||w - w^|| ||x|| + ||w^|| ||x - x^||

which the op adds to the estimate ``w^ x^ + bias + offset``; its sum is exact, in integers: 65536
products of 255 x 127 stay below 2^31. The codes of a plane of 8 bits end at T = 127, those of one of 16
bits at ``T = min(32767, (2^31 - 1) / (128 G))``, so that G products with 128 do so too.

Rounding, with the claim, the notation and the steps of :mod:`exprune_cli.planning.bound`:

1. The dense sum, or our own of a survivor, errs by at most ``gamma_(G+3) (A + B)``. In ``error``
   there is ``2 gamma_(G+4) ||w||``, twice what A needs; what B needs, the op adds.
2. The estimate. Let H and L be the integer sums of the planes, c = fl(1/254), and s the product of
   the scale and the step. As ``|round(u)| <= 2 |u|``, the planes have at most twice the norm of x
   each (in units of the step, times 254 for L), so ``s |H|``, ``s |L| / 254`` and their sum are at
   most ``2 ||w^|| ||x||``; a plane of 16 bits has no L. H and L become floats (u each), L is multiplied by c (2 u: c is rounded
   too), they are added (u), multiplied by s (2 u: s is rounded too), and bias + offset is added (u of
   the result). That is at most (1 + 3 + 1 + 2 + 1) u of ``2 ||w^|| ||x||``: ``16 u ||w^||`` is in
   ``error``. What the last two sums lose on bias and offset is less than 8 u of B.
3. The norms of x that the op takes, see ``runtime/kernels/quantized.h``: with m = max |x|,
   ``step = fl(m / T)`` and ``u_i = fl(x_i fl(T / m))`` are off by at most u and 2 u, so that
   ``|x_i - step u_i| <= 3.1 u |x_i|``. ``u_i - hi`` is exact; ``rest`` loses at most 1e-7 per element
   on the product and the difference with ``lo / 254``, which is at most ``1e-7 sqrt(G) <= 2.6e-5`` of a
   step against ``||x|| >= T`` steps, and T is at least 127. The ``1e-6 ||x||`` in its error covers both. Sums of G squares in
   float err by ``gamma_G``, their roots by half of it; the factor ``1 + 6e-8 (G + 64)`` covers that and
   the products. Squares that underflow belong to elements below 1e-19 of the largest.
4. ``error`` and ``norm`` are rounded up; the op's arithmetic on the reach, underflow and overflow are as
   there. An x with max |x| outside 1e-30 .. 1e30 is not estimated: the steps stay normal numbers. The
   reach holds ``1e-6 ||w^|| ||x||`` too, so an estimate that overflows has an infinite one.

For the k best classes: a class is out only if its upper end is below the lower ends of k others.
"""

from __future__ import annotations

import numpy as np

from exprune_cli.planning.bound import gamma, rounding_up
from exprune_cli.planning.chunks import known_offset
from exprune_cli.sites import Site, SitePlan, SiteStatistics

_UNIT = 2.0**-24
#: Groups that integer sums of 255 * 127 leave room for in 32 bits.
MOST_GROUPS = 65536
#: Shares of the largest weight that the codes may end at; weights beyond are cut off.
_CUTS = (1.0, 0.9, 0.8, 0.7, 0.6)
#: Largest weights between these keep all sums and steps normal numbers.
_LOWEST, _HIGHEST = 1e-30, 1e30
_ELEMENTS = 2**22  # in work at once
_BLOCK = 16  # outputs and groups of a block of codes


#: Rows x outputs that are looked at for the share that the bound decides.
_LOOKED_AT = 2**23


def plan_quantized(site: Site, statistics: SiteStatistics | None = None) -> SitePlan | None:
    """The lossless plan for latency: bytes decide, what they leave open is computed in full.

    Heads read 6-bit codes: their winners stand out so far that four times the error hardly adds
    candidates. ReLU layers need the 8 bits.

    Args:
        site: The site.
        statistics: With them the plan says which share of the outputs is expected to be decided.

    Returns:
        The plan; None for a site that has no such form (a Conv, a sparse consumer, too wide).
    """
    if site.conv is not None or site.kind == "sparse" or site.groups > MOST_GROUPS:
        return None
    head = site.kind in ("argmax", "top_k")
    bits = 6 if head else 8
    weight = site.load_weight()[:, :, 0]
    plan = SitePlan(
        site.name,
        staged=True,
        reason=f"bounds from {bits}-bit weights, lossless",
        estimate="quantized",
        test="bound",
        parameters=quantized_parameters(weight, bits),
    )
    if statistics is not None and len(statistics.rows):
        plan.pruned = (_decided(site, weight, plan.parameters, statistics),)
    return plan


def extra_bytes(plan: SitePlan) -> int:
    """Bytes that the estimate adds to a model: the codes and three numbers per output."""
    return sum(plan.parameters[name].nbytes for name in ("codes", "scale", "error", "norm"))


def _decided(
    site: Site, weight: np.ndarray, parameters: dict[str, np.ndarray], statistics: SiteStatistics
) -> float:
    """Share of the outputs of the sampled rows that the bound decides.

    The exact sums stand for the estimates, which differ from them by less than the bound.
    """
    limit = max(16, _LOOKED_AT // site.outputs)
    rows = statistics.rows[:limit, :, 0]
    offset = known_offset(site, statistics)
    final = rows @ weight.T + (offset[:limit] if offset.ndim == 2 else offset)
    reach = parameters["error"] * np.linalg.norm(rows, axis=1)[:, None]
    if site.kind == "relu":
        return float((final + reach < 0).mean())
    bar = np.partition(final - reach, -site.k, axis=1)[:, -site.k, None]
    return float((final + reach < bar).mean())


def quantized_parameters(weight: np.ndarray, bits: int = 8) -> dict[str, np.ndarray]:
    """The arrays of the quantised estimate.

    Args:
        weight: ``[N, G]`` float32.
        bits: 8, or 6: three quarters of the bytes, four times the error.

    Returns:
        ``codes`` uint8, see :func:`pack`; ``scale``, ``error`` and ``norm`` ``[N]`` float32, the last
        two rounded up. Rows that cannot be coded (not finite, or out of range) have an infinite
        ``error``: all of their outputs survive.
    """
    outputs, groups = weight.shape
    codes = np.empty((outputs, groups), np.uint8)
    arrays = {name: np.empty(outputs, np.float32) for name in ("scale", "error", "norm")}
    step = max(1, _ELEMENTS // max(1, groups))
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        codes[part], scale, error, norm = _code_rows(weight[part].astype(np.float64), 2 ** (bits - 1) - 1)
        arrays["scale"][part] = scale
        arrays["error"][part] = rounding_up(error)
        arrays["norm"][part] = rounding_up(norm)
    return {"codes": pack(codes, bits), **arrays}


def _code_rows(weight: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes (in -most .. most, plus most + 1), scale, error and norm of some rows.

    Each row is cut where its error is smallest.
    """
    with np.errstate(invalid="ignore"):
        top = np.abs(weight).max(axis=1)
    known = np.isfinite(weight).all(axis=1)
    coded = known & (top <= _HIGHEST) & ((top >= _LOWEST) | (top == 0))
    clean = np.where(coded[:, None], weight, 0.0)
    best = np.full(len(weight), np.inf)
    codes = np.full(weight.shape, most + 1, np.uint8)
    scale = np.zeros(len(weight), np.float32)
    for cut in _CUTS:
        trial = (np.where(coded, top, 0.0) * cut / most).astype(np.float32)
        step = np.where(trial > 0, trial, 1).astype(np.float64)[:, None]
        level = np.clip(np.rint(clean / step), -most, most)
        rest = np.linalg.norm(clean - level * trial.astype(np.float64)[:, None], axis=1)
        better = rest < best
        best = np.where(better, rest, best)
        scale = np.where(better, trial, scale)
        codes[better] = (level[better] + most + 1).astype(np.uint8)
    norm = np.linalg.norm((codes.astype(np.float64) - most - 1) * scale.astype(np.float64)[:, None], axis=1)
    error = best + 2 * gamma(weight.shape[1] + 4) * np.linalg.norm(clean, axis=1) + 16 * _UNIT * norm
    return codes, scale, np.where(coded, error, np.inf), norm


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``[N, G]`` as the kernel reads them: ``[ceil(N / 16), ceil(G / 16) * 32 * bits]`` bytes.

    In blocks of 16 outputs and 16 groups, padded with codes of zero: four vectors of 64 codes, vector
    i with groups 4 i to 4 i + 3 of every output. Of 6-bit codes, the fourth vector is spread, lowest
    bits first, over the high bits of the other three.
    """
    outputs, groups = codes.shape
    rows, columns = -(-outputs // _BLOCK), -(-groups // _BLOCK)
    padded = np.full((rows * _BLOCK, columns * _BLOCK), 2 ** (bits - 1), np.uint8)
    padded[:outputs, :groups] = codes
    vectors = (
        padded.reshape(rows, _BLOCK, columns, 4, 4).transpose(0, 2, 3, 1, 4).reshape(rows, columns, 4, 64)
    )
    if bits == 6:
        last = vectors[:, :, 3]
        vectors = np.stack([vectors[:, :, i] | ((last >> (2 * i) & 3) << 6) for i in range(3)], axis=2)
    return np.ascontiguousarray(vectors).reshape(rows, -1)
