"""FLOPs accounting: 2 per multiply-accumulate, plus what the tests cost.

Elementwise and shape operators are not counted, as in the paper. A number that depends on an
unknown shape is None, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import onnx

from exprune_cli.record import SiteRecord

Shape = Sequence[int] | None
ShapeOf = Callable[[str], Shape]

DOMAIN = "com.exprune"

#: Cost of one test in FLOPs per tested output; ``k`` is the number of groups since the last
#: check. ``threshold`` and ``stats`` are the paper's reference accounting.
TEST_COST: dict[str, Callable[[int], float]] = {
    "threshold": lambda k: 1,
    "calibrated": lambda k: 2,
    "bound": lambda k: 3,
    "stats": lambda k: 2 * k + 6,
}

#: The same for a test of blocks: a scaled sum, an offset, a maximum, a square, a sum.
_BLOCK_TEST_COST = 6.0

#: Operators with multiply-accumulates that are not counted: with one, a total is unknown.
_UNCOUNTED = {
    "": {"Attention", "DeformConv", "DFT", "Einsum", "STFT"},
    "com.microsoft": {
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GemmFastGelu",
        "GroupQueryAttention",
        "MatMulBnb4",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MoE",
        "MultiHeadAttention",
        "NhwcConv",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QMoE",
    },
}
_RECURRENT_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def counted_tensors(node: onnx.NodeProto) -> list[str]:
    """Names of the tensors whose shapes :func:`node_flops` needs; empty for uncounted nodes."""
    if node.domain == DOMAIN:
        return [node.input[0], node.input[3] if "Prefix" in node.op_type else node.input[1], node.output[0]]
    if node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type in ("Conv", "ConvInteger"):
        return [node.input[1], node.output[0]]
    if node.op_type == "QLinearConv":
        return [node.input[3], node.output[0]]
    if node.op_type == "ConvTranspose":
        return [node.input[0], node.input[1]]
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"):
        return [node.input[0], node.output[0]]
    if node.op_type in _RECURRENT_GATES:
        return [node.input[0], node.input[1], node.input[2]]
    return []


def node_flops(node: onnx.NodeProto, shape_of: ShapeOf) -> int | None:
    """Dense FLOPs of one node, 0 for operators without multiply-accumulates, None if unknown.

    A staged node (domain ``com.exprune``) counts as the dense layer that it stands for.
    """
    names = counted_tensors(node)
    if not names:
        return None if node.op_type in _UNCOUNTED.get(node.domain, ()) else 0
    shapes = []
    for name in names:
        shape = shape_of(name)
        if shape is None or any(not isinstance(size, int) or size < 0 for size in shape):
            return None
        shapes.append(shape)
    if node.domain == DOMAIN:
        return _staged_dense_flops(node, shapes)
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weight, out = shapes
        return 2 * math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        data, weight = shapes
        return 2 * math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        data, out = shapes
        trans = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return 2 * math.prod(out) * data[0 if trans else 1]
    if node.op_type in _RECURRENT_GATES:
        data, weight, recurrence = shapes
        per_step = math.prod(weight) + math.prod(recurrence)
        return 2 * math.prod(data[:2]) * per_step
    data, out = shapes
    return 2 * math.prod(out) * data[-1]


def _staged_dense_flops(node: onnx.NodeProto, shapes: list[Sequence[int]]) -> int:
    data, weight, out = shapes
    if node.op_type == "SparseGemm":
        return 2 * math.prod(data) * weight[1]
    if "Conv" in node.op_type:
        return 2 * math.prod(out) * data[1] * math.prod(weight[2:])
    return 2 * math.prod(data) * weight[0]


def total_flops(nodes: Iterable[onnx.NodeProto], shape_of: ShapeOf) -> int | None:
    """Dense FLOPs of all nodes; None as soon as one is unknown.

    Nodes inside the branches of an If count with the larger branch; the body of a Loop or Scan
    runs an unknown number of times, so a body with counted nodes makes the total unknown.
    """
    total = 0
    for node in nodes:
        graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        if graphs:
            inner = [total_flops(graph.node, shape_of) for graph in graphs]
            if any(value is None for value in inner) or (node.op_type != "If" and any(inner)):
                return None
            total += max(value or 0 for value in inner)
            continue
        value = node_flops(node, shape_of)
        if value is None:
            return None
        total += value
    return total


def spent_flops(site: SiteRecord, rows: int, survivors: Sequence[float]) -> float:
    """FLOPs that a staged site really spends, tests included.

    Args:
        site: Its record (``outputs``, ``groups``, ``taps``, ``ends``, ``test``, ``kind``).
        rows: Rows that it was run on (rows of a Gemm, output positions of a Conv).
        survivors: ``[S]`` outputs that were undecided after each check, summed over the rows;
            for a sparse site ``[1]``, the inputs that were not zero.
    """
    if site.outputs is None or site.groups is None or site.taps is None:
        raise ValueError(f"site {site.name} has no sizes")
    if site.kind == "sparse":
        return 2.0 * survivors[0] * site.outputs + rows * site.groups
    if not site.ends[:-1]:
        return dense_site_flops(site, rows)
    if site.test is None:
        raise ValueError(f"site {site.name} has no test")
    cost = (lambda k: _BLOCK_TEST_COST) if "block" in site.parameters else TEST_COST[site.test]
    alive: float = rows * site.outputs
    spent, start = 0.0, 0
    for check, end in enumerate(site.ends):
        width = end - start
        spent += 2.0 * alive * width * site.taps
        if check < len(site.ends) - 1:
            spent += alive * cost(width)
            if site.kind == "argmax" and site.test == "stats":
                # The variance of (w_lead - w_j) x needs the cross term of the leader and j.
                spent += 2.0 * alive * width
            alive = survivors[check]
        start = end
    if site.test == "bound":
        spent += 2.0 * rows * site.groups * site.taps
    return spent


def dense_site_flops(site: SiteRecord, rows: int) -> float:
    """FLOPs of the site's dense layer on ``rows`` rows."""
    return 2.0 * rows * (site.outputs or 0) * (site.groups or 0) * (site.taps or 1)
