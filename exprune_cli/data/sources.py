"""Where samples come from: a folder, arrays in memory, or a stream.

==========================================  =====================================================
given                                       held in memory, and how it is read again
==========================================  =====================================================
a folder's path                             one file at a time, from the folder
an array (models with one input)            what the caller holds, not copied
a dict of arrays by input name              what the caller holds, as one ``*.npz`` would be used
a list or tuple of such dicts               what the caller holds
any other iterable of such dicts, and ONNX  one item at a time: items are written to an unnamed
Runtime's ``CalibrationDataReader``         temporary file as they come, and read from there
==========================================  =====================================================

A stream is run through once only, so it may be a generator, and may shuffle. A reader that can
``rewind()`` is rewound before, and again after, for whoever uses it next. The temporary file is as
large as the data (in ``TMPDIR``), and is gone with the last use of the data, or with the process.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from exprune_cli.data.files import check_keys, checked_arrays, list_files, read_arrays, read_headers
from exprune_cli.data.groups import GROUP, group_ids
from exprune_cli.data.layout import LABEL, Header, Input
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.paths import PathLike

#: How messages call data that have no path.
_DATA = "data"


class DataReader(Protocol):
    """What ``onnxruntime.quantization.CalibrationDataReader`` demands of its subclasses."""

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next inputs by name; None when there are no more."""


#: Whatever samples can be taken from. A key ``label`` in a dict holds labels, a key ``group`` groups.
Data = PathLike | np.ndarray | Mapping[str, ArrayLike] | Iterable[Mapping[str, ArrayLike]] | DataReader


@dataclass(frozen=True)
class Stored:
    """Arrays that are stored together: a file, or what a dict holds.

    Attributes:
        where: Their name in messages.
        headers: Types and shapes by input name, and the label's.
        read: Returns the arrays: native byte order, C-contiguous.
        groups: uint64 ids of the samples' groups, in the shape that they have there; None without.
    """

    where: str
    headers: Mapping[str, Header]
    read: Callable[[], dict[str, np.ndarray]]
    groups: np.ndarray | None = None


def name_of(data: Data) -> str:
    """How messages call the data: the folder's path where there is one."""
    return str(Path(data)) if isinstance(data, (str, os.PathLike)) else _DATA


def stored_arrays(data: Data, inputs: Sequence[Input]) -> Iterator[Stored]:
    """All that is stored, in order; only headers are read of files, but a stream is read to its end.

    Raises:
        ExpruneError: There is nothing, or it does not fit the model; the message says what.
        UsageError: Samples cannot be taken from an object of this type.
    """
    if isinstance(data, (str, os.PathLike)):
        for path in list_files(Path(data), inputs):
            headers = read_headers(path, inputs)
            of_groups = _take_groups(headers, inputs)
            groups = group_ids(read_arrays(path, inputs, of_groups)[GROUP], str(path)) if of_groups else None
            yield Stored(str(path), headers, partial(read_arrays, path, inputs, headers), groups)
    elif isinstance(data, (np.ndarray, Mapping)):
        yield _in_memory(data, inputs, _DATA)
    elif isinstance(data, (list, tuple)):
        if not data:
            raise ExpruneError(f"{_DATA}: is empty: give at least one dict of arrays by input name")
        for index, item in enumerate(data):
            yield _in_memory(item, inputs, f"{_DATA}[{index}]")
    else:
        yield from _spooled(_items(data), inputs)


def _in_memory(item: object, inputs: Sequence[Input], where: str) -> Stored:
    arrays = _arrays(item, inputs, where)
    headers = _headers(arrays)
    groups = group_ids(arrays[GROUP], where) if _take_groups(headers, inputs) else None
    return Stored(where, headers, partial(checked_arrays, arrays, headers, inputs, where), groups)


def _take_groups(headers: dict[str, Header], inputs: Sequence[Input]) -> dict[str, Header]:
    """Takes the groups out of the headers: they are read once, apart from what is fed."""
    if any(value.name == GROUP for value in inputs) or GROUP not in headers:
        return {}
    return {GROUP: headers.pop(GROUP)}


def _items(data: object) -> Iterator[object]:
    """The items of a reader or an iterable."""
    get_next = getattr(data, "get_next", None)
    if callable(get_next):
        rewind = getattr(data, "rewind", None)
        if callable(rewind):
            rewind()
        yield from iter(get_next, None)
        if callable(rewind):
            rewind()
    elif isinstance(data, (bytes, bytearray)) or not hasattr(data, "__iter__") and not _is_sequence(data):
        raise UsageError(
            f"{_DATA}: cannot take samples from an object of type '{type(data).__name__}': give a folder's path, "
            "an array, dicts of arrays by input name, or a CalibrationDataReader"
        )
    else:
        yield from data  # type: ignore[misc]  # by __iter__ or, as torch's datasets, by __getitem__


def _is_sequence(data: object) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _spooled(items: Iterable[object], inputs: Sequence[Input]) -> Iterator[Stored]:
    spool: _Spool | None = None
    for index, item in enumerate(items):
        where = f"{_DATA}[{index}]"
        arrays = _arrays(item, inputs, where)
        spool = spool or _Spool()
        headers = _headers(arrays)
        groups = group_ids(arrays[GROUP], where) if _take_groups(headers, inputs) else None
        offset = spool.append(checked_arrays(arrays, headers, inputs, where))
        yield Stored(where, headers, partial(spool.read, offset, headers), groups)
    if spool is None:
        raise ExpruneError(
            f"{_DATA}: has no samples: the iterable was empty, or was used before and has no rewind()"
        )


def _arrays(item: object, inputs: Sequence[Input], where: str) -> dict[str, np.ndarray]:
    """An item's arrays by name; an array alone is the only input."""
    if isinstance(item, np.ndarray) and len(inputs) == 1:
        return {inputs[0].name: _array(item, f"{where}: '{inputs[0].name}'")}
    if not isinstance(item, Mapping):
        names = ", ".join(f"'{value.name}'" for value in inputs)
        raise ExpruneError(
            f"{where}: is a {type(item).__name__}: give a dict of arrays by input name ({names}), with labels "
            f"under '{LABEL}' and groups, if samples belong together, under '{GROUP}'"
        )
    arrays = {str(name): _array(value, f"{where}: '{name}'") for name, value in item.items()}
    check_keys(where, _headers(arrays), inputs)
    return arrays


def _array(value: object, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ExpruneError(f"{where}: is no array ({error})") from None
    if array.dtype == object and all(isinstance(element, str) for element in array.flat):
        array = array.astype(str)
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise ExpruneError(f"{where}: holds objects of type '{array.dtype}': give plain numbers")
    return array


def _headers(arrays: Mapping[str, np.ndarray]) -> dict[str, Header]:
    return {name: Header(array.dtype.newbyteorder("="), array.shape) for name, array in arrays.items()}


class _Spool:
    """Arrays one after the other in a temporary file that has no name."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="exprune-")  # noqa: SIM115, closed with the object
        except OSError as error:
            raise _no_space(error) from None
        weakref.finalize(self, self._file.close)

    def append(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Writes the arrays' elements; returns where they begin."""
        try:
            offset = self._file.seek(0, os.SEEK_END)
            for array in arrays.values():
                self._file.write(array.tobytes())
            self._file.flush()
        except OSError as error:
            raise _no_space(error) from None
        return offset

    def read(self, offset: int, headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
        """What was appended there."""
        self._file.seek(offset)
        arrays = {}
        for name, header in headers.items():
            array = np.empty(header.shape, header.dtype)
            if array.nbytes:
                self._file.readinto(array.reshape(-1).view(np.uint8).data)
            arrays[name] = array
        return arrays


def _no_space(error: OSError) -> ExpruneError:
    return ExpruneError(
        f"{tempfile.gettempdir()}: samples cannot be kept there ({error.strerror or error}): "
        "set TMPDIR to a folder with more space, or give the samples as a folder"
    )
