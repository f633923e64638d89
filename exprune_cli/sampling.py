"""A uniform sample of a site's rows: which rows, and how they are cut out of its input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exprune_cli.sites import ConvGeometry, Site

#: A site's sample takes about this much, within the limits that follow.
_SAMPLE_BYTES = 4 * 2**20
_MIN_ROWS, _MAX_ROWS = 512, 2048

#: Cuts rows out: takes positions ``[n]``, returns ``[n, T, G]`` and offsets ``[n, N]`` or None. The
#: groups come last because whole pixels are copied several times faster than single taps.
Gather = Callable[[np.ndarray], tuple[np.ndarray, "np.ndarray | None"]]


def row_limit(groups: int, taps: int) -> int:
    """How many rows of a site are kept: 4 MiB worth of them, at least 512, at most 2048.

    What is estimated from them is a handful of numbers per output (a regression's two to four
    parameters and its residual deviation, which 512 rows give within 3 %). The limit depends on
    the site alone, so that samples of several data sets can be merged, and part of the
    calibration file's format: changing it changes the version.
    """
    return int(np.clip(_SAMPLE_BYTES // (4 * groups * taps), _MIN_ROWS, _MAX_ROWS))


class Reservoir:
    """The rows with the smallest keys of all that were offered.

    Only rows whose key is small enough to enter are cut out, so that the cost of the n-th
    sample falls as 1/n. Rows that are not finite do not enter.
    """

    def __init__(self, limit: int, groups: int, taps: int, outputs: int | None) -> None:
        """Args:
        limit: How many rows are kept.
        groups, taps: Shape of a row.
        outputs: Length of a row's offsets; None without.
        """
        self._limit = limit
        self._size = 0
        # Memory that is never written is never taken.
        self._keys = np.empty(limit, np.uint64)
        self._rows = np.empty((limit, taps, groups), np.float32)
        self._offsets = None if outputs is None else np.empty((limit, outputs), np.float32)

    def offer(self, keys: np.ndarray, gather: Gather) -> None:
        """Offers rows ``0 .. n-1`` with their ``keys`` ``[n]`` uint64."""
        if self._size == self._limit:
            candidates = np.flatnonzero(keys < self._keys.max())
        else:
            candidates = np.arange(len(keys))
        candidates = candidates[np.argsort(keys[candidates], kind="stable")]
        start, found = 0, 0
        # Rows that are not finite drop out, so the next smallest keys are looked at too.
        while start < len(candidates) and found < self._limit:
            part = candidates[start : start + self._limit - found]
            start += len(part)
            rows, offsets = gather(part)
            good = np.isfinite(rows).all(axis=(1, 2))
            if offsets is not None:
                good &= np.isfinite(offsets).all(axis=1)
            found += int(good.sum())
            if not good.all():
                rows, offsets = rows[good], None if offsets is None else offsets[good]
            self._enter(keys[part[good]], rows, offsets)

    def _enter(self, keys: np.ndarray, rows: np.ndarray, offsets: np.ndarray | None) -> None:
        size = self._size
        everything = np.concatenate([self._keys[:size], keys])
        stay = np.zeros(len(everything), bool)
        stay[np.argsort(everything, kind="stable")[: self._limit]] = True
        self._size = min(len(everything), self._limit)
        free = np.concatenate([np.flatnonzero(~stay[:size]), np.arange(size, self._size)])
        new = np.flatnonzero(stay[size:])
        self._keys[free] = keys[new]
        self._rows[free] = rows[new]
        if self._offsets is not None and offsets is not None:
            self._offsets[free] = offsets[new]

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows ``[R, G, T]``, keys and offsets, by ascending key."""
        order = np.argsort(self._keys[: self._size], kind="stable")
        offsets = None if self._offsets is None else self._offsets[order]
        rows = np.ascontiguousarray(self._rows[order].transpose(0, 2, 1))
        return rows, self._keys[order], offsets


def count_positions(site: Site, x: np.ndarray) -> int:
    """Rows that a site has for an input: a Gemm's rows, a Conv's output pixels."""
    if site.conv is None:
        return x.size // int(site.groups)
    return int(x.shape[0]) * int(np.prod(site.conv.output_size(x.shape[2:]), dtype=np.int64))


def gather_rows(site: Site, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows ``[n, T, G]`` of a site's input at the given positions."""
    if site.conv is not None:
        return gather_patches(x, site.conv, positions)
    rows = x.T if site.transposed_input else x.reshape(-1, site.groups)
    chosen: np.ndarray = rows[positions][:, None, :]
    return chosen


def gather_patches(x: np.ndarray, conv: ConvGeometry, positions: np.ndarray) -> np.ndarray:
    """What a Conv sums over at some of its output positions.

    Args:
        x: ``[batch, G, *spatial]``.
        conv: The Conv's geometry.
        positions: ``[n]`` indices into ``[batch, *output]``, flattened.

    Returns:
        ``[n, T, G]``, zero where a tap falls on padding.
    """
    sizes, rank = x.shape[2:], len(conv.kernel)
    image, *place = np.unravel_index(positions, (x.shape[0], *conv.output_size(sizes)))
    taps = np.indices(conv.kernel).reshape(rank, -1)
    flat = np.zeros((len(positions), taps.shape[1]), np.int64)
    inside = np.ones(flat.shape, bool)
    for axis in range(rank):
        start = place[axis] * conv.strides[axis] - conv.pads[axis]
        at = start[:, None] + taps[axis] * conv.dilations[axis]
        inside &= (at >= 0) & (at < sizes[axis])
        flat = flat * sizes[axis] + np.clip(at, 0, sizes[axis] - 1)
    pixels = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    patches = pixels[image[:, None], flat]
    if not inside.all():
        patches[~inside] = 0
    chosen: np.ndarray = patches
    return chosen


def gather_offsets(site: Site, offset: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Offsets ``[n, N]`` at the given positions of an offset that has the output's shape."""
    if site.conv is None:
        rows: np.ndarray = offset.reshape(-1, site.outputs)[positions]
        return rows
    planes = offset.reshape(offset.shape[0], site.outputs, -1)
    image, place = np.divmod(positions, planes.shape[2])
    return planes[image, :, place]
