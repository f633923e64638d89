"""Making staged nodes: weights split into chunks, the test's arrays, the node itself."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._guard import guarded

from exprune_cli.dense_layer import result_types
from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site, SitePlan
from exprune_cli.staged_nodes import DOMAIN

#: Suffix of the op's name by test. ``calibrated`` compares with per-output limits as
#: ``threshold`` does: to the runtime they are one.
OP_SUFFIX = {"threshold": "Threshold", "calibrated": "Threshold", "stats": "Stats", "bound": "Bound"}


def chunk_inputs(graph: ModelGraph, site: Site, plan: SitePlan) -> list[gs.Constant]:
    """``order``, ``ends``, ``W_head``, ``W_tail``, ``bias``: weights in the order they are read.

    The first chunk is read for every output and so stands apart; the rows of ``W_tail`` are
    read from their start, chunk by chunk, only as far as an output stays undecided.
    """
    assert plan.order is not None
    weight = site.load_weight()[:, plan.order]
    kernel = site.conv.kernel if site.conv else ()
    head, tail = np.split(weight, [plan.ends[0]], axis=1)
    prefix = f"{site.name}/"
    return [
        graph.constant(prefix + "order", plan.order.astype(np.int64)),
        graph.constant(prefix + "ends", np.array(plan.ends, np.int64)),
        graph.constant(prefix + "W_head", head.reshape(site.outputs, -1, *kernel)),
        graph.constant(prefix + "W_tail", tail.reshape(site.outputs, -1, *kernel)),
        graph.constant(prefix + "bias", site.bias.astype(np.float32)),
    ]


def test_inputs(graph: ModelGraph, site: Site, plan: SitePlan, names: tuple[str, ...]) -> list[gs.Constant]:
    """The test's arrays in the op's input order."""
    return [graph.constant(f"{site.name}/{name}", plan.parameters[name].astype(np.float32)) for name in names]


def relu_inputs(graph: ModelGraph, site: Site) -> list[gs.Tensor]:
    """``offset`` (a shared zero without one) and ``max``."""
    if site.offset is None:
        offset: gs.Tensor = graph.shared_constant("exprune/zero", np.zeros(1, np.float32))
    else:
        offset = gs.Variable(site.offset)
    name = "exprune/infinity" if np.isinf(site.max) else f"exprune/max_{site.max:g}"
    return [offset, graph.shared_constant(name, np.array([site.max], np.float32))]


def relu_test_names(plan: SitePlan) -> tuple[str, ...]:
    """Input names of a ReLU site's test."""
    return {"Threshold": ("scale", "limit"), "Bound": ("radius", "slack"), "Stats": ()}[
        OP_SUFFIX[plan.test or ""]
    ]


def quantized_inputs(graph: ModelGraph, site: Site, plan: SitePlan) -> list[gs.Tensor]:
    """``X``, ``codes``, ``scale``, ``error``, ``norm``, ``W`` ``[N, G]``, ``bias``."""
    prefix = f"{site.name}/"
    arrays = [
        graph.constant(prefix + name, plan.parameters[name]) for name in ("codes", "scale", "error", "norm")
    ]
    weight = site.load_weight()[:, :, 0]
    return [
        gs.Variable(site.input),
        *arrays,
        graph.constant(prefix + "W", weight),
        graph.constant(prefix + "bias", site.bias.astype(np.float32)),
    ]


def low_rank_inputs(graph: ModelGraph, site: Site, plan: SitePlan) -> list[gs.Tensor]:
    """``X``, ``V`` ``[r, G]``, ``U`` ``[N, r]`` (in a cascade the first columns), ``W`` ``[N, G]``, ``bias``."""
    prefix = f"{site.name}/"
    return [
        gs.Variable(site.input),
        graph.constant(prefix + "V", plan.parameters["V"]),
        graph.constant(prefix + "U", plan.parameters["U"]),
        graph.constant(prefix + "W", site.load_weight()[:, :, 0]),
        graph.constant(prefix + "bias", site.bias.astype(np.float32)),
    ]


def insert(
    graph: ModelGraph,
    site: Site,
    plan: SitePlan,
    op: str,
    inputs: list[gs.Tensor],
    attributes: dict[str, object],
) -> tuple[str, str]:
    """Puts the staged node in the place of the site's nodes.

    Args:
        graph: The graph.
        site: The site.
        plan: Its plan; with ``most_rows`` the node stands in an If, beside the dense layer.
        op: The staged node's operator.
        inputs: Its inputs.
        attributes: Its attributes.

    Returns:
        The names of the node and of its survivors output.
    """
    old = graph.producers(site.nodes)
    wanted = [site.values, site.output] if site.kind == "top_k" else [site.output]
    made = {tensor.name: tensor for node in old for tensor in node.outputs}
    outputs = [
        made[name] if name else gs.Variable(graph.unique_name(f"{site.output}/values")) for name in wanted
    ]
    survivors = gs.Variable(graph.unique_name(f"{site.output}/survivors"), np.int64)
    name = graph.unique_name(f"{site.name}/{op}")
    nodes = []
    if site.transposed_input:
        turned = gs.Variable(graph.unique_name(f"{site.name}/rows"), np.float32)
        nodes.append(
            gs.Node("Transpose", f"{turned.name}/Transpose", {"perm": [1, 0]}, [inputs[0]], [turned])
        )
        inputs = [turned, *inputs[1:]]
    for node in old:
        node.outputs.clear()
        node.inputs.clear()
    staged = gs.Node(op, name, attributes, inputs, [*outputs, survivors], domain=DOMAIN)
    graph.stage(op)
    nodes += [staged] if plan.most_rows is None else guarded(graph, site, plan.most_rows, staged)
    graph.replace(old, nodes)
    for tensor, dtype in zip(outputs, result_types(site), strict=True):
        shape = graph.shapes.get(tensor.name)
        if shape is not None:
            graph.declare(tensor.name, dtype, shape)
    # No value_info for the survivors: with a known shape, ONNX Runtime 1.17 plans the buffer of this
    # output that nobody reads into memory that another tensor still uses.
    return name, survivors.name
