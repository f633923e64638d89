"""Fusing what stands around the sites: attention, residual sums, the arithmetic of shapes.

A decode step of a small language model spends half of its time in calling small operators. ONNX Runtime fuses the
patterns of some exporters; this package goes by what is computed:

======================= ======================================================= ========================
module                  from                                                    to
======================= ======================================================= ========================
:mod:`.constant_shapes` the shape that a Reshape is given, as computed by        a constant
                        Shape, Gather, Concat, ...
:mod:`.attention`       ``softmax(s Q K^T) V`` over heads with a cache, and      CachedAttention
                        the projections before it
:mod:`.residual`        ``LayerNormalization(x + (y + b))``                      ResidualNorm
:mod:`.embedding`       ``table[token] + positions[past : past + 1]``           TokenEmbedding
======================= ======================================================= ========================

Nothing is approximated, but sums are taken in another order: results are equal up to rounding. The operators are
kernels of the native runtime, and carry their definition with them as staged ones do.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.functions import FUSED_DOMAIN, FUSED_MIN_OPSET, fused_function_proto
from exprune_cli.fusion import attention, constant_shapes, embedding, residual
from exprune_cli.fusion.order import sort_nodes
from exprune_cli.graph import ModelGraph
from exprune_cli.model import Model

#: Rounds of making shapes constant: what the first one finds may settle further shapes.
_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Fused:
    """A model with fused operators.

    Attributes:
        model: The model; the given one itself if nothing was fused.
        counts: How many operators of each type were put in.
        speedup: By how much that alone makes the model faster here; None where it was not timed.
    """

    model: Model
    counts: dict[str, int]
    speedup: float | None = None


def fuse(model: Model) -> Fused:
    """Fuses what can be fused.

    Args:
        model: The original; not changed.

    Returns:
        The fused model. Inputs, outputs and the names of all tensors and linear operators that are left are the
        original's.
    """
    if model.opset < FUSED_MIN_OPSET or not _may_fuse(model.proto.graph.node):
        return Fused(model, {})
    try:
        current = model
        for _ in range(_ROUNDS):
            graph = ModelGraph(current)
            if not constant_shapes.apply(graph):
                break
            current = _edited(current, graph, [])
        # In one graph: of operators that ONNX does not define it infers no shapes.
        graph = ModelGraph(current)
        ops = [*attention.apply(graph), *residual.apply(graph), *embedding.apply(graph)]
        current = _edited(current, graph, ops)
    except ExpruneError:  # a graph that cannot be edited goes through unharmed
        return Fused(model, {})
    return Fused(current, dict(Counter(ops))) if ops else Fused(model, {})


def _may_fuse(nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(node.op_type == "LayerNormalization" and not node.domain for node in nodes)


def _edited(model: Model, graph: ModelGraph, ops: Iterable[str]) -> Model:
    functions = [fused_function_proto(op, model.opset) for op in sorted({*ops})]
    proto = graph.graft(functions, FUSED_DOMAIN)
    sort_nodes(proto.graph)
    return dataclasses.replace(model, proto=proto)
