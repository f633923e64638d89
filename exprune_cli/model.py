"""Loading and saving of ONNX files: checked on the way in, whole or not at all on the way out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError

from exprune_cli import weights
from exprune_cli.available import check_fits
from exprune_cli.errors import ExpruneError
from exprune_cli.external_data import is_external, place_of, read_external, tensor_bytes
from exprune_cli.interrupts import replacing
from exprune_cli.protobuf import MESSAGE_LIMIT, byte_size, model_digest
from exprune_cli.structure import all_tensors, check_content, check_structure
from exprune_cli.weights import Spill, is_kept, kept, without_weights

if TYPE_CHECKING:
    from exprune_cli.progress import Counter

#: The weights of larger models go to a file beside the model.
_MESSAGE_LIMIT = MESSAGE_LIMIT
#: Initializers of at least this size are moved out when a model is over the limit.
_EXTERNAL_MIN_BYTES = 1024


#: Rewritten forms of one model that are in use at once, at most: the newest, and the one it is compared with.
_SPILLS = 2

#: What a model may be given as: a path, its bytes, or the message.
ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass
class Model:
    """A model in memory, its weights perhaps not.

    Attributes:
        proto: The model.
        path: The file it came from, or None.
        sha256: Hex digest of the file's bytes and of every external data file it names.
        external: Whether weights came from files beside the model. Much of them stays there, see
            :mod:`exprune_cli.weights`.
        spills: What the newest rewritten forms of such a model keep in files.
    """

    proto: onnx.ModelProto
    path: Path | None
    sha256: str
    external: bool = False
    spills: deque[Spill] = field(default_factory=partial(deque, maxlen=_SPILLS))

    @property
    def opset(self) -> int:
        """Version of the default operator set, 0 if the model imports none."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def load(source: ModelSource, progress: Counter | None = None) -> Model:
    """Reads a model and checks it.

    Args:
        source: A path, a serialised model, or a ModelProto (which is not changed).
        progress: Is told how many bytes of weights in other files were read.

    Raises:
        ExpruneError: There is no such file, it is no ONNX model, or it is an invalid one.
    """
    if isinstance(source, onnx.ModelProto):
        _check_whole(source, "the given model")
        _check_structure(source, "the given model")
        _check(source, "the given model")
        return Model(source, None, model_digest(source))
    if isinstance(source, bytes):
        proto = _parse(source, "the given bytes")
        _check_whole(proto, "the given bytes")
        _check(proto, "the given bytes")
        return Model(proto, None, hashlib.sha256(source).hexdigest())
    path = Path(source)
    content = _read(path)
    proto = _parse(content, str(path))
    digest = hashlib.sha256(content)
    del content
    external = _load_external(proto, path, digest, progress)
    _check(proto, str(path))
    return Model(proto, path, digest.hexdigest(), external)


def _read(path: Path) -> bytes:
    try:
        # Without waiting: a pipe has no other end, perhaps.
        with open(
            os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
        ) as file:
            found = os.fstat(file.fileno())
            if stat.S_ISDIR(found.st_mode):
                raise ExpruneError(f"{path}: cannot be read: it is a folder")
            if not stat.S_ISREG(found.st_mode):
                raise ExpruneError(f"{path}: cannot be read: it is no regular file")
            # Twice: protobuf copies what it parses, and calls it damaged where there is no memory.
            check_fits(2 * found.st_size, str(path))
            return file.read()
    except FileNotFoundError:
        raise ExpruneError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise ExpruneError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        if len(content) > MESSAGE_LIMIT:
            raise ExpruneError(
                f"{where}: is over 2 GB, which no single file can hold: save it with external data"
            ) from None
        raise ExpruneError(f"{where}: not an ONNX model (or cut short): it cannot be parsed") from None
    if not proto.HasField("graph") or not proto.ir_version:
        raise ExpruneError(f"{where}: not an ONNX model: it has no graph")
    _check_structure(proto, where)
    return proto


def _check_structure(proto: onnx.ModelProto, where: str) -> None:
    try:
        check_structure(proto, where)
    except UnicodeDecodeError:
        raise ExpruneError(f"{where}: not a valid ONNX model: it holds text that is not UTF-8") from None


def _check(proto: onnx.ModelProto, where: str) -> None:
    for tensor in all_tensors(proto):
        if not is_kept(tensor):  # those were checked when they were read for the digest
            check_content(tensor, where)
    if kept(proto) or byte_size(proto) >= MESSAGE_LIMIT:
        proto = without_weights(proto)  # more than the checker takes
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ExpruneError(f"{where}: not a valid ONNX model: {_first_line(error)}") from None


def _check_whole(proto: onnx.ModelProto, where: str) -> None:
    if not proto.HasField("graph") or not proto.ir_version:
        raise ExpruneError(f"{where}: not an ONNX model: it has no graph")
    outside = next((t for t in all_tensors(proto) if is_external(t)), None)
    if outside is not None:
        raise ExpruneError(
            f"{where}: keeps '{outside.name}' in another file: give the model's path, or load it with its "
            "external data"
        )


def _load_external(
    proto: onnx.ModelProto, path: Path, digest: hashlib._Hash, progress: Counter | None
) -> bool:
    tensors = [t for t in all_tensors(proto) if is_external(t)]
    if not tensors:
        return False
    size = sum(tensor_bytes(t) or 0 for t in tensors)
    # Also for what stays outside: a model that no session has room for is of no use here.
    check_fits(size, f"{path}: external data")
    large: list[onnx.TensorProto] = []
    if size >= weights.LARGE_BYTES:
        large = [t for t in proto.graph.initializer if (tensor_bytes(t) or 0) >= weights.KEPT_BYTES]
    outside = {id(t) for t in large}
    done = 0
    for tensor in tensors:
        try:
            if id(tensor) in outside:
                digest.update(tensor.name.encode() + b"\0")
                for piece in weights.pieces(tensor, path.parent):
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, size)
                weights.keep(tensor, path.parent, place_of(tensor))
                continue
            content = read_external(tensor, path.parent)
        except ExpruneError as error:
            raise ExpruneError(f"{path}: {error}") from None
        tensor.raw_data = content
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        digest.update(tensor.name.encode() + b"\0")
        digest.update(content)
        done += len(content)
        if progress is not None:
            progress(done, size)
    return True


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def save(proto: onnx.ModelProto, path: str | os.PathLike[str], progress: Counter | None = None) -> None:
    """Writes a model whole or not at all: a temporary file beside it, then one rename.

    Models over 2 GB, and those that keep weights in files, have them in ``<name>.data`` beside the model.

    Args:
        proto: The model.
        path: The file.
        progress: Is told how many bytes of weights were written to a file of their own.

    Raises:
        ExpruneError: The folder or the file cannot be written. Nothing is left behind.
    """
    path = Path(path)
    try:
        if kept(proto) or byte_size(proto) >= _MESSAGE_LIMIT:
            _save_large(proto, path, progress)
        else:
            write_bytes(proto.SerializeToString(deterministic=True), path)
    except OSError as error:
        raise ExpruneError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_bytes(content: bytes, path: Path) -> None:
    """Writes a file whole or not at all; keeps an existing file's permissions.

    Raises:
        OSError: As the system says; the temporary file is gone.
    """
    with replacing(path, _mode(path)) as file:
        file.write(content)


def _mode(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def data_path(path: Path) -> Path:
    """Where :func:`save` puts the weights of a model that it does not write as one file."""
    return path.with_name(path.name + ".data")


def _save_large(proto: onnx.ModelProto, path: Path, progress: Counter | None) -> None:
    data, done = data_path(path), 0
    outside = [t for t in proto.graph.initializer if is_kept(t) or len(t.raw_data) >= _EXTERNAL_MIN_BYTES]
    size = sum(tensor_bytes(tensor) or 0 for tensor in outside)
    # Set back at the end: a copy of the model would take its size in memory once more.
    moved: list[tuple[onnx.TensorProto, bytes, list[onnx.StringStringEntryProto]]] = []
    try:
        with replacing(path, _mode(path)) as main, replacing(data, _mode(data)) as file:
            for tensor in outside:
                file.write(b"\0" * (-file.tell() % 4096))
                offset = file.tell()
                length = weights.write_stored(tensor, file)
                done += length
                if progress is not None:
                    progress(done, size)
                moved.append((tensor, tensor.raw_data, list(tensor.external_data)))
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                del tensor.external_data[:]
                for key, value in (("location", data.name), ("offset", offset), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
            main.write(proto.SerializeToString(deterministic=True))
            for written in (file, main):
                written.flush()
                os.fsync(written.fileno())
            # Both are whole, and the weights get their name first. An older model must not be seen with them.
            path.unlink(missing_ok=True)
    finally:
        for tensor, raw, entries in moved:
            del tensor.external_data[:]
            if entries:
                tensor.external_data.extend(entries)
            else:
                tensor.raw_data = raw
                tensor.ClearField("data_location")


def model_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph inputs that a caller feeds: those that are no initializers."""
    constants = {t.name for t in proto.graph.initializer}
    constants |= {t.values.name for t in proto.graph.sparse_initializer}
    return [value for value in proto.graph.input if value.name not in constants]
