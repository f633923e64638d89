"""Reading the files of a data folder: first the headers of all, then one file at a time.

Nothing is ever unpickled. Every failure is one :class:`ExpruneError` line that names the file.
"""

from __future__ import annotations

import difflib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.lib import format as npy_format

from exprune_cli.available import check_fits
from exprune_cli.data.groups import GROUP, check_group
from exprune_cli.data.layout import LABEL, Header, Input
from exprune_cli.errors import ExpruneError

#: What numpy, zipfile and protobuf raise on files that are cut short or made up.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    KeyError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    DecodeError,
)
#: An axis of an array without elements: more would be that many samples of nothing.
_MOST_EMPTY = 2**24
_FORMATS = "*.npz, *.npy or test_data_set_*/input_N.pb"


def list_files(folder: Path, inputs: Sequence[Input]) -> list[Path]:
    """The sample files of a folder, sorted by name; for protobufs the ``test_data_set_*`` folders.

    Raises:
        ExpruneError: There is no such folder, nothing in it, or more than one format.
    """
    try:
        if not folder.exists():
            raise ExpruneError(f"{folder}: no such folder: --data takes a folder with {_FORMATS}")
        if not folder.is_dir():
            raise ExpruneError(f"{folder}: is a file: --data takes the folder that holds {_FORMATS}")
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise ExpruneError(f"{folder}: cannot be read ({error.strerror})") from None
    kinds = {
        "*.npz": [p for p in entries if p.suffix == ".npz" and p.is_file()],
        "*.npy": [p for p in entries if p.suffix == ".npy" and p.is_file()],
        "test_data_set_*": [p for p in entries if p.name.startswith("test_data_set_") and p.is_dir()],
    }
    present = {kind: paths for kind, paths in kinds.items() if paths}
    if not present:
        raise ExpruneError(f"{folder}: has no samples: put {_FORMATS} into it")
    if len(present) > 1:
        raise ExpruneError(f"{folder}: mixes {' and '.join(present)}: keep one of them per folder")
    if "*.npy" in present and len(inputs) > 1:
        names = ", ".join(f"'{value.name}'" for value in inputs)
        raise ExpruneError(
            f"{folder}: *.npy files serve models with one input, this one has {len(inputs)} ({names}): "
            "store them by name in *.npz files"
        )
    return next(iter(present.values()))


def read_headers(path: Path, inputs: Sequence[Input]) -> dict[str, Header]:
    """Types and shapes of a sample file's arrays, by input name, :data:`LABEL` and :data:`~.groups.GROUP`.

    Raises:
        ExpruneError: The file cannot be read, or does not hold what the model wants.
    """
    try:
        if path.suffix == ".npz":
            headers = _npz_headers(path)
            check_keys(path, headers, inputs)
            return headers
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {inputs[0].name: _npy_header(file, path.stat().st_size, str(path))}
        arrays = _read_protobufs(path, inputs)
        return {name: Header(array.dtype, array.shape) for name, array in arrays.items()}
    except ExpruneError:
        raise
    except OSError as error:
        raise ExpruneError(f"{path}: cannot be read ({error.strerror or error})") from None
    except _BROKEN as error:
        _broken(path, error)


def read_arrays(path: Path, inputs: Sequence[Input], headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    """A sample file's arrays, native byte order, C-contiguous; ``*.npy`` files are mapped.

    Args:
        path: The file.
        inputs: The model's inputs.
        headers: What :func:`read_headers` said.

    Raises:
        ExpruneError: The file cannot be read, has changed since, or its label is not finite.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in headers}
        elif path.suffix == ".npy":
            arrays = {inputs[0].name: np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            arrays = _read_protobufs(path, inputs)
    except ExpruneError:
        raise
    except OSError as error:
        raise ExpruneError(f"{path}: cannot be read ({error.strerror or error})") from None
    except _BROKEN as error:
        _broken(path, error)
    return checked_arrays(arrays, headers, inputs, str(path))


def checked_arrays(
    arrays: Mapping[str, np.ndarray], headers: Mapping[str, Header], inputs: Sequence[Input], where: str
) -> dict[str, np.ndarray]:
    """The arrays as they are to be used: native byte order, C-contiguous.

    Raises:
        ExpruneError: They are not what the headers say, or a label is not finite.
    """
    result = {}
    for name, header in headers.items():
        array = arrays[name]
        if array.shape != header.shape or array.dtype.newbyteorder("=") != header.dtype:
            raise ExpruneError(
                f"{where}: changed while it was being used: run again when nothing writes to it"
            )
        result[name] = np.asarray(array, dtype=header.dtype, order="C")
    label = result.get(LABEL) if all(value.name != LABEL for value in inputs) else None
    if label is not None and label.dtype.kind == "f" and not np.isfinite(label).all():
        raise ExpruneError(f"{where}: '{LABEL}' has NaN or infinite values: remove those samples")
    return result


def _broken(path: Path, error: Exception) -> NoReturn:
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    raise ExpruneError(f"{path}: is damaged or cut short ({text}): write it again") from None


def _npz_headers(path: Path) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    with zipfile.ZipFile(path) as archive:
        # What deflate promises to become: a thousand times the file, if it was made to.
        check_fits(sum(info.file_size for info in archive.infolist()), f"{path}: unpacked")
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise ExpruneError(f"{path}: holds '{name}', which is no array: write it with numpy.savez")
            if name in headers:
                raise ExpruneError(f"{path}: holds '{name}' twice: write it again with numpy.savez")
            with archive.open(info) as member:
                headers[name] = _npy_header(member, info.file_size, f"{path}: '{name}'")
    return headers


def _npy_header(file: IO[bytes], size: int, where: str) -> Header:
    """Reads an array's header and checks that ``size`` bytes are what it promises."""
    version = npy_format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ExpruneError(f"{where}: is an array of a structured type: store plain numbers")
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ExpruneError(f"{where}: holds pickled objects, which are never loaded: store plain numbers")
    if dtype.fields is not None or dtype.subdtype is not None:
        raise ExpruneError(f"{where}: is an array of a structured type: store plain numbers")
    elements = math.prod(shape)
    if not dtype.itemsize or not elements and max(shape, default=0) > _MOST_EMPTY:
        raise ExpruneError(f"{where}: is damaged: elements of no size, or too many of none: write it again")
    if min(shape, default=0) < 0 or size - file.tell() != elements * dtype.itemsize:
        raise ExpruneError(
            f"{where}: is damaged or cut short ({size - file.tell()} bytes for {elements * dtype.itemsize}): "
            "write it again"
        )
    return Header(dtype.newbyteorder("="), tuple(shape))


def check_keys(path: Path | str, headers: Mapping[str, Header], inputs: Sequence[Input]) -> None:
    """Checks that a file holds the model's inputs, maybe labels and groups, and nothing else.

    Raises:
        ExpruneError: It does not.
    """
    names = [value.name for value in inputs]
    wanted = ", ".join(f"'{name}'" for name in names)
    for name in headers:
        if name not in names and name not in (LABEL, GROUP):
            near = difflib.get_close_matches(name, [*names, LABEL, GROUP], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the model's inputs are {wanted}"
            raise ExpruneError(f"{path}: unknown key '{name}': {hint}")
    for name in names:
        if name not in headers:
            found = ", ".join(f"'{key}'" for key in headers) or "nothing"
            raise ExpruneError(f"{path}: has no array '{name}' (it holds {found}): the model needs {wanted}")
    if LABEL not in names and LABEL in headers and headers[LABEL].dtype.kind not in "biuf":
        raise ExpruneError(f"{path}: '{LABEL}' is {headers[LABEL].dtype}: labels must be numbers")
    if GROUP not in names and GROUP in headers:
        check_group(headers[GROUP], str(path))


def _read_protobufs(folder: Path, inputs: Sequence[Input]) -> dict[str, np.ndarray]:
    """``input_0.pb``, ``input_1.pb``, ... as the model's inputs, in order."""
    paths = [folder / f"input_{index}.pb" for index in range(len(inputs))]
    extra = sorted(p.name for p in folder.glob("input_*.pb") if p not in paths)
    if extra:
        raise ExpruneError(f"{folder}: has {extra[0]}, but the model has {len(inputs)} inputs: remove it")
    arrays = {}
    for path, value in zip(paths, inputs, strict=True):
        if not path.is_file():
            raise ExpruneError(
                f"{folder}: has no {path.name}: it belongs to the model's input '{value.name}'"
            )
        tensor = onnx.TensorProto()
        try:
            check_fits(path.stat().st_size, str(path))
            tensor.ParseFromString(path.read_bytes())
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ExpruneError(f"{path}: keeps its data in another file: store it inside")
            if min(tensor.dims, default=0) < 0:
                raise ExpruneError(f"{path}: has a negative size: write it again")
            array = onnx.numpy_helper.to_array(tensor)
        except ExpruneError:
            raise
        except _BROKEN as error:
            _broken(path, error)
        arrays[value.name] = array.astype(str) if array.dtype == object else array
    return arrays
