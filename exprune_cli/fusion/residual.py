"""A sum of two tensors, one of them with a bias, and its LayerNormalization: one operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from exprune_cli.functions import FUSED_DOMAIN
from exprune_cli.fusion.patterns import biased, is_inner, is_vector, made_by
from exprune_cli.graph import ModelGraph, detach

OP = "ResidualNorm"


def apply(graph: ModelGraph) -> list[str]:
    """Fuses every such sum; returns the operators that were put in."""
    return [OP for node in list(graph.nodes()) if _fuse(graph, node)]


def _fuse(graph: ModelGraph, norm: gs.Node) -> bool:
    if norm.op != "LayerNormalization" or norm.domain or len(norm.outputs) != 1 or len(norm.inputs) != 3:
        return False
    total, *vectors = norm.inputs
    shape, add = graph.shapes.get(total.name), made_by(total, "Add")
    if not shape or norm.attrs.get("axis", -1) not in (-1, len(shape) - 1):
        return False
    if add is None or not all(graph.same_shape(term.name, total.name) for term in add.inputs):
        return False
    if not all(is_vector(graph, vector, shape[-1]) for vector in vectors):
        return False
    first, second = add.inputs
    old, bias = [add, norm], None
    for term, other in ((second, first), (first, second)):
        found = biased(graph, term)
        if found is not None and is_inner(graph, term) and term is not other:
            addition, second, bias = found
            first, old = other, [addition, *old]
            break
    if bias is None:
        bias = graph.shared_constant(f"exprune/zeros_{shape[-1]}", np.zeros(int(shape[-1] or 0), np.float32))
    normed = norm.outputs[0]
    detach(old)
    new = gs.Node(
        OP,
        norm.name,
        {"epsilon": norm.attrs.get("epsilon", 1e-5)},
        [gs.Variable(tensor.name) for tensor in (first, second, bias, *vectors)],
        [normed, total],
        domain=FUSED_DOMAIN,
    )
    graph.replace(old, [new])
    for tensor in (normed, total):
        graph.declare(tensor.name, onnx.TensorProto.FLOAT, shape)
    return True
