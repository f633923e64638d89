"""What the fusions look for: small questions about a tensor and the node that makes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from exprune_cli.graph import ModelGraph
from exprune_cli.rules._constants import ConstantRef, constant_of

#: Operators of one or two scalars that scores are scaled by.
_SCALAR: dict[str, Callable[..., np.ndarray]] = {
    "Cast": lambda x: x,
    "Div": np.divide,
    "Identity": lambda x: x,
    "Mul": np.multiply,
    "Pow": np.power,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
    "Squeeze": lambda x, axes=None: x.reshape(()),
    "Unsqueeze": lambda x, axes=None: x.reshape(()),
}


def made_by(tensor: gs.Tensor, *ops: str) -> gs.Node | None:
    """The node that makes a tensor as its first output, if it is one of these standard operators."""
    if len(tensor.inputs) != 1:
        return None
    node = tensor.inputs[0]
    return node if node.op in ops and not node.domain and node.outputs[0] is tensor else None


def is_inner(graph: ModelGraph, tensor: gs.Tensor) -> bool:
    """Whether one node reads a tensor and nothing else does."""
    return graph.readers(tensor) == 1 and tensor.name not in graph.outputs


def scalar(graph: ModelGraph, tensor: gs.Tensor) -> float | None:
    """The value of a constant of one element, or of one that is computed from such constants."""
    constant = constant_of(graph, tensor)
    if isinstance(constant, ConstantRef):
        return float(constant.load().reshape(())) if constant.shape in ((), (1,)) else None
    node = made_by(tensor, *_SCALAR)
    if node is None:
        return None
    values = [scalar(graph, operand) for operand in node.inputs]
    if any(value is None for value in values):
        return None
    with np.errstate(all="ignore"):
        result = float(_SCALAR[node.op](*(np.asarray(value, np.float32) for value in values)))
    return result if np.isfinite(result) else None


def is_vector(graph: ModelGraph, tensor: gs.Tensor, size: object) -> bool:
    """Whether a tensor is a constant float32 vector of this size."""
    constant = constant_of(graph, tensor)
    return isinstance(constant, ConstantRef) and constant.shape == (size,) and constant.dtype == np.float32


def biased(graph: ModelGraph, tensor: gs.Tensor) -> tuple[gs.Node, gs.Tensor, gs.Tensor] | None:
    """The Add, the sum without the bias and the bias, of a sum with a constant vector as wide as its last axis."""
    add, shape = made_by(tensor, "Add"), graph.shapes.get(tensor.name)
    if add is None or not shape:
        return None
    for bias, rest in (add.inputs, add.inputs[::-1]):
        if is_vector(graph, bias, shape[-1]) and graph.same_shape(rest.name, tensor.name):
            return add, rest, bias
    return None


def permutation(node: gs.Node) -> tuple[int, ...]:
    """What a Transpose does; empty where it only says that it turns all axes round."""
    return tuple(node.attrs.get("perm", ()))
