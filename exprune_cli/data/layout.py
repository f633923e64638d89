"""What a model wants to be fed, and what one sample of a file is (see :mod:`exprune_cli.data`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError

#: The key that holds labels, unless a model input is called so.
LABEL = "label"


@dataclass(frozen=True)
class Input:
    """A model input.

    Attributes:
        name: Its name.
        dtype: NumPy type of its elements; ``str`` for a string tensor.
        dims: Sizes, symbols' names, or None where a size is unknown and unnamed; None as a
            whole if the rank is unknown.
    """

    name: str
    dtype: np.dtype
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Header:
    """Type and shape of a stored array, known without reading it."""

    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a file divides into samples along axis 0.

    Attributes:
        samples: Samples in the file.
        rows: Entries of axis 0 that a sample takes; None if it takes the arrays as they are.
        together: Whether several samples can be run at once.
    """

    samples: int
    rows: int | None
    together: bool


def read_inputs(proto: onnx.ModelProto) -> list[Input]:
    """The inputs that a caller feeds.

    Raises:
        ExpruneError: There is none, or one that is no tensor.
    """
    from exprune_cli.model import model_inputs

    inputs = []
    for value in model_inputs(proto):
        if not value.type.HasField("tensor_type"):
            raise ExpruneError(f"the model's input '{value.name}' is no tensor: samples cannot be fed to it")
        tensor = value.type.tensor_type
        if not tensor.elem_type:
            raise ExpruneError(f"the model's input '{value.name}' has no type: samples cannot be fed to it")
        dims = tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        inputs.append(Input(value.name, np.dtype(str) if dtype == object else dtype, dims))
    if not inputs:
        raise ExpruneError("the model has no inputs: there is nothing to feed samples to")
    return inputs


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def sample_layout(inputs: Sequence[Input], headers: Mapping[str, Header], where: str) -> Layout:
    """Checks a file's arrays against the model, and says what a sample of the file is.

    Args:
        inputs: The model's inputs.
        headers: The file's arrays by input name, and the label's under :data:`LABEL`.
        where: The file's name in messages.

    Raises:
        ExpruneError: An array has a wrong type or shape, or there is no sample.
    """
    static = _static_rows(inputs)
    for value in inputs:
        _check(value, headers[value.name], static, where)
    firsts = {header.shape[0] if header.shape else None for header in headers.values()}
    size = firsts.pop() if len(firsts) == 1 else None
    if size == 0 and (static or _shared_batch(inputs)):
        raise ExpruneError(f"{where}: has no samples (its arrays' first size is 0): remove it")
    if size is not None and _shared_batch(inputs):
        return Layout(size, 1, True)
    if size is not None and static and size % static == 0:
        return Layout(size // static, static, False)
    if static and any(headers[value.name].shape[0] != static for value in inputs):
        sizes = ", ".join(f"'{name}' {header.shape}" for name, header in headers.items())
        raise ExpruneError(
            f"{where}: the arrays disagree about the number of samples ({sizes}): "
            f"give all of them, the label too, the same first size, a multiple of {static}"
        )
    scalar_label = LABEL in headers and not headers[LABEL].shape
    if _shared_batch(inputs) and scalar_label and all(headers[v.name].shape[0] == 1 for v in inputs):
        return Layout(1, 1, True)
    return Layout(1, None, False)


def _shared_batch(inputs: Sequence[Input]) -> bool:
    """Whether all inputs have the same dynamic first dimension (or all an unnamed one)."""
    firsts = {value.dims[0] if value.dims else 0 for value in inputs}
    return len(firsts) == 1 and not isinstance(next(iter(firsts)), int)


def _static_rows(inputs: Sequence[Input]) -> int:
    """The one static first size of all inputs; 0 if there is no such thing."""
    firsts = {value.dims[0] if value.dims else 0 for value in inputs}
    first = firsts.pop()
    return first if not firsts and isinstance(first, int) else 0


def _check(value: Input, header: Header, static: int, where: str) -> None:
    same = header.dtype.kind == "U" if value.dtype.kind == "U" else header.dtype == value.dtype
    if not same:
        raise ExpruneError(
            f"{where}: '{value.name}' is {header.dtype}, the model wants {_dtype_name(value.dtype)}: "
            "convert the array with astype"
        )
    if value.dims is None:
        return
    wanted = "[" + ", ".join("?" if d is None else str(d) for d in value.dims) + "]"
    found = "[" + ", ".join(map(str, header.shape)) + "]"
    if len(header.shape) != len(value.dims):
        hint = ": add the batch axis" if len(header.shape) + 1 == len(value.dims) else ""
        raise ExpruneError(
            f"{where}: '{value.name}' has {len(header.shape)} dimensions {found}, "
            f"the model wants {len(value.dims)} {wanted}{hint}"
        )
    for axis, (size, dim) in enumerate(zip(header.shape, value.dims, strict=True)):
        if not isinstance(dim, int) or size == dim or (axis == 0 and static and size % static == 0):
            continue
        multiple = " or a multiple of it" if axis == 0 and static else ""
        raise ExpruneError(
            f"{where}: '{value.name}' has shape {found}, the model wants {wanted}: "
            f"axis {axis} must be {dim}{multiple}"
        )


def _dtype_name(dtype: np.dtype) -> str:
    return "str" if dtype.kind == "U" else str(dtype)
