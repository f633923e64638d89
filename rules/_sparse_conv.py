"""The staged Conv that multiplies no zeros of its input: weights ``[G, *kernel, N]`` in the order of the reduction."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._stage import insert, relu_inputs, test_inputs

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan


def rewrite_sparse(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Replaces the site's nodes by one ``SparseConvThreshold``."""
    assert site.conv is not None and plan.order is not None
    attributes: dict[str, object] = {
        key: list(getattr(site.conv, key)) for key in ("strides", "dilations", "pads")
    }
    prefix = f"{site.name}/"
    weight = site.load_weight()[:, plan.order].transpose(1, 2, 0)
    inputs: list[gs.Tensor] = [
        gs.Variable(site.input),
        graph.constant(prefix + "order", plan.order.astype(np.int64)),
        graph.constant(prefix + "ends", np.array(plan.ends, np.int64)),
        graph.constant(prefix + "W", weight.reshape(site.groups, *site.conv.kernel, site.outputs)),
        graph.constant(prefix + "bias", site.bias.astype(np.float32)),
    ]
    inputs += relu_inputs(graph, site) + test_inputs(graph, site, plan, ("scale", "limit"))
    return insert(graph, site, plan, "SparseConvThreshold", inputs, attributes)
