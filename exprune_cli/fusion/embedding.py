"""A decode step's embeddings: those of its tokens, plus the next row of a table of positions, as one operator.

Exporters write the latter as ``positions[past : past + 1]``, where ``past`` is taken out of the shape of a cache: half a
dozen operators for one row.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from exprune_cli.functions import FUSED_DOMAIN
from exprune_cli.fusion.lengths import next_row
from exprune_cli.fusion.patterns import is_inner, made_by
from exprune_cli.graph import ModelGraph, detach
from exprune_cli.rules._constants import ConstantRef, constant_of, small_constant

OP = "TokenEmbedding"


def apply(graph: ModelGraph) -> list[str]:
    """Fuses every such sum; returns the operators that were put in."""
    return [OP for node in list(graph.nodes()) if _fuse(graph, node)]


def _fuse(graph: ModelGraph, add: gs.Node) -> bool:
    if add.op != "Add" or add.domain:
        return False
    for rows, row in (add.inputs, add.inputs[::-1]):
        gather, cut = made_by(rows, "Gather"), made_by(row, "Slice")
        if gather is not None and cut is not None and is_inner(graph, rows) and is_inner(graph, row):
            return _replace(graph, add, gather, cut)
    return False


def _replace(graph: ModelGraph, add: gs.Node, gather: gs.Node, cut: gs.Node) -> bool:
    (table, token), positions = gather.inputs, cut.inputs[0]
    start = next_row(graph, cut)
    size = _size(graph, start) if start is not None else None
    shape = graph.shapes.get(token.name)
    if size is None or shape is None or len(shape) != 2 or token.dtype != np.int64:
        return False
    widths = [_width(graph, each) for each in (table, positions)]
    if gather.attrs.get("axis", 0) != 0 or widths[0] is None or widths[0] != widths[1]:
        return False
    past, axis = size
    result, whole = add.outputs[0], graph.shapes.get(add.outputs[0].name)
    inputs = [gs.Variable(tensor.name) for tensor in (token, table, positions, past)]
    inputs.append(graph.shared_constant(f"exprune/axis_{axis}", np.array([axis], np.int64)))
    old = [add, gather, cut]
    detach(old)
    graph.replace(old, [gs.Node(OP, add.name, {}, inputs, [result], domain=FUSED_DOMAIN)])
    if whole is not None:
        graph.declare(result.name, onnx.TensorProto.FLOAT, whole)
    return True


def _width(graph: ModelGraph, table: gs.Tensor) -> int | None:
    """The columns of a constant matrix."""
    constant = constant_of(graph, table)
    if not isinstance(constant, ConstantRef) or len(constant.shape) != 2 or constant.dtype != np.float32:
        return None
    return constant.shape[1]


def _size(graph: ModelGraph, start: gs.Tensor) -> tuple[gs.Tensor, int] | None:
    """The tensor and the axis whose size this is."""
    pick = made_by(start, "Gather")
    shape = made_by(start if pick is None else pick.inputs[0], "Shape")
    rank = graph.rank(shape.inputs[0].name) if shape is not None else None
    if shape is None or rank is None or shape.inputs[0].dtype != np.float32:
        return None
    if pick is None:
        axis = shape.attrs.get("start", 0)
        end = shape.attrs.get("end", rank)
        axis, end = (place + rank if place < 0 else place for place in (axis, end))
        return (shape.inputs[0], axis) if 0 <= axis < rank and end == axis + 1 else None
    index = small_constant(graph, pick.inputs[1])
    if index is None or index.size != 1 or {"start", "end"} & {*shape.attrs}:
        return None
    axis = int(index.reshape(())) % rank
    return shape.inputs[0], axis
