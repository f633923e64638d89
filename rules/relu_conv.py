"""Conv -> ReLU.

=============================================================  ==================================
before                                                         after
=============================================================  ==================================
``Conv(X, W, b)``, 1-D or 2-D, any strides, dilations, pads    ``PrefixConv<Test>(X, order, ends,
[``-> BatchNormalization``] [``-> Add(other)``, either order]  W_head, W_tail, b', other, max,
``-> Relu`` or ``Clip(0, max)``                                <test arrays>)``; or
                                                               ``[Dynamic]PrefixConvBlock(...)``; or
                                                               ``SparseConvThreshold(...)``; or
                                                               ``ConvRelu(X, W, b', other, max)``;
                                                               or in panels of 16 output channels
                                                               ``PrefixConvPanel(...)``,
                                                               ``ConvReluPanel(...)``
=============================================================  ==================================

Algebra: with the BatchNormalization's factor ``f = gamma / sqrt(var + eps)`` and shift,
``W' = f W`` and ``b' = f (b - mean) + beta``. A sum over input channels may be taken in any
order, so ``z = sum over chunks of (W' chunk * X chunk) + b' + other``; after a chunk, a test on
the partial sum decides outputs for which ``relu(z) = 0`` is certain (or likely enough).
The other operand of the Add is known when the site runs: an offset of the test.
A Pad of zeros before the Conv is folded into its pads. ``ConvRelu`` and
``ConvReluPanel`` are the whole Conv, exact.
``SparseConvThreshold`` multiplies no input that is zero: those terms are zero (weights are finite).
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from exprune_cli.rules._blocks import rewrite_blocks
from exprune_cli.rules._constants import Reason
from exprune_cli.rules._linear import Linear
from exprune_cli.rules._panels import rewrite_panels
from exprune_cli.rules._relu import match_relu, relu_site, rewrite_relu
from exprune_cli.rules._sparse_conv import rewrite_sparse

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

NAME = "relu-conv"


def match(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """The folded Conv, up to and with its ReLU."""
    return match_relu(graph, node) if node.op == "Conv" else None


def check(graph: ModelGraph, linear: Linear) -> Reason | None:
    """Nothing beyond what matching saw."""
    return None


def site(graph: ModelGraph, linear: Linear) -> Site:
    """The matched site."""
    return relu_site(graph, linear, NAME)


def rewrite(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Stages the site; returns the names of the new node and its survivors output."""
    if plan.panel:
        return rewrite_panels(graph, site, plan)
    if plan.block is not None:
        return rewrite_blocks(graph, site, plan)
    if plan.input_nonzero:
        return rewrite_sparse(graph, site, plan)
    return rewrite_relu(graph, site, plan, "PrefixConv")
