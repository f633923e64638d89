"""Gemm or MatMul -> ReLU.

=============================================================  ==================================
before                                                         after
=============================================================  ==================================
``Gemm(X, W, C)`` with transA, transB, alpha, beta, or         ``PrefixGemm<Test>(X, order, ends,
``MatMul(X, W)`` with any leading dimensions of X              W_head, W_tail, b', other, max,
[``-> Add(b)``, either order] [``-> BatchNormalization``]      <test arrays>)``
[``-> Add(other)``] ``-> Relu`` or ``Clip(0, max)``            or ``QuantizedGemmBound(X, codes,
                                                               scale, error, norm, W', b', other,
                                                               max)`` or ``LowRankGemmThreshold(
                                                               X, V, U, W', b', other, max,
                                                               limit)``, in a cascade with
                                                               ``U_more``, ``limit_more``
=============================================================  ==================================

Algebra: ``alpha`` and the BatchNormalization's factor go into ``W' [N, G]``, ``beta C``, biases
and shifts into ``b' [N]``. A Gemm's computed ``C`` (with beta = 1) or an added tensor of the
output's shape is the offset ``other``, known when the site runs. As in :mod:`.relu_conv`, the
sum over input features is taken chunk by chunk. A Gemm with transA gets a Transpose before it.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import Reason
from exprune_cli.rules._linear import Linear
from exprune_cli.rules._relu import match_relu, relu_site, rewrite_relu

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

NAME = "relu-gemm"


def match(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """The folded Gemm or MatMul, up to and with its ReLU."""
    return match_relu(graph, node) if node.op in ("Gemm", "MatMul") else None


def check(graph: ModelGraph, linear: Linear) -> Reason | None:
    """Nothing beyond what matching saw."""
    return None


def site(graph: ModelGraph, linear: Linear) -> Site:
    """The matched site."""
    return relu_site(graph, linear, NAME)


def rewrite(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Stages the site; returns the names of the new node and its survivors output."""
    return rewrite_relu(graph, site, plan, "PrefixGemm")
