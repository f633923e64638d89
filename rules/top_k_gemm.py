"""Final Gemm or MatMul -> TopK.

=============================================================  ==================================
before                                                         after
=============================================================  ==================================
``Gemm`` or ``MatMul(X, W)`` [``-> Add(b)``]                   ``QuantizedTopKBound(X, codes,
``-> TopK(k)``, k constant, at most 64, largest                scale, error, norm, W', b, k)``
=============================================================  ==================================

Algebra: with a sound interval for every score, a class whose upper end is below the k-th largest
lower end is not among the k best. The others are computed in full, and so are the values. Equal
scores come in the order of their classes, as ONNX says.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import Reason
from exprune_cli.rules._head import constant_k, is_last, odd_flag, read_head
from exprune_cli.rules._linear import Linear, as_site, only_reader
from exprune_cli.rules._stage import insert, quantized_inputs

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

NAME = "top-k-gemm"

#: What the kernel holds per row.
MOST_K = 64


def match(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """The folded linear op, up to and with the TopK."""
    linear = read_head(graph, node)
    if linear is None:
        return None
    end = only_reader(graph, linear.tensor)
    if isinstance(end, Reason) or end.domain or end.op != "TopK":
        return None
    return dataclasses.replace(linear, nodes=[*linear.nodes, end], tensor=end.outputs[1], stop=None)


def check(graph: ModelGraph, linear: Linear) -> Reason | None:
    """Refuses a TopK that is not over the classes, or has too large a k."""
    end = linear.nodes[-1]
    if linear.transposed_input:
        return Reason("transposed-input", "a head that reads its input transposed is not staged")
    k = constant_k(graph, linear.nodes[-1])
    if k is None or not end.attrs.get("largest", 1):
        return Reason("topk", "its TopK is not of the largest, or its k is not a constant")
    if not 1 <= k <= min(MOST_K, linear.outputs):
        return Reason("topk", f"its TopK has k = {k}; 1 to {min(MOST_K, linear.outputs)} are staged")
    axis = int(end.attrs.get("axis", -1))
    if not is_last(graph, linear, axis):
        return Reason("topk-axis", f"its TopK does not run over the classes (axis {axis})")
    return odd_flag(end)


def site(graph: ModelGraph, linear: Linear) -> Site:
    """The matched site."""
    k = constant_k(graph, linear.nodes[-1])
    assert k is not None
    values = linear.nodes[-1].outputs[0].name
    return as_site(linear, NAME, "top_k", k=k, values=values or None)


def rewrite(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Stages the site; returns the names of the new node and its survivors output."""
    k = graph.shared_constant(f"exprune/k_{site.k}", np.array([site.k], np.int64))
    inputs = [*quantized_inputs(graph, site, plan), k]
    return insert(graph, site, plan, "QuantizedTopKBound", inputs, {})
