"""Reading staged nodes back out of a model: the node itself, or the If around it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

DOMAIN = "com.exprune"


def staged_form(node: onnx.NodeProto) -> onnx.NodeProto:
    """The staged node inside an If that chooses between it and the dense layer, else ``node``.

    The result has the If's outputs, so that it can stand for it.
    """
    if node.op_type != "If" or node.domain:
        return node
    for attribute in node.attribute:
        inner = attribute.g.node
        if attribute.name == "then_branch" and len(inner) == 1 and inner[0].domain == DOMAIN:
            staged = onnx.NodeProto()
            staged.CopyFrom(inner[0])
            del staged.output[:]
            staged.output.extend(node.output)
            return staged
    return node


def staged_view(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, with every If around a staged node replaced by that node."""
    return [staged_form(node) for node in nodes]


def has_staged(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Whether there is a staged node among these."""
    return any(staged_form(node).domain == DOMAIN for node in nodes)


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
