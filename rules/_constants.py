"""Constants of a graph: initializers and Constant nodes, behind any Identity or Transpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from exprune_cli.graph import ModelGraph
from exprune_cli.weights import is_kept, stored_array


@dataclass(frozen=True)
class Reason:
    """Why a candidate is refused: a short code for machines, a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True)
class ConstantRef:
    """A constant that has not been read yet: weights are loaded one at a time, when needed."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


def constant_of(graph: ModelGraph, tensor: gs.Tensor) -> ConstantRef | Reason | None:
    """A constant, behind any Identity, Transpose or Constant node.

    Returns:
        The constant; a :class:`Reason` for one that must not be used; None if it is computed.
    """
    if isinstance(tensor, gs.Constant):
        if tensor.name in graph.overridable:
            return Reason("overridable-weight", f"'{tensor.name}' is a graph input that callers may set")
        return _reference(tensor)
    if len(tensor.inputs) != 1:
        return None
    node = tensor.inputs[0]
    if node.domain:
        return None
    if node.op == "Constant":
        return _constant_node(node)
    if node.op in ("Identity", "Transpose"):
        inner = constant_of(graph, node.inputs[0])
        if not isinstance(inner, ConstantRef) or node.op == "Identity":
            return inner
        perm = node.attrs.get("perm") or tuple(reversed(range(len(inner.shape))))
        shape = tuple(inner.shape[axis] for axis in perm)
        return dataclasses.replace(inner, shape=shape, load=lambda: np.transpose(inner.load(), perm))
    if node.op == "DequantizeLinear":
        return Reason("quantised", f"weight '{tensor.name}' is quantised (DequantizeLinear)")
    return None


def _reference(constant: gs.Constant) -> ConstantRef | Reason:
    values = constant._values
    if isinstance(values, gs.ir.tensor.SparseValues):
        return Reason("sparse-weight", f"'{constant.name}' is a sparse initializer")
    if isinstance(values.dtype, int):  # a type that NumPy lacks: its number in ONNX
        kind = onnx.TensorProto.DataType.Name(values.dtype).lower()
        return Reason("dtype", f"its weight '{constant.name}' is {kind}, not float32")
    # LazyValues are read anew each time: keeping them would hold every weight twice.
    load = partial(_load, values) if isinstance(values, gs.ir.tensor.LazyValues) else lambda: values
    return ConstantRef(constant.name, tuple(values.shape), np.dtype(values.dtype), load)


def _load(values: gs.ir.tensor.LazyValues) -> np.ndarray:
    array: np.ndarray = stored_array(values.tensor) if is_kept(values.tensor) else values.load()
    return array


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _constant_node(node: gs.Node) -> ConstantRef | Reason | None:
    for key, value in node.attrs.items():
        if key == "value" and isinstance(value, gs.Constant):
            return _reference(value)
        if key in ("value_float", "value_floats", "value_int", "value_ints"):
            array = np.asarray(value, np.float32 if "float" in key else np.int64)
            return ConstantRef(node.outputs[0].name, array.shape, array.dtype, partial(_same, array))
    return None


def small_constant(graph: ModelGraph, tensor: gs.Tensor) -> np.ndarray | None:
    """Values of a constant tensor; None if it is computed or may be overridden."""
    constant = constant_of(graph, tensor)
    return constant.load() if isinstance(constant, ConstantRef) else None
