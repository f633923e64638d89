"""A set of samples in files: counted at once, read when needed, never whole in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exprune_cli.data.groups import GROUP
from exprune_cli.data.keys import stream_keys
from exprune_cli.data.layout import LABEL, Input, Layout, sample_layout
from exprune_cli.data.sources import Stored
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.extent import Extent

#: Type and shape (without the batch axis) of every array of a sample.
_Signature = tuple[tuple[np.dtype, tuple[int, ...]], ...]
#: Samples that are looked at together when only their digests are wanted.
_READ_AHEAD = 64


@dataclass
class Batch:
    """Samples that are run together.

    Attributes:
        feeds: Arrays by input name.
        label: The labels, one per sample or as the file has them; None without.
        count: Samples in the batch.
        ids: ``[count]`` uint64: digests of the samples.
        where: The file, or the first and the last file, for messages.
    """

    feeds: dict[str, np.ndarray]
    label: np.ndarray | None
    count: int
    ids: np.ndarray
    where: str


@dataclass(frozen=True)
class _File:
    stored: Stored
    layout: Layout

    @property
    def where(self) -> str:
        return self.stored.where


class _Folder:
    """What all subsets of a folder share: its files, and the sample digests known so far."""

    def __init__(self, where: str, stored: Iterable[Stored], inputs: Sequence[Input]) -> None:
        self.where = where
        self.files = [_File(file, sample_layout(inputs, file.headers, file.where)) for file in stored]
        names = {value.name for value in inputs}
        labelled = [LABEL not in names and LABEL in file.stored.headers for file in self.files]
        self.has_labels = all(labelled)
        if any(labelled) and not self.has_labels:
            odd = self.files[labelled.index(False)].where
            raise ExpruneError(f"{odd}: has no '{LABEL}', but other files have: label all of them or none")
        self.starts = np.cumsum([0, *(file.layout.samples for file in self.files)])
        self.groups = _groups(self.files)
        self.ids = np.zeros(self.starts[-1], np.uint64)
        self.known = np.zeros(self.starts[-1], bool)


class DataSet:
    """The samples of a folder, or some of them, always in the folder's order."""

    def __init__(self, folder: _Folder, index: np.ndarray) -> None:
        """Args:
        folder: The files.
        index: ``[n]`` ascending: which of the folder's samples belong to the set.
        """
        self._folder = folder
        self._index = index

    def __len__(self) -> int:
        """Samples in the set."""
        return len(self._index)

    @property
    def has_labels(self) -> bool:
        """Whether the samples carry labels."""
        return self._folder.has_labels

    @property
    def groups(self) -> np.ndarray | None:
        """``[n]`` uint64: the id of every sample's group; None where each sample is on its own."""
        every = self._folder.groups
        return None if every is None else every[self._index]

    @property
    def extent(self) -> Extent:
        """How many samples there are, and of how many groups."""
        groups = self.groups
        return Extent(len(self), None if groups is None else len(np.unique(groups)))

    @property
    def ids(self) -> np.ndarray:
        """``[n]`` uint64: a digest of every sample's inputs.

        Equal inputs have equal digests, in whatever file they are. Reads what no pass has read.
        """
        missing = self._index[~self._folder.known[self._index]]
        if len(missing):
            for _ in DataSet(self._folder, missing)._pieces(_READ_AHEAD):
                pass
        ids: np.ndarray = self._folder.ids[self._index]
        return ids

    @property
    def digest(self) -> str:
        """SHA-256 over the samples' digests, in order."""
        return digest_of(self.ids)

    def batches(self, batch_size: int = 1) -> Iterator[Batch]:
        """Reads every file once, in order.

        Batches hold ``batch_size`` samples, fewer where shapes change, at the end, and always
        one where samples cannot be run together.

        Raises:
            ExpruneError: A file cannot be read.
        """
        if batch_size < 1:
            raise UsageError(f"a batch of {batch_size} samples is not possible: give 1 or more")
        pending: list[_Piece] = []
        held = 0
        for piece in self._pieces(batch_size):
            if pending and piece.signature != pending[0].signature:
                yield _join(pending)
                pending, held = [], 0
            rest: _Piece | None = piece
            while rest is not None:
                head, rest = rest.cut(batch_size - held)
                held += len(head.ids)
                full = held == batch_size or head.signature is None
                pending.append(head)
                if full:
                    yield _join(pending)
                    pending, held = [], 0
        if pending:
            yield _join(pending)

    def take(self, n: int, seed: int) -> DataSet:
        """``n`` random samples (all, if there are fewer), in the folder's order.

        Where samples are in groups, a second one of a group comes after the first one of every other.

        Raises:
            UsageError: ``n`` is not positive.
        """
        if n < 1:
            raise UsageError(f"cannot take {n} samples: give 1 or more")
        if n >= len(self):
            return self
        shuffled, groups = self._shuffled(seed, "take"), self.groups
        if groups is not None:
            shuffled = shuffled[np.argsort(_turns(groups[shuffled]), kind="stable")]
        return self._subset(shuffled[:n])

    def split(self, fraction: float, seed: int) -> tuple[DataSet, DataSet]:
        """Two disjoint random sets that together are this one; ``fraction`` goes to the first.

        Of groups that fraction goes to the first, and none to both.

        Raises:
            UsageError: ``fraction`` is not between 0 and 1.
            ExpruneError: There are fewer than two samples, or groups: neither side may be empty.
        """
        if not 0 < fraction < 1:
            raise UsageError(f"cannot split at {fraction:g}: give a fraction between 0 and 1")
        extent, groups = self.extent, self.groups
        if extent.units < 2:
            raise ExpruneError(
                f"{self._folder.where}: has {extent.text} to split: at least 2 {extent.unit}s are needed"
            )
        size = min(max(round(fraction * extent.units), 1), extent.units - 1)
        if groups is None:
            shuffled = self._shuffled(seed, "split")
            return self._subset(shuffled[:size]), self._subset(shuffled[size:])
        every = np.unique(groups)
        chosen = every[np.argsort(stream_keys(seed, "split", every), kind="stable")[:size]]
        inside = np.isin(groups, chosen)
        return self._subset(np.flatnonzero(inside)), self._subset(np.flatnonzero(~inside))

    def take_groups(self, n: int, seed: int) -> DataSet:
        """``n`` random samples (all, if there are fewer) of as few random groups as have them.

        Raises:
            UsageError: ``n`` is not positive.
        """
        groups = self.groups
        if groups is None or n < 1 or n >= len(self):
            return self.take(n, seed)
        return self._subset(np.argsort(stream_keys(seed, "groups", groups), kind="stable")[:n])

    def at(self, positions: np.ndarray) -> DataSet:
        """The samples at these positions of the set, in the folder's order."""
        return self._subset(positions)

    def without(self, ids: np.ndarray, groups: np.ndarray | None = None) -> DataSet:
        """The samples whose digests are not among ``ids``; may be empty.

        Of samples in groups, those whose groups are not among ``groups`` either, nor have one of ``ids``.

        Args:
            ids: Digests of samples.
            groups: Ids of groups.
        """
        away, own = np.isin(self.ids, ids), self.groups
        if own is not None:
            away = np.isin(own, own[away]) | (np.isin(own, groups) if groups is not None else False)
        return DataSet(self._folder, self._index[~away])

    def alone(self) -> DataSet:
        """The same samples, each a draw of its own."""
        folder = copy.copy(self._folder)
        folder.groups = None
        return DataSet(folder, self._index)

    def _shuffled(self, seed: int, purpose: str) -> np.ndarray:
        keys = stream_keys(seed, purpose, self._index)
        return np.argsort(keys, kind="stable")

    def _subset(self, positions: np.ndarray) -> DataSet:
        return DataSet(self._folder, self._index[np.sort(positions)])

    def _pieces(self, batch_size: int) -> Iterator[_Piece]:
        """The set's samples, file by file; single ones where they cannot be run together."""
        starts = self._folder.starts
        owners = np.searchsorted(starts, self._index, side="right") - 1
        for owner in np.unique(owners):
            # A generator of its own: its arrays are gone before the next file is read.
            yield from self._pieces_of(owner, self._index[owners == owner] - starts[owner], batch_size)

    def _pieces_of(self, owner: int, rows: np.ndarray, batch_size: int) -> Iterator[_Piece]:
        folder = self._folder
        file = folder.files[owner]
        arrays = file.stored.read()
        label = arrays.pop(LABEL) if folder.has_labels else None
        if label is not None and not label.shape:
            label = label.reshape(1)
        step = batch_size if file.layout.together else 1
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            feeds = {name: _rows(array, chosen, file.layout) for name, array in arrays.items()}
            yield _Piece(
                feeds=feeds,
                label=None if label is None else _rows(label, chosen, file.layout),
                ids=self._identify(feeds, chosen + folder.starts[owner], file.layout),
                signature=_signature(feeds, label) if file.layout.together else None,
                names=[_name(file, sample) for sample in chosen],
            )

    def _identify(self, feeds: Mapping[str, np.ndarray], index: np.ndarray, layout: Layout) -> np.ndarray:
        folder = self._folder
        for place, sample in enumerate(index):
            if not folder.known[sample]:
                one = feeds
                if layout.together:
                    one = {name: array[place : place + 1] for name, array in feeds.items()}
                folder.ids[sample] = _digest(one)
        folder.known[index] = True
        ids: np.ndarray = folder.ids[index]
        return ids


@dataclass
class _Piece:
    """Samples of one file; ``signature`` is equal for those that fit into one batch, None for none."""

    feeds: dict[str, np.ndarray]
    label: np.ndarray | None
    ids: np.ndarray
    signature: _Signature | None
    names: list[str]

    def cut(self, size: int) -> tuple[_Piece, _Piece | None]:
        """The first ``size`` samples, and the rest if there is one."""
        if self.signature is None or len(self.ids) <= size:
            return self, None
        return self._part(slice(None, size)), self._part(slice(size, None))

    def _part(self, part: slice) -> _Piece:
        feeds = {name: array[part] for name, array in self.feeds.items()}
        label = None if self.label is None else self.label[part]
        return _Piece(feeds, label, self.ids[part], self.signature, self.names[part])


def _groups(files: Sequence[_File]) -> np.ndarray | None:
    """``[n]`` the group of every sample of all files; None if there are none.

    Raises:
        ExpruneError: A file has another number of groups than of samples, or only some files have groups.
    """
    grouped = [file.stored.groups is not None for file in files]
    if not any(grouped):
        return None
    if not all(grouped):
        odd = files[grouped.index(False)].where
        raise ExpruneError(
            f"{odd}: has no '{GROUP}', but other files have: give all samples a group, or none"
        )
    parts = []
    for file in files:
        found, count = file.stored.groups, file.layout.samples
        assert found is not None
        if found.shape != (count,) and not (count == 1 and not found.shape):
            samples = "1 sample" if count == 1 else f"{count} samples"
            raise ExpruneError(
                f"{file.where}: '{GROUP}' has shape {list(found.shape)}, but the file has {samples}: give one per sample"
            )
        parts.append(found.reshape(-1))
    return np.concatenate(parts)


def _turns(groups: np.ndarray) -> np.ndarray:
    """``[n]`` how many samples of the same group come before each."""
    order = np.argsort(groups, kind="stable")
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.repeat(first, sizes)
    return turns


def digest_of(ids: np.ndarray) -> str:
    """SHA-256 (hex) over sample digests, 8 little-endian bytes each."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<u8").tobytes()).hexdigest()


def _name(file: _File, sample: int) -> str:
    return f"{file.where}, sample {sample}" if file.layout.samples > 1 else file.where


def _rows(array: np.ndarray, chosen: np.ndarray, layout: Layout) -> np.ndarray:
    """Some samples: a copy, so that they do not keep the whole file in memory."""
    if layout.rows is None or len(chosen) == layout.samples:
        return array
    first, last = chosen[0] * layout.rows, (chosen[-1] + 1) * layout.rows
    neighbours = last - first == len(chosen) * layout.rows
    rows: np.ndarray = array[first:last].copy() if neighbours else array[chosen]
    return rows


def _signature(feeds: Mapping[str, np.ndarray], label: np.ndarray | None) -> _Signature:
    arrays = [*feeds.values()] if label is None else [*feeds.values(), label]
    return tuple((array.dtype, array.shape[1:]) for array in arrays)


def _digest(feeds: Mapping[str, np.ndarray]) -> np.uint64:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(feeds):
        array = feeds[name]
        dtype = array.dtype.newbyteorder("<")
        digest.update(f"{name}\0{dtype.str}\0{array.shape}\0".encode())
        if array.size:
            flat = np.ascontiguousarray(array, dtype).reshape(-1)
            digest.update(flat.view(np.uint8).data)
    number: np.uint64 = np.uint64(int.from_bytes(digest.digest(), "little"))
    return number


def _join(pieces: Sequence[_Piece]) -> Batch:
    first, last = pieces[0].names[0], pieces[-1].names[-1]
    where = first if first == last else f"{first} to {last}"
    feeds, label = pieces[0].feeds, pieces[0].label
    if len(pieces) > 1:
        feeds = {name: np.concatenate([p.feeds[name] for p in pieces]) for name in feeds}
        label = None if label is None else np.concatenate([p.label for p in pieces if p.label is not None])
    ids = np.concatenate([p.ids for p in pieces])
    return Batch(feeds, label, len(ids), ids, where)
