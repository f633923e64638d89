"""The end that the two ReLU rules share: ``Relu`` or ``Clip(0, max)``."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import Reason, small_constant
from exprune_cli.rules._linear import Linear, as_site, follow, only_reader, read_linear
from exprune_cli.rules._stage import (
    OP_SUFFIX,
    chunk_inputs,
    insert,
    low_rank_inputs,
    quantized_inputs,
    relu_inputs,
    relu_test_names,
    test_inputs,
)

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan

#: Operators that keep zeros where they are in memory order.
_ZERO_KEEPING = ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool")


def match_relu(graph: ModelGraph, node: gs.Node) -> Linear | Reason | None:
    """Walks from a linear op to its ReLU.

    Returns:
        The folded linear op, ending before the ReLU; a :class:`Reason` where a ReLU follows but
        the site is refused; None where the pattern is not there.
    """
    linear = read_linear(graph, node)
    if isinstance(linear, Reason):
        return linear
    linear = follow(graph, linear)
    end = only_reader(graph, linear.tensor)
    if isinstance(end, Reason) or upper_end(graph, end) is None:
        return linear.stop
    return dataclasses.replace(linear, nodes=[*linear.nodes, end], tensor=end.outputs[0], stop=None)


def upper_end(graph: ModelGraph, node: gs.Node) -> float | None:
    """Where a ReLU-like node clips: infinity for ``Relu``, max for ``Clip(0, max)``, else None."""
    if node.domain:
        return None
    if node.op == "Relu":
        return math.inf
    if node.op != "Clip":
        return None
    if len(node.inputs) > 1 or "min" not in node.attrs:
        bounds = [small_constant(graph, t) if t.name else None for t in node.inputs[1:3]]
        low = bounds[0] if bounds else None
        high: np.ndarray | float | None = bounds[1] if len(bounds) > 1 else None
        if len(node.inputs) > 2 and node.inputs[2].name and high is None:
            return None
    else:
        low, high = np.asarray(node.attrs["min"]), node.attrs.get("max")
    if low is None or np.size(low) != 1 or float(np.reshape(low, ())) != 0:
        return None
    top = math.inf if high is None else float(np.reshape(high, ()))
    return top if top > 0 else None


def reads_relu(graph: ModelGraph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is a ReLU's output, perhaps behind operators that move or pool values."""
    while len(tensor.inputs) == 1:
        node = tensor.inputs[0]
        if upper_end(graph, node) is not None:
            return True
        if node.domain or node.op not in _ZERO_KEEPING:
            return False
        tensor = node.inputs[0]
    return False


def relu_site(graph: ModelGraph, linear: Linear, rule: str) -> Site:
    """The site that a matched linear op is."""
    end = upper_end(graph, linear.nodes[-1])
    assert end is not None
    return as_site(
        linear,
        rule,
        "relu",
        offset=linear.offset,
        max=end,
        conv=linear.conv,
        separate_pad=linear.separate_pad,
        nonnegative=reads_relu(graph, linear.input),
        transposed_input=linear.transposed_input,
    )


def rewrite_relu(graph: ModelGraph, site: Site, plan: SitePlan, family: str) -> tuple[str, str]:
    """Replaces the site's nodes by one staged node of ``family`` (``PrefixGemm``, ``PrefixConv``)."""
    if plan.estimate == "quantized":
        inputs = [*quantized_inputs(graph, site, plan), *relu_inputs(graph, site)]
        return insert(graph, site, plan, "QuantizedGemmBound", inputs, {})
    if plan.estimate == "low-rank":
        inputs = [*low_rank_inputs(graph, site, plan), *relu_inputs(graph, site)]
        inputs += test_inputs(graph, site, plan, ("limit",))
        if "U_more" not in plan.parameters:
            return insert(graph, site, plan, "LowRankGemmThreshold", inputs, {})
        inputs += test_inputs(graph, site, plan, ("U_more", "limit_more"))
        return insert(graph, site, plan, "LowRankCascadeGemmThreshold", inputs, {})
    suffix = OP_SUFFIX[plan.test or ""]
    attributes: dict[str, object] = {}
    if suffix == "Stats":
        attributes["z"] = plan.z
    if site.conv:
        for key in ("strides", "dilations", "pads"):
            attributes[key] = list(getattr(site.conv, key))
    inputs = [gs.Variable(site.input), *chunk_inputs(graph, site, plan), *relu_inputs(graph, site)]
    inputs += test_inputs(graph, site, plan, relu_test_names(plan))
    return insert(graph, site, plan, family + suffix, inputs, attributes)
