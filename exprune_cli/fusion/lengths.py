"""Sizes that are not known, but known to be at most 1: how much of a table a decode step reads.

Exporters write the position's embedding as ``table[past : past + 1]``. Its length is open to shape inference, and so
is then the length of all that is added to it.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exprune_cli.fusion.patterns import made_by, scalar
from exprune_cli.graph import ModelGraph
from exprune_cli.rules._constants import small_constant


def at_most_one(graph: ModelGraph) -> set[str]:
    """The symbols that stand for sizes of 0 or 1."""
    found = set()
    for node in graph.nodes():
        axis = _single(graph, node) if node.op == "Slice" and not node.domain else None
        shape = graph.shapes.get(node.outputs[0].name) if axis is not None else None
        if axis is None or shape is None or axis >= len(shape) or not isinstance(shape[axis], str):
            continue
        if _next_of(graph, node.inputs[1], node.inputs[2]):
            found.add(str(shape[axis]))
    return found


def next_row(graph: ModelGraph, node: gs.Node) -> gs.Tensor | None:
    """Of a Slice ``table[start : start + 1]`` along the first axis, ``start`` behind what only changes its rank."""
    if _single(graph, node) != 0 or not _next_of(graph, node.inputs[1], node.inputs[2]):
        return None
    return _unwrapped(node.inputs[1])


def _single(graph: ModelGraph, node: gs.Node) -> int | None:
    """The axis of a Slice along one axis, in steps of 1."""
    if len(node.inputs) < 4 or (len(node.inputs) > 4 and scalar(graph, node.inputs[4]) != 1):
        return None
    axes = small_constant(graph, node.inputs[3])
    if axes is None and made_by(node.inputs[3], "Unsqueeze") is not None:
        value = scalar(graph, node.inputs[3])
        return int(value) if value is not None and value >= 0 else None
    return int(axes[0]) if axes is not None and axes.shape == (1,) and axes[0] >= 0 else None


def _next_of(graph: ModelGraph, start: gs.Tensor, end: gs.Tensor) -> bool:
    """Whether ``end`` is ``start + 1``."""
    add = made_by(_unwrapped(end), "Add")
    if add is None:
        return False
    start = _unwrapped(start)
    return any(
        _unwrapped(one) is start and scalar(graph, other) == 1
        for one, other in (add.inputs, add.inputs[::-1])
    )


def _unwrapped(tensor: gs.Tensor) -> gs.Tensor:
    """A tensor of one element behind what only changes its rank."""
    while (node := made_by(tensor, "Unsqueeze", "Squeeze", "Identity")) is not None:
        tensor = node.inputs[0]
    return tensor
