"""Final Gemm or MatMul -> ArgMax.

=============================================================  ==================================
before                                                         after
=============================================================  ==================================
``Gemm`` or ``MatMul(X, W)`` [``-> Add(b)``]                   ``PrefixArgMax<Test>(X, order,
[``-> Softmax, LogSoftmax, Sigmoid, Identity``, ``Mul`` or     ends, W_head, W_tail, b,
``Div`` by a positive number, any of them]                     <test arrays>)``
``-> ArgMax`` or ``TopK(k = 1)`` of which the index is used    or ``QuantizedArgMaxBound(X, codes,
                                                               scale, error, norm, W', b)`` or
                                                               ``LowRankArgMaxThreshold(X, V, U,
                                                               W', b, shift, margin)``, in a
                                                               cascade with ``U_more``,
                                                               ``shift_more``, ``margin_more``
=============================================================  ==================================

Algebra: the functions in between are strictly increasing along the class axis, so the index of
the largest score is the index of the largest logit (up to ties that their rounding makes).
A class leaves the race when what it can still gain does not reach the leader: the paper's
Dominance Prediction. Only the classes that remain are finished.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import Reason, small_constant
from exprune_cli.rules._head import constant_k, is_last, odd_flag, read_head
from exprune_cli.rules._linear import Linear, as_site, only_reader
from exprune_cli.rules._stage import (
    OP_SUFFIX,
    chunk_inputs,
    insert,
    low_rank_inputs,
    quantized_inputs,
    test_inputs,
)

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

NAME = "argmax-gemm"

_ALONG_AXIS = ("Softmax", "LogSoftmax")
_TEST_NAMES = {"Threshold": ("scale", "shift", "margin"), "Bound": ("radius", "slack"), "Stats": ()}


def match(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """The folded linear op and its monotone followers, up to and with the ArgMax."""
    linear = read_head(graph, node)
    if linear is None:
        return None
    while True:
        end = only_reader(graph, linear.tensor)
        if isinstance(end, Reason):
            return None
        if not _keeps_order(graph, linear, end):
            break
        linear = dataclasses.replace(linear, nodes=[*linear.nodes, end], tensor=end.outputs[0])
    if end.domain or end.op not in ("ArgMax", "TopK"):
        return None
    index = end.outputs[-1]
    return dataclasses.replace(linear, nodes=[*linear.nodes, end], tensor=index, stop=None)


def check(graph: ModelGraph, linear: Linear) -> Reason | None:
    """Refuses an end that is no ArgMax over the classes, and heads with nothing to skip."""
    end = linear.nodes[-1]
    if linear.outputs < 2:
        return Reason("one-class", "it has one class: there is nothing to choose")
    if linear.transposed_input:
        return Reason("transposed-input", "a head that reads its input transposed is not staged")
    axis = int(end.attrs.get("axis", 0 if end.op == "ArgMax" else -1))
    if not is_last(graph, linear, axis):
        return Reason("argmax-axis", f"its {end.op} does not run over the classes (axis {axis})")
    if end.op == "TopK":
        if constant_k(graph, end) != 1 or not end.attrs.get("largest", 1):
            return Reason("topk", "its TopK is not k = 1 of the largest")
        values = end.outputs[0]
        if values.name and (graph.readers(values) or values.name in graph.outputs):
            return Reason("topk-values", "the values of its TopK are used, not the index alone")
    return odd_flag(end)


def site(graph: ModelGraph, linear: Linear) -> Site:
    """The matched site."""
    end = linear.nodes[-1]
    return as_site(
        linear,
        NAME,
        "argmax",
        keepdims=end.op == "TopK" or bool(end.attrs.get("keepdims", 1)),
        select_last_index=bool(end.attrs.get("select_last_index", 0)),
    )


def rewrite(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Stages the site; returns the names of the new node and its survivors output."""
    attributes: dict[str, object] = {
        "keepdims": int(site.keepdims),
        "select_last_index": int(site.select_last_index),
    }
    if plan.estimate == "quantized":
        return insert(
            graph, site, plan, "QuantizedArgMaxBound", quantized_inputs(graph, site, plan), attributes
        )
    if plan.estimate == "low-rank":
        estimate = [*low_rank_inputs(graph, site, plan), *test_inputs(graph, site, plan, ("shift", "margin"))]
        if "U_more" not in plan.parameters:
            return insert(graph, site, plan, "LowRankArgMaxThreshold", estimate, attributes)
        estimate += test_inputs(graph, site, plan, ("U_more", "shift_more", "margin_more"))
        return insert(graph, site, plan, "LowRankCascadeArgMaxThreshold", estimate, attributes)
    suffix = OP_SUFFIX[plan.test or ""]
    if suffix == "Stats":
        attributes["z"] = plan.z
    inputs: list[gs.Tensor] = [gs.Variable(site.input), *chunk_inputs(graph, site, plan)]
    inputs += test_inputs(graph, site, plan, _TEST_NAMES[suffix])
    return insert(graph, site, plan, "PrefixArgMax" + suffix, inputs, attributes)


def _keeps_order(graph: ModelGraph, linear: Linear, node: gs.Node) -> bool:
    if node.domain:
        return False
    if node.op in ("Identity", "Sigmoid"):
        return True
    if node.op in _ALONG_AXIS:
        default = -1 if graph.model.opset >= 13 else 1
        return is_last(graph, linear, int(node.attrs.get("axis", default)))
    if node.op in ("Mul", "Div"):
        other = node.inputs[1] if node.inputs[0] is linear.tensor else node.inputs[0]
        if node.op == "Div" and other is node.inputs[0]:
            return False
        factor = small_constant(graph, other)
        if factor is None or factor.size != 1 or factor.ndim > 1:
            return False
        return 0 < float(factor.reshape(())) < np.inf
    return False
