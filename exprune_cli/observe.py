"""The one step that runs a model over data: what the inputs of its sites look like.

A copy of the model that also returns the sites' inputs (and added tensors) is run on ONNX
Runtime. Per site, the energy and the zeros of every reduction group are summed up, and a uniform
sample of rows is kept: every row has a key, a hash of seed, sample, site and position, and those
with the smallest keys are the sample. So it does not depend on the batch size or the order of
samples, and the samples of two data sets merge into that of both.

NaN and infinity: an input position (a Gemm's row, a Conv's pixel) with any of them is left out of
the sums, a row with any of them is left out of the sample, and a warning is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.data.dataset import digest_of
from exprune_cli.data.keys import position_keys, stream_keys
from exprune_cli.errors import ExpruneError
from exprune_cli.model import model_inputs
from exprune_cli.sampling import Reservoir, count_positions, gather_offsets, gather_rows, row_limit
from exprune_cli.sessions import open_session, run
from exprune_cli.sites import Calibration, Site, SiteStatistics

if TYPE_CHECKING:
    from exprune_cli.data import Batch, DataSet
    from exprune_cli.model import Model

_LOG = logging.getLogger(__name__)
#: Without a batch size, a batch's observed tensors take at most this much, in at most so many samples.
_BATCH_BYTES = 32 * 2**20
_MAX_BATCH = 32
#: Rows that are squared at a time.
_ROWS_AT_ONCE = 256

Tensors = dict[str, np.ndarray]


def observe(
    model: Model,
    sites: Sequence[Site],
    data: DataSet,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Runs the model over the data once and returns the statistics of its sites.

    Args:
        model: The original model; not changed.
        sites: Its sites.
        data: The samples.
        seed: Chooses the sample of rows.
        batch_size: Samples per run where they can be run together; None for what fits into
            little memory. It does not change the result beyond what ONNX Runtime's own rounding does.
        threads: Threads inside an operator; 0 for ONNX Runtime's default.
        progress: Called with the samples done and the samples in all.

    Raises:
        ExpruneError: There are no samples, the model fails on one, or a site sees no finite row.
    """
    total = len(data)
    if not total:
        raise ExpruneError("there are no samples to observe the model on")
    ids: list[np.ndarray] = []
    observed = [_ObservedSite(site, seed) for site in sites]
    inputs = {(site.input, _kind(site)): _ObservedInput(_kind(site), site.groups) for site in sites}
    runner = _Runner(model.proto, sites, threads)
    done = 0
    for batch in data.batches(batch_size or runner.batch_size(data)):
        for part, tensors in runner.runs(batch):
            for (name, _), statistics in inputs.items():
                statistics.add(tensors[name])
            for one in observed:
                one.add(tensors, part, batch.where)
        ids.append(batch.ids)
        done += batch.count
        if progress is not None:
            progress(done, total)
    sample_ids, groups = np.concatenate(ids), data.groups
    return Calibration(
        model_sha256=model.sha256,
        data_digest=digest_of(sample_ids),
        seed=seed,
        samples=len(sample_ids),
        sample_ids=sample_ids,
        sites={one.site.name: one.result(inputs[one.site.input, _kind(one.site)]) for one in observed},
        group_ids=None if groups is None else np.unique(groups),
    )


class _Runner:
    """Runs samples, together where each one's share of every tensor is a run of its first axis."""

    def __init__(self, proto: onnx.ModelProto, sites: Sequence[Site], threads: int) -> None:
        self._fed = {value.name for value in model_inputs(proto)}
        wanted = dict.fromkeys(site.input for site in sites)
        wanted |= dict.fromkeys(site.offset for site in sites if site.offset is not None)
        self._wanted = list(wanted)
        # A tensor, and the axis along which the samples of a batch lie in it.
        self._axes = dict.fromkeys((site.input, 1 if site.transposed_input else 0) for site in sites)
        self._axes |= dict.fromkeys((site.offset, 0) for site in sites if site.offset is not None)
        self._fetched = [name for name in wanted if name not in self._fed]
        self._session = None
        if self._fetched:
            addition = _with_outputs(proto, self._fetched)
            self._session = open_session(proto, addition=addition, threads=threads, use_runtime=False)
        self._together: bool | None = None

    def batch_size(self, data: DataSet) -> int:
        """How many samples to run together, by the size of the first one's tensors."""
        first = next(iter(data.batches(1)))
        size = sum(tensor.nbytes for tensor in self._run(first.feeds, first.where).values())
        return int(np.clip(_BATCH_BYTES // max(size, 1), 1, _MAX_BATCH))

    def runs(self, batch: Batch) -> Iterator[tuple[np.ndarray, Tensors]]:
        """Sample digests and observed tensors, of the whole batch or of one sample at a time."""
        if batch.count > 1 and self._together is not False:
            tensors = self._try(batch)
            if tensors is not None:
                yield batch.ids, tensors
                return
        for index in range(batch.count):
            yield batch.ids[index : index + 1], self._single(batch, index)

    def _try(self, batch: Batch) -> Tensors | None:
        """The tensors of a batch if they divide into those of its samples."""
        try:
            tensors = self._run(batch.feeds, batch.where)
        except ExpruneError:
            # A model that works for single samples only; if not, that run says what is wrong.
            self._together = False
            return None
        if self._together is None:
            self._together = all(self._divides(tensors, batch, index) for index in (0, batch.count - 1))
        divisible = all(tensors[name].shape[axis] % batch.count == 0 for name, axis in self._axes)
        return tensors if self._together and divisible else None

    def _divides(self, tensors: Tensors, batch: Batch, index: int) -> bool:
        """Whether a sample's tensors are where they should be, by running it alone."""
        single = self._single(batch, index)
        for name, axis in self._axes:
            tensor, alone = tensors[name], single[name]
            if tensor.ndim != alone.ndim:
                return False
            size = alone.shape[axis]
            part = np.take(tensor, np.arange(index * size, (index + 1) * size), axis, mode="clip")
            if tensor.shape[axis] != batch.count * size or part.shape != alone.shape:
                return False
            scale = np.abs(alone[np.isfinite(alone)]).max(initial=0)
            if not np.allclose(part, alone, rtol=1e-3, atol=1e-3 * float(scale), equal_nan=True):
                return False
        return True

    def _single(self, batch: Batch, index: int) -> Tensors:
        feeds = batch.feeds
        if batch.count > 1:
            feeds = {name: array[index : index + 1] for name, array in feeds.items()}
        return self._run(feeds, batch.where)

    def _run(self, feeds: Tensors, where: str) -> Tensors:
        tensors = {name: feeds[name] for name in self._wanted if name in self._fed}
        if self._session is not None:
            values = run(self._session, feeds, where, self._fetched)
            tensors |= zip(self._fetched, values, strict=True)
        return tensors


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """What to merge into a model so that it also returns the float tensors ``names``."""
    extra = onnx.ModelProto()
    present = {value.name for value in proto.graph.output}
    for name in names:
        if name not in present:
            extra.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return extra


def _kind(site: Site) -> str:
    """How a site reads its input: ``planes`` (Conv), ``rows`` or ``columns``."""
    if site.conv is not None:
        return "planes"
    return "columns" if site.transposed_input else "rows"


class _ObservedInput:
    """Energy and zeros of a tensor, by group; sites that read the same tensor share them.

    Sums run over the samples in order, so that they do not depend on the batch size.

    Attributes:
        energy, zeros: ``[G]``.
        elements: Positions that were summed.
        skipped: Positions that were left out.
    """

    def __init__(self, kind: str, groups: int) -> None:
        self._kind = kind
        self.energy = np.zeros(groups, np.float64)
        self.zeros = np.zeros(groups, np.int64)
        self.elements = 0
        self.skipped = 0
        self._squares = np.empty((_ROWS_AT_ONCE + 1, groups if kind != "planes" else 0), np.float64)

    def add(self, x: np.ndarray) -> None:
        """Adds a batch's tensor."""
        if self._kind == "planes":
            for image in x.reshape(*x.shape[:2], -1):
                self._add_planes(image)
            return
        rows = np.ascontiguousarray(x.T) if self._kind == "columns" else x.reshape(-1, len(self.energy))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            self._add_rows(rows[start : start + _ROWS_AT_ONCE])

    def _add_planes(self, image: np.ndarray) -> None:
        """``[G, P]``: single precision within an image, double across images."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("gp,gp->g", image, image)
        if np.isfinite(squares).all():
            self.energy += squares
            self.zeros += np.add.reduce(image == 0, axis=1, dtype=np.int32)
            self.elements += image.shape[1]
        else:
            self._add_finite(image.T)

    def _add_rows(self, rows: np.ndarray) -> None:
        """``[n, G]``: the sum so far is the first addend, so that chunks do not change rounding."""
        squares = self._squares[: len(rows) + 1]
        squares[0] = self.energy
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(rows, rows, out=squares[1:], dtype=np.float64)
        energy = np.add.reduce(squares, axis=0)
        if np.isfinite(energy).all():
            self.energy = energy
            self.zeros += np.add.reduce(rows == 0, axis=0, dtype=np.int32)
            self.elements += len(rows)
        else:
            self._add_finite(rows)

    def _add_finite(self, rows: np.ndarray) -> None:
        """The positions ``[n, G]`` that are finite, or whose squares were too large."""
        good = rows[np.isfinite(rows).all(axis=1)]
        self.skipped += len(rows) - len(good)
        self.elements += len(good)
        self.zeros += (good == 0).sum(axis=0)
        for row in good.astype(np.float64):
            self.energy += row * row


class _ObservedSite:
    """The sample of a site's rows."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self._seed = seed
        self._count = 0
        outputs = site.outputs if site.offset is not None else None
        limit = row_limit(site.groups, site.taps)
        self._reservoir = Reservoir(limit, site.groups, site.taps, outputs)

    def add(self, tensors: Tensors, ids: np.ndarray, where: str) -> None:
        """Adds the tensors of some samples."""
        site, x = self.site, tensors[self.site.input]
        offset = tensors[site.offset] if site.offset is not None else None
        positions = count_positions(site, x)
        if offset is not None and offset.size != positions * site.outputs:
            raise ExpruneError(
                f"{where}: '{site.offset}' has shape {offset.shape}, which is not that of the result of "
                f"'{site.name}' it is added to: leave the site out with --exclude"
            )
        keys = position_keys(stream_keys(self._seed, site.name, ids), positions // len(ids))

        def gather(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            offsets = None if offset is None else gather_offsets(site, offset, chosen)
            return gather_rows(site, x, chosen), offsets

        self._reservoir.offer(keys.reshape(-1), gather)
        self._count += positions

    def result(self, seen: _ObservedInput) -> SiteStatistics:
        """The site's statistics, with those of its input."""
        rows, keys, offsets = self._reservoir.result()
        if self._count and not (len(keys) and seen.elements):
            raise ExpruneError(
                f"the input of site '{self.site.name}' is NaN or infinite wherever the data was run: "
                "check the samples' scaling, or leave the site out with --exclude"
            )
        if seen.skipped:
            _LOG.warning(
                "site '%s': %d of %d input positions are NaN or infinite and were left out",
                self.site.name,
                seen.skipped,
                seen.skipped + seen.elements,
            )
        return SiteStatistics(
            rows=rows,
            keys=keys,
            offsets=offsets,
            energy=seen.energy.copy(),
            input_zeros=seen.zeros.copy(),
            elements=seen.elements,
            count=self._count,
        )
