"""A Pad of zeros before a Conv: its pads become the Conv's own.

Exporters write the pads as a chain of small constant operators, so the chain is computed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import ConstantRef, constant_of, small_constant
from onnx.reference import ReferenceEvaluator

from exprune_cli.graph import SHAPE_OPS, ModelGraph
from exprune_cli.sites import ConvGeometry

#: Elements of a tensor that may take part in computing pads.
_MOST_ELEMENTS = 64
#: Nodes of such a chain.
_MOST_NODES = 64


def fold_pad(
    graph: ModelGraph, node: gs.Node, conv: ConvGeometry
) -> tuple[gs.Tensor, ConvGeometry, gs.Node] | None:
    """The Pad before a Conv, folded.

    Args:
        graph: The graph.
        node: The Conv.
        conv: Its geometry.

    Returns:
        The Pad's input, the geometry with its pads added, and the Pad; None if there is no Pad, or
        one that does more than put zeros around the spatial axes.
    """
    padded = node.inputs[0]
    if len(padded.inputs) != 1 or graph.readers(padded) != 1 or padded.name in graph.outputs:
        return None
    pad = padded.inputs[0]
    if pad.domain or pad.op != "Pad" or pad.attrs.get("mode", "constant") not in ("constant", b"constant"):
        return None
    if len(pad.inputs) < 2 or any(tensor.name for tensor in pad.inputs[3:]):
        return None
    if len(pad.inputs) > 2 and pad.inputs[2].name:
        value = small_constant(graph, pad.inputs[2])
        if value is None or np.any(value != 0):
            return None
    pads = _small_value(graph, pad.inputs[1])
    rank = len(conv.kernel)
    if pads is None or pads.shape != (2 * (rank + 2),) or np.any(pads < 0):
        return None
    begins, ends = pads[: rank + 2], pads[rank + 2 :]
    if begins[:2].any() or ends[:2].any():
        return None
    both = tuple(int(own + more) for own, more in zip(conv.pads, (*begins[2:], *ends[2:]), strict=True))
    return pad.inputs[0], dataclasses.replace(conv, pads=both), pad


def _small_value(graph: ModelGraph, tensor: gs.Tensor) -> np.ndarray | None:
    """The value of a small tensor that depends on constants alone, or None."""
    direct = constant_of(graph, tensor)
    if isinstance(direct, ConstantRef):
        return direct.load() if np.prod(direct.shape) <= _MOST_ELEMENTS else None
    chain: dict[int, gs.Node] = {}
    values: dict[str, np.ndarray] = {}
    if not _collect(graph, tensor, chain, values):
        return None
    opsets = [onnx.helper.make_opsetid("", graph.model.opset)]
    with contextlib.suppress(Exception):  # whatever the evaluator cannot do: the Pad then stays where it is
        for node in (graph.node_proto(node) for node in graph.graph.nodes if id(node) in chain):
            if not _compute(node, values, opsets):
                return None
        return values[tensor.name]
    return None


def _compute(
    node: onnx.NodeProto, values: dict[str, np.ndarray], opsets: list[onnx.OperatorSetIdProto]
) -> bool:
    """Adds a node's result to ``values``; False if it is no small one.

    One node at a time, as a chain of few nodes can ask for more than the memory.
    """
    inputs = [name for name in dict.fromkeys(node.input) if name]
    if node.op_type == "ConstantOfShape":
        size = math.prod(int(size) for size in values[inputs[0]])
        if not 0 <= size <= _MOST_ELEMENTS:
            return False
    output = onnx.helper.make_value_info(node.output[0], onnx.TypeProto())
    constants = [onnx.numpy_helper.from_array(values[name], name) for name in inputs]
    body = onnx.helper.make_graph([node], "pads", [], [output], constants)
    results = ReferenceEvaluator(onnx.helper.make_model(body, opset_imports=opsets)).run(None, {})
    if not isinstance(results, list):
        return False
    values[node.output[0]] = np.asarray(results[0])
    return values[node.output[0]].size <= _MOST_ELEMENTS


def _collect(
    graph: ModelGraph, tensor: gs.Tensor, chain: dict[int, gs.Node], values: dict[str, np.ndarray]
) -> bool:
    """Gathers the nodes and constants that ``tensor`` comes from; False if something else is among them."""
    if not tensor.name:
        return True
    if isinstance(tensor, gs.Constant):
        constant = constant_of(graph, tensor)
        if not isinstance(constant, ConstantRef) or np.prod(constant.shape) > _MOST_ELEMENTS:
            return False
        values[tensor.name] = constant.load()
        return True
    if len(tensor.inputs) != 1:
        return False
    node = tensor.inputs[0]
    if node.domain or node.op not in SHAPE_OPS or len(chain) >= _MOST_NODES:
        return False
    if id(node) in chain:
        return True
    chain[id(node)] = node
    return all(_collect(graph, source, chain, values) for source in node.inputs)
