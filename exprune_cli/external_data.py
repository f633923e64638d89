"""Weights in files beside a model: only regular files inside the model's folder are ever opened.

The location is text from an untrusted file. Absolute paths, ``..``, links of every kind, devices and
pipes are refused; every step from the folder to the file is opened without following links, so that
nothing can be swapped in between.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from exprune_cli.errors import ExpruneError

#: Bits of an element where NumPy has no type of that size.
_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are.

    Attributes:
        location: The file, relative to the model's folder.
        offset: First byte.
        length: Bytes; None for all that follow.
    """

    location: str
    offset: int
    length: int | None


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's data are in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def place_of(tensor: onnx.TensorProto) -> Place:
    """Reads and checks where a tensor says that its data are.

    Raises:
        ExpruneError: The location leads out of the folder, or a number is none.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"external data of '{tensor.name}' cannot be loaded"
    windows = PureWindowsPath(location)
    if not location or "\0" in location:
        raise ExpruneError(f"{where}: it names no file")
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        raise ExpruneError(f"{where}: '{location}' is an absolute path")
    if ".." in windows.parts or ".." in PurePosixPath(location).parts:
        raise ExpruneError(f"{where}: '{location}' leads out of the model's folder")
    numbers = []
    for key in ("offset", "length"):
        text = entries.get(key, "0" if key == "offset" else "")
        # No sign, no underscore, no digits of other scripts; 2**63 has 19 digits.
        if text and not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise ExpruneError(f"{where}: its {key} '{text[:40]}' is no count of bytes")
        numbers.append(int(text) if text else None)
    return Place(location, numbers[0] or 0, numbers[1])


def open_external(folder: Path, location: str) -> int:
    """Opens a file below ``folder`` for reading, following no link; returns the descriptor.

    Args:
        folder: The model's folder; may itself be reached through links.
        location: As :func:`place_of` checked it.

    Raises:
        ExpruneError: It is a link, has further hard links, or is no regular file.
        OSError: As the system says.
    """
    parts = PurePosixPath(location).parts
    # Never waits for the other end of a pipe.
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if os.open not in os.supports_dir_fd:
        path = folder
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise ExpruneError(f"'{location}' is a link, or behind one: put the file itself there")
        return _regular(os.open(path, flags), location)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for index, part in enumerate(parts):
            if stat.S_ISLNK(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode):
                raise ExpruneError(f"'{location}' is a link, or behind one: put the file itself there")
            last = index == len(parts) - 1
            below = os.open(part, flags if last else flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return _regular(at, location)


def _regular(handle: int, location: str) -> int:
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return handle
    os.close(handle)
    if stat.S_ISREG(found.st_mode):
        raise ExpruneError(f"'{location}' has further hard links: put a copy of its own there")
    raise ExpruneError(f"'{location}' is no regular file")


def read_external(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """A tensor's bytes, from the file that it names.

    Raises:
        ExpruneError: The file may not be opened, or does not hold what the tensor's type and shape want.
    """
    place = place_of(tensor)
    where = f"external data of '{tensor.name}' cannot be loaded"
    wanted = tensor_bytes(tensor)
    try:
        with os.fdopen(open_external(folder, place.location), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = size - place.offset if place.length is None else place.length
            if wanted is not None and length != wanted:
                raise ExpruneError(
                    f"{where}: its shape {list(tensor.dims)} takes {wanted} bytes, it names {max(length, 0)}"
                )
            if length < 0 or place.offset + length > size:
                raise ExpruneError(
                    f"{where}: '{place.location}' has {size} bytes, it wants {length} from byte {place.offset} on"
                )
            file.seek(place.offset)
            return file.read(length)
    except ExpruneError as error:
        text = str(error)
        raise ExpruneError(text if text.startswith(where) else f"{where}: {text}") from None
    except OSError as error:
        raise ExpruneError(f"{where}: '{place.location}': {error.strerror or error}") from None


def tensor_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that a tensor's raw data must have by its type and shape; None for a type without a fixed size."""
    count = 1
    for size in tensor.dims:
        count *= size
    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        if name in _PACKED:
            return (count * _PACKED[name] + 7) // 8
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError):
        return None
    if dtype.hasobject:
        return None
    # Types that NumPy lacks have one of the same size.
    special = {"BFLOAT16": 2, "FLOAT8E4M3FN": 1, "FLOAT8E4M3FNUZ": 1, "FLOAT8E5M2": 1, "FLOAT8E5M2FNUZ": 1}
    return count * special.get(name, dtype.itemsize)
