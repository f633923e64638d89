"""Reading staged nodes back out of a model: the node itself, or the If around it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

DOMAIN = "com.exprune"


def staged_forms(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The staged nodes inside an If that chooses between them and the dense layers, else ``node`` alone.

    Tensors that are results of the If have their names outside, so that the nodes can stand for it.
    """
    if node.op_type != "If" or node.domain:
        return [node]
    branch = next((a.g for a in node.attribute if a.name == "then_branch"), None)
    if branch is None or not branch.node or any(inner.domain != DOMAIN for inner in branch.node):
        return [node]
    outside = {value.name: name for value, name in zip(branch.output, node.output, strict=False)}
    forms = []
    for inner in branch.node:
        staged = onnx.NodeProto()
        staged.CopyFrom(inner)
        staged.input[:] = [outside.get(name, name) for name in inner.input]
        staged.output[:] = [outside.get(name, name) for name in inner.output]
        forms.append(staged)
    return forms


def staged_view(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, with every If around staged nodes replaced by those."""
    return [form for node in nodes for form in staged_forms(node)]


def has_staged(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Whether there is a staged node among these."""
    return any(form.domain == DOMAIN for node in nodes for form in staged_forms(node))


def weight_input(node: onnx.NodeProto) -> int:
    """Position of the (first) weight among a staged node's inputs; its first axis is ``N``,
    or ``G`` for a SparseGemm, a SparseConv and a Conv in blocks, or counts panels of 16 outputs."""
    if node.op_type in ("SparseGemm", "ConvRelu", "ConvReluPanel"):
        return 1
    return 5 if node.op_type.startswith("Quantized") else 3  # LowRank too


def least_inputs(node: onnx.NodeProto) -> int:
    """Inputs that a staged node must have for anything to be said of it."""
    if "Prefix" in node.op_type:
        return 5  # both parts of its weight
    return 8 if "TopK" in node.op_type else weight_input(node) + 1
