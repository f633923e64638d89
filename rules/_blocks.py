"""The staged Conv in blocks, and the exact one: weights ``[G, N, *kernel]`` in the order of the reduction.

Where each image has an order of its own, they are in that of the channels.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._stage import insert, relu_inputs, test_inputs

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

#: Inputs of the test, in the op's order, before ``block``.
PARAMETERS = ("scale", "shift", "limit")


def rewrite_blocks(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Replaces the site's nodes by one ``[Dynamic]PrefixConvBlock``, or ``ConvRelu`` where the plan has no block."""
    assert site.conv is not None
    attributes: dict[str, object] = {
        key: list(getattr(site.conv, key)) for key in ("strides", "dilations", "pads")
    }
    prefix = f"{site.name}/"
    weight = site.load_weight().transpose(1, 0, 2)
    inputs: list[gs.Tensor] = [gs.Variable(site.input)]
    if plan.block:
        if plan.dynamic:
            inputs += test_inputs(graph, site, plan, ("weight_energy",))
        else:
            assert plan.order is not None
            weight = weight[plan.order]
            inputs.append(graph.constant(prefix + "order", plan.order.astype(np.int64)))
        inputs.append(graph.constant(prefix + "ends", np.array(plan.ends, np.int64)))
    shape = (site.groups, site.outputs, *site.conv.kernel)
    inputs.append(graph.constant(prefix + "W", weight.reshape(shape)))
    inputs.append(graph.constant(prefix + "bias", site.bias.astype(np.float32)))
    inputs += relu_inputs(graph, site)
    if not plan.block:
        return insert(graph, site, plan, "ConvRelu", inputs, attributes)
    inputs += test_inputs(graph, site, plan, PARAMETERS)
    inputs.append(graph.shared_constant(f"exprune/block_{plan.block}", np.array([plan.block], np.int64)))
    op = "DynamicPrefixConvBlock" if plan.dynamic else "PrefixConvBlock"
    return insert(graph, site, plan, op, inputs, attributes)
