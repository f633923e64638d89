"""An If around a staged node: with too many rows the dense layer is faster, and is taken.

Both branches read the same float weights. ``survivors`` is -1 where the dense layer ran.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from exprune_cli.dense_layer import end_nodes, linear_nodes, result_types
from exprune_cli.graph import ModelGraph
from exprune_cli.sites import Site

#: Position of the weight and the bias among the inputs of the ops that can be guarded, and whether
#: the weight is ``[N, G]``.
_WEIGHTS = {"SparseGemm": (1, 2, False), "Quantized": (5, 6, True), "LowRank": (3, 4, True)}


def guarded(graph: ModelGraph, site: Site, most_rows: int, staged: gs.Node) -> list[gs.Node]:
    """The nodes that run ``staged`` for at most so many rows, and the dense layer for more.

    Args:
        graph: The graph.
        site: The site.
        most_rows: Rows of ``X``, that is its elements divided by ``G``.
        staged: The node, with its outputs; it moves into a branch.
    """
    x = staged.inputs[0].name
    size = gs.Variable(graph.unique_name(f"{site.name}/size"), np.int64)
    few = gs.Variable(graph.unique_name(f"{site.name}/few_rows"), bool)
    limit = graph.constant(f"{site.name}/size_limit", np.array(most_rows * site.groups + 1, np.int64))
    types = [*result_types(site), onnx.TensorProto.INT64]
    branches = {
        "then_branch": _branch(graph, "staged", types, [_as_proto(staged, f"{site.name}/staged")]),
        "else_branch": _branch(graph, "dense", types, _dense(graph, site, staged)),
    }
    outputs = list(staged.outputs)
    staged.outputs.clear()
    return [
        gs.Node("Size", f"{size.name}/Size", {}, [gs.Variable(x)], [size]),
        gs.Node("Less", f"{few.name}/Less", {}, [size, limit], [few]),
        gs.Node("If", graph.unique_name(f"{site.name}/If"), branches, [few], outputs),
    ]


def _as_proto(node: gs.Node, prefix: str) -> onnx.NodeProto:
    outputs = [f"{prefix}/{index}" for index in range(len(node.outputs))]
    names = [tensor.name for tensor in node.inputs]
    return helper.make_node(node.op, names, outputs, node.name, domain=node.domain, **node.attrs)


def _dense(graph: ModelGraph, site: Site, staged: gs.Node) -> list[onnx.NodeProto]:
    weight, bias, outputs_first = next(at for kind, at in _WEIGHTS.items() if staged.op.startswith(kind))
    names = [tensor.name for tensor in staged.inputs]
    prefix = f"{site.name}/dense"
    linear = f"{prefix}/linear"
    nodes = linear_nodes(
        site,
        names[0],
        names[weight],
        names[bias],
        linear,
        rank=graph.rank(site.input),
        outputs_first=outputs_first,
    )
    if site.offset is not None:
        nodes.append(helper.make_node("Add", [linear, site.offset], [f"{prefix}/sum"], f"{prefix}/Add"))
        linear = f"{prefix}/sum"
    nodes += end_nodes(site, linear, [f"{prefix}/{index}" for index in range(len(staged.outputs) - 1)])
    checks = 2 if "Cascade" in staged.op else 1
    uncounted = numpy_helper.from_array(np.full(checks, -1, np.int64))
    nodes.append(
        helper.make_node("Constant", [], [f"{prefix}/survivors"], f"{prefix}/Constant", value=uncounted)
    )
    return nodes


def _branch(graph: ModelGraph, name: str, types: list[int], nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    """A branch whose results are the outputs of its last node, after those of the one before."""
    results = [*nodes[-1].output] if len(nodes) == 1 else [*nodes[-2].output, *nodes[-1].output]
    values = [helper.make_tensor_value_info(r, t, None) for r, t in zip(results, types, strict=True)]
    return helper.make_graph(nodes, name, [], values)
