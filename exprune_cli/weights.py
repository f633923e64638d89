"""Weights that stay in files: of models with much external data, read when needed and one at a time.

A tensor that is kept outside has its data location as any external one, and also ``basepath``, the folder that
the location is relative to. Only this module writes that entry: what a file says of its own is replaced when the
model is loaded, where :mod:`exprune_cli.external_data` has checked the location, and it is opened by the same rules
(no links, no way out of the folder) every time it is read.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.external_data import Place, is_external, open_external, place_of, read_external, tensor_bytes
from exprune_cli.interrupts import note_temporary, remove_temporary
from exprune_cli.protobuf import byte_size, copy_fields

#: Tensors of fewer bytes are always in memory.
KEPT_BYTES = 2**20
#: Models with at least so much external data keep it outside.
LARGE_BYTES = 2**28
_BASE = "basepath"
_AT_ONCE = 2**24


def keep(tensor: onnx.TensorProto, folder: Path, place: Place) -> None:
    """Makes a tensor one that is kept outside, at ``place`` in ``folder``."""
    length = place.length if place.length is not None else tensor_bytes(tensor)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    entries = {"location": place.location, "offset": place.offset, "length": length, _BASE: folder.resolve()}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def is_kept(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor of a loaded model is kept outside."""
    return is_external(tensor)


def kept(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The initializers that are kept outside."""
    return [tensor for tensor in proto.graph.initializer if is_kept(tensor)]


def folder_of(tensor: onnx.TensorProto) -> Path:
    """The folder that a kept tensor's location is relative to."""
    return Path(next(entry.value for entry in tensor.external_data if entry.key == _BASE))


def model_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of a model and of the weights that it keeps outside."""
    return byte_size(proto) + sum(place_of(tensor).length or 0 for tensor in kept(proto))


def stored_bytes(tensor: onnx.TensorProto) -> bytes:
    """A tensor's raw data, wherever they are."""
    return read_external(tensor, folder_of(tensor)) if is_kept(tensor) else bytes(tensor.raw_data)


def in_memory(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor, or a copy with its data if it is kept outside."""
    if not is_kept(tensor):
        return tensor
    return onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=stored_bytes(tensor)
    )


def stored_array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's values, read from its file if it is kept outside."""
    return onnx.numpy_helper.to_array(in_memory(tensor))


def pieces(tensor: onnx.TensorProto, folder: Path) -> Iterator[bytes]:
    """An external tensor's data in pieces, checked as :func:`~exprune_cli.external_data.read_external` does.

    Raises:
        ExpruneError: The file may not be opened, or does not hold what the tensor's type and shape want.
    """
    place, wanted = place_of(tensor), tensor_bytes(tensor)
    where = f"external data of '{tensor.name}' cannot be loaded"
    try:
        with os.fdopen(open_external(folder, place.location), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            left = size - place.offset if place.length is None else place.length
            if left < 0 or place.offset + left > size or wanted not in (None, left):
                raise ExpruneError(
                    f"{where}: '{place.location}' has {size} bytes, its shape {list(tensor.dims)} takes {wanted} "
                    f"from byte {place.offset} on, it names {max(left, 0)}"
                )
            file.seek(place.offset)
            while left:
                piece = file.read(min(left, _AT_ONCE))
                if not piece:
                    raise ExpruneError(f"{where}: '{place.location}' became shorter")
                left -= len(piece)
                yield piece
    except OSError as error:
        raise ExpruneError(f"{where}: '{place.location}': {error.strerror or error}") from None


def write_stored(tensor: onnx.TensorProto, file: IO[bytes]) -> int:
    """Writes a tensor's raw data to a file; returns how many bytes they are."""
    parts = pieces(tensor, folder_of(tensor)) if is_kept(tensor) else [tensor.raw_data]
    return sum(file.write(part) for part in parts)


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the initializers are graph inputs, for checks that take no large model."""
    light = onnx.ModelProto()
    copy_fields(proto, light, without="graph")
    copy_fields(proto.graph, light.graph, without="initializer")
    declared = {value.name for value in light.graph.input}
    for tensor in proto.graph.initializer:
        if not is_kept(tensor) and len(tensor.raw_data) < KEPT_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def in_one_folder(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Path] | None:
    """The model as ONNX Runtime reads it from memory, and the folder of its weights; None if they have several."""
    folders = {folder_of(tensor) for tensor in kept(proto)}
    if len(folders) != 1:
        return None
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for tensor in kept(plain):
        entries = [entry for entry in tensor.external_data if entry.key != _BASE]
        del tensor.external_data[:]
        tensor.external_data.extend(entries)
    return plain, folders.pop()


class Spill:
    """A file in the system's temporary folder for the new weights of a model that keeps its own outside.

    It is there as long as this object: whoever has a model that refers to it holds this as well.
    """

    def __init__(self) -> None:
        self._path = Path(tempfile.gettempdir()).resolve() / f"exprune-{secrets.token_hex(8)}.weights"
        note_temporary(self._path)
        weakref.finalize(self, remove_temporary, self._path)

    def tensor(self, values: np.ndarray, name: str) -> onnx.TensorProto:
        """An initializer, its data in the file if they are large."""
        if values.nbytes < KEPT_BYTES:
            return onnx.numpy_helper.from_array(values, name)
        tensor = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
            dims=values.shape,
        )
        path = self._path
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            with open(os.open(path, flags, 0o600), "ab") as file:
                offset = file.seek(0, os.SEEK_END)
                file.write(values.data.cast("B"))
        except OSError as error:
            raise ExpruneError(
                f"{path}: cannot be written ({error.strerror or error}): TMPDIR names another folder"
            ) from None
        keep(tensor, path.parent, Place(path.name, offset, values.nbytes))
        return tensor
