"""The Conv in panels of 16 output channels, staged or exact: weights ``[ceil(N / 16), *kernel, G, 16]``."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._stage import insert, relu_inputs, test_inputs

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import PANEL, Site, SitePlan

#: Inputs of the test, in the op's order, before ``channels``.
PARAMETERS = ("scale", "shift", "limit")


def rewrite_panels(graph: ModelGraph, site: Site, plan: SitePlan) -> tuple[str, str]:
    """Replaces the site's nodes by one ``PrefixConvPanel``, or ``ConvReluPanel`` where the plan has no check."""
    assert site.conv is not None
    attributes: dict[str, object] = {
        key: list(getattr(site.conv, key)) for key in ("strides", "dilations", "pads")
    }
    prefix = f"{site.name}/"
    weight, inputs = site.load_weight(), [gs.Variable(site.input)]
    channels = np.arange(site.outputs)
    if plan.block:
        assert plan.order is not None
        channels = plan.parameters["channels"]
        weight = weight[:, plan.order]
        inputs.append(graph.constant(prefix + "order", plan.order.astype(np.int64)))
        inputs.append(graph.constant(prefix + "ends", np.array(plan.ends, np.int64)))
    inputs.append(graph.constant(prefix + "W", _in_panels(weight[channels], site.conv.kernel)))
    inputs.append(graph.constant(prefix + "bias", site.bias.astype(np.float32)))
    inputs += relu_inputs(graph, site)
    if not plan.block:
        return insert(graph, site, plan, "ConvReluPanel", inputs, attributes)
    inputs += test_inputs(graph, site, plan, PARAMETERS)
    inputs.append(graph.constant(prefix + "channels", channels.astype(np.int64)))
    return insert(graph, site, plan, "PrefixConvPanel", inputs, attributes)


def _in_panels(weight: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """``[N, G, T]`` as ``[ceil(N / 16), *kernel, G, 16]``; the last panel is filled up with zeros."""
    outputs, groups, taps = weight.shape
    filled = np.zeros((-(-outputs // PANEL) * PANEL, groups, taps), np.float32)
    filled[:outputs] = weight
    panels = filled.reshape(-1, PANEL, groups, taps).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(panels).reshape(-1, *kernel, groups, PANEL)
