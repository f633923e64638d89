"""What the rules of final layers share: the linear op, the class axis, a TopK's k."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import Reason, small_constant
from exprune_cli.rules._linear import Linear, follow, read_linear

from exprune_cli.graph import ModelGraph


def read_head(graph: ModelGraph, node: gs.Node) -> Linear | None:
    """A Gemm or MatMul with its constant biases; None for anything else, refused or not."""
    if node.op not in ("Gemm", "MatMul"):
        return None
    linear = read_linear(graph, node)
    return None if isinstance(linear, Reason) else follow(graph, linear, offset=False)


def is_last(graph: ModelGraph, linear: Linear, axis: int) -> bool:
    """Whether an axis of the linear op's result is the last one, the classes."""
    rank = 2 if linear.node.op == "Gemm" else graph.rank(linear.node.outputs[0].name)
    return axis == -1 or (rank is not None and axis == rank - 1)


def odd_flag(end: gs.Node) -> Reason | None:
    """Refuses flags that are neither 0 nor 1: ONNX Runtime reads other numbers as it likes."""
    for name in ("keepdims", "select_last_index", "largest"):
        value = end.attrs.get(name, 0)
        if value not in (0, 1):
            return Reason("odd-flag", f"its {end.op} has {name} = {value}, which is neither 0 nor 1")
    return None


def constant_k(graph: ModelGraph, top_k: gs.Node) -> int | None:
    """The k of a TopK; None if it is computed."""
    k = small_constant(graph, top_k.inputs[1]) if len(top_k.inputs) > 1 else None
    return None if k is None or np.size(k) != 1 else int(np.reshape(k, ()))
