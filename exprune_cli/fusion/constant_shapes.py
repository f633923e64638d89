"""Shapes that are computed although they are known: constants in their place.

Exporters write ``x.reshape(x.shape[0], x.shape[1], heads, -1)`` as a dozen nodes that take the shape of ``x`` apart
and put another one together. A Reshape can be told the same by a constant: 0 stands for the input's own size.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from exprune_cli.graph import ModelGraph, detach
from exprune_cli.rules._constants import small_constant
from exprune_cli.shapes import Dims


def apply(graph: ModelGraph) -> int:
    """Makes shapes constant; returns how many."""
    count = 0
    for node in list(graph.nodes()):
        if node.domain:
            continue
        if node.op == "Reshape" and len(node.inputs) == 2:
            count += _reshape(graph, node)
        elif node.op == "Gather":
            count += _size(graph, node)
    return count


def _reshape(graph: ModelGraph, node: gs.Node) -> bool:
    """Gives a Reshape whose target is computed a constant one, where its sizes are known or its input's."""
    data, target = node.inputs
    given = small_constant(graph, target)
    if node.attrs.get("allowzero", 0) or (given is not None and -1 not in given):
        return False
    before, after = graph.shapes.get(data.name), graph.shapes.get(node.outputs[0].name)
    if before is None or after is None:
        return False
    sizes = target_of(before, after)
    if sizes is None:
        return False
    constant = graph.constant(f"{node.name or node.outputs[0].name}/shape", np.array(sizes, np.int64))
    _in_place(graph, node, gs.Node("Reshape", node.name, {}, [gs.Variable(data.name), constant], []))
    return True


def target_of(before: Dims, after: Dims) -> list[int] | None:
    """What to tell a Reshape from ``before`` to ``after``: sizes, and 0 for the input's size at the same place.

    One unknown size is worked out from the others where those of the input that are open are kept. None if a size is
    neither known nor the input's: -1 is not taken in its place, which ONNX Runtime refuses for empty tensors.
    """
    sizes: list[int | None] = []
    for i, size in enumerate(after):
        if isinstance(size, int):
            sizes.append(size if size > 0 else None)
        else:
            sizes.append(0 if i < len(before) and size is not None and size == before[i] else None)
    if sizes.count(None) == 1:
        kept = {i for i, size in enumerate(sizes) if size == 0}
        rest = [size for i, size in enumerate(before) if i not in kept]
        known = math.prod(size for size in sizes if size)
        if all(isinstance(size, int) for size in rest):
            total = math.prod(size for size in rest if isinstance(size, int))
            if total and total % known == 0:
                sizes[sizes.index(None)] = total // known
    if any(size is None for size in sizes):
        return None
    return [size for size in sizes if size is not None]


def _size(graph: ModelGraph, node: gs.Node) -> bool:
    """Makes ``x.shape[i]`` a constant, where it is known."""
    if node.attrs.get("axis", 0) or len(node.inputs[0].inputs) != 1:
        return False
    shape = node.inputs[0].inputs[0]
    index = small_constant(graph, node.inputs[1])
    if shape.op != "Shape" or shape.domain or index is None or set(shape.attrs) & {"start", "end"}:
        return False
    dims = graph.shapes.get(shape.inputs[0].name)
    if dims is None or np.any(index >= len(dims)) or np.any(index < -len(dims)):
        return False
    sizes = [dims[i] for i in index.reshape(-1)]
    if not all(isinstance(size, int) for size in sizes):
        return False
    value = onnx.numpy_helper.from_array(np.array(sizes, np.int64).reshape(index.shape))
    _in_place(graph, node, gs.Node("Constant", node.name, {"value": value}, [], []))
    return True


def _in_place(graph: ModelGraph, old: gs.Node, new: gs.Node) -> None:
    outputs = list(old.outputs)
    detach([old])
    new.outputs = outputs
    graph.replace([old], [new])
