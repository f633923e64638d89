"""ReLU -> Gemm or MatMul: the sparse consumer.

=============================================================  ==================================
before                                                         after
=============================================================  ==================================
``Relu(...) ->`` [reshaping] ``-> Gemm`` or ``MatMul(X, W)``   ``SparseGemm(X, W', b')``
[``-> Add(b)``]
=============================================================  ==================================

Algebra: ``y = sum over k with x_k != 0 of x_k W'[k, :] + b'``. Rows of ``W'`` whose input is
exactly zero are not read. Lossless: a NaN is not zero, and weights that are not finite (whose
product with zero is NaN) are refused.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import Reason
from exprune_cli.rules._linear import Linear, as_site, follow, read_linear
from exprune_cli.rules._relu import reads_relu
from exprune_cli.rules._stage import insert

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

NAME = "sparse-gemm"


def match(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """The linear op with its constant biases, if its input is a ReLU's output."""
    if node.op not in ("Gemm", "MatMul") or not reads_relu(graph, node.inputs[0]):
        return None
    linear = read_linear(graph, node)
    if isinstance(linear, Reason):
        return linear
    return linear if linear.offset is not None else follow(graph, linear, offset=False)


def check(graph: ModelGraph, linear: Linear) -> Reason | None:
    """Refuses computed biases, transposed inputs and weights that are not finite."""
    if linear.offset is not None:
        return Reason("gemm-c", "its computed C cannot be added by the sparse form")
    if linear.transposed_input:
        return Reason("transposed-input", "a sparse consumer that reads its input transposed is not staged")
    if not np.isfinite(linear.load_weight()).all():
        return Reason("not-finite", "its weight has infinities or NaNs: skipping a zero would hide them")
    return None


def site(graph: ModelGraph, linear: Linear) -> Site:
    """The matched site."""
    return as_site(linear, NAME, "sparse", nonnegative=True)


def rewrite(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Stages the site; returns the names of the new node and its survivors output."""
    weight = np.ascontiguousarray(site.load_weight()[:, :, 0].T)
    inputs = [
        gs.Variable(site.input),
        graph.constant(f"{site.name}/W", weight),
        graph.constant(f"{site.name}/bias", site.bias.astype(np.float32)),
    ]
    return insert(graph, site, plan, "SparseGemm", inputs, {})
