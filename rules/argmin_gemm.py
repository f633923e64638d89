"""Final Gemm or MatMul -> ArgMin: the nearest code of a codebook, the cheapest of many choices.

=============================================================  ==================================
before                                                         after
=============================================================  ==================================
``Gemm`` or ``MatMul(X, W)`` [``-> Add(b)``]                   what :mod:`.argmax_gemm` makes of
``-> ArgMin`` over the outputs                                 ``-W``, ``-b`` and ``ArgMax``
=============================================================  ==================================

Algebra: ``argmin_j z_j = argmax_j -z_j``, and ``-z = X (-W) + (-b)``. A float's negation is exact, and
rounding to nearest is symmetric, so equal scores stay equal and the order among all others turns round.
"""

from __future__ import annotations

import dataclasses

import onnx_graphsurgeon as gs
from exprune_cli.rules import argmax_gemm
from exprune_cli.rules._constants import Reason
from exprune_cli.rules._head import is_last, odd_flag, read_head
from exprune_cli.rules._linear import Linear, as_site, only_reader

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

NAME = "argmin-gemm"


def match(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """The folded linear op with its sign turned, up to and with the ArgMin."""
    linear = read_head(graph, node)
    if linear is None:
        return None
    end = only_reader(graph, linear.tensor)
    if isinstance(end, Reason) or end.domain or end.op != "ArgMin":
        return None
    return dataclasses.replace(
        linear,
        scale=-linear.scale,
        bias=-linear.bias,
        nodes=[*linear.nodes, end],
        tensor=end.outputs[0],
        stop=None,
    )


def check(graph: ModelGraph, linear: Linear) -> Reason | None:
    """Refuses an ArgMin that does not run over the outputs, and heads with nothing to skip."""
    if linear.outputs < 2:
        return Reason("one-class", "it has one output: there is nothing to choose")
    if linear.transposed_input:
        return Reason("transposed-input", "a head that reads its input transposed is not staged")
    axis = int(linear.nodes[-1].attrs.get("axis", 0))
    if not is_last(graph, linear, axis):
        return Reason("argmin-axis", f"its ArgMin does not run over the outputs (axis {axis})")
    return odd_flag(linear.nodes[-1])


def site(graph: ModelGraph, linear: Linear) -> Site:
    """The matched site: an ArgMax of the negated scores."""
    attributes = linear.nodes[-1].attrs
    return as_site(
        linear,
        NAME,
        "argmax",
        keepdims=bool(attributes.get("keepdims", 1)),
        select_last_index=bool(attributes.get("select_last_index", 0)),
    )


def rewrite(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Stages the site; returns the names of the new node and its survivors output."""
    return argmax_gemm.rewrite(graph, site, plan)
