"""FLOPs accounting: 2 per multiply-accumulate, plus what the tests cost.

Weights that static pruning set to zero are no work, dense or staged, as in the paper's composition
with static pruning. Of an output's zeros the mean over all outputs of its chunk stands for each.

Elementwise and shape operators are not counted, as in the paper. A number that depends on an
unknown shape is None, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.functions import FUSED_DOMAIN
from exprune_cli.record import SiteRecord
from exprune_cli.staged_nodes import DOMAIN, weight_input

Shape = Sequence[int] | None
ShapeOf = Callable[[str], Shape]
#: The share of the weights with these names (some may be no weights) that is not zero.
ShareOf = Callable[[Sequence[str]], float]

#: Cost of one test in FLOPs per tested output; ``k`` is the number of groups since the last
#: check. ``threshold`` and ``stats`` are the paper's reference accounting.
TEST_COST: dict[str, Callable[[int], float]] = {
    "threshold": lambda k: 1,
    "calibrated": lambda k: 2,
    "bound": lambda k: 3,
    "stats": lambda k: 2 * k + 6,
    "zero": lambda k: 2,  # of a Conv that only skips zeros: the test that its kernel takes all the same
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
        return [node.input[0], node.input[weight_input(node)], node.output[0]]
    if node.domain == FUSED_DOMAIN and "Attention" in node.op_type:  # its result, and all keys
        return list(node.output[:2])
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


def weight_inputs(node: onnx.NodeProto) -> list[str]:
    """Names of the inputs that hold a linear node's weights, where they are weights."""
    if node.domain == DOMAIN:
        if "Prefix" in node.op_type:
            return [node.input[3], node.input[4]]
        return [node.input[weight_input(node)]]
    if node.domain in ("", "ai.onnx") and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return list(node.input[:2])
    return []


#: Zeros below this share of a weight are taken for chance, not for static pruning.
PRUNED_SHARE = 0.05


def nonzero_share(weight: np.ndarray) -> float:
    """Share of a weight's entries that are work: 1 where it was not statically pruned."""
    share = np.count_nonzero(weight) / max(weight.size, 1)
    return 1.0 if share > 1 - PRUNED_SHARE else float(share)


def node_flops(node: onnx.NodeProto, shape_of: ShapeOf, share_of: ShareOf = lambda names: 1.0) -> int | None:
    """Dense FLOPs of one node, 0 for operators without multiply-accumulates, None if unknown.

    A staged node (domain ``com.exprune``) counts as the dense layer that it stands for.

    Args:
        node: The node.
        shape_of: Shapes by tensor name.
        share_of: Of the weights with these names, the share that is not zero.
    """
    try:
        value = _all_flops(node, shape_of)
    except (IndexError, ValueError):  # ranks that the operator does not take
        return None
    return round(value * share_of(weight_inputs(node))) if value else value


def _all_flops(node: onnx.NodeProto, shape_of: ShapeOf) -> int | None:
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
    if node.domain == FUSED_DOMAIN:  # scores, and the values' sum: a product per feature and key each
        result, keys = shapes
        return 4 * math.prod(result) * keys[-2]
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
        kernel = weight[2:]
        if node.op_type.startswith("SparseConv"):  # [G, *kernel, N]
            kernel = weight[1:-1]
        elif node.op_type.endswith("Panel"):  # [ceil(N / 16), *kernel, G, 16]
            kernel = weight[1:-2]
        return 2 * math.prod(out) * data[1] * math.prod(kernel)
    return 2 * math.prod(data) * weight[0]


def total_flops(
    nodes: Iterable[onnx.NodeProto], shape_of: ShapeOf, share_of: ShareOf = lambda names: 1.0
) -> int | None:
    """Dense FLOPs of all nodes; None as soon as one is unknown.

    Nodes inside the branches of an If count with the larger branch; the body of a Loop or Scan
    runs an unknown number of times, so a body with counted nodes makes the total unknown.
    """
    total = 0
    for node in nodes:
        graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        if graphs:
            inner = [total_flops(graph.node, shape_of, share_of) for graph in graphs]
            if any(value is None for value in inner) or (node.op_type != "If" and any(inner)):
                return None
            total += max(value or 0 for value in inner)
            continue
        value = node_flops(node, shape_of, share_of)
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
            for a sparse site ``[1]``, the inputs that were not zero. Negative: the dense layer ran. Of a Conv
            that skips zeros, the multiply-accumulates ``[C]`` of its chunks may follow; else they are
            those expected.
    """
    try:
        return _spent(site, rows, survivors)
    except (IndexError, KeyError, ValueError, ZeroDivisionError, OverflowError):
        # What a file says of a site is read from its metadata, which anybody may have written.
        raise ExpruneError(
            f"what the model records of site '{site.name}' does not fit together: optimise the original again"
        ) from None


def _spent(site: SiteRecord, rows: int, survivors: Sequence[float]) -> float:
    if site.outputs is None or site.groups is None or site.taps is None:
        raise ValueError(f"site {site.name} has no sizes")
    # Without chunks a survivor is computed whole.
    whole = site.nonzero[0] if site.nonzero and not site.ends else 1.0
    if site.kind == "sparse":
        if survivors[0] < 0:
            return dense_site_flops(site, rows)
        return 2.0 * survivors[0] * site.outputs * whole + rows * site.groups
    if site.test is None and not site.ends[:-1]:  # a Conv in its exact kernel
        return dense_site_flops(site, rows)
    if site.test is None:
        raise ValueError(f"site {site.name} has no test")
    if survivors[0] < 0:  # the dense layer ran
        return dense_site_flops(site, rows)
    if site.estimate == "quantized":
        return (
            rows * site.outputs * (2.0 * site.groups + TEST_COST["bound"](0))
            + 2.0 * survivors[0] * site.groups * whole
        )
    cost = (lambda k: _BLOCK_TEST_COST) if "block" in site.parameters else TEST_COST[site.test]
    if site.estimate == "low-rank":
        # V x and U (V x) for all, then the survivors whole: the estimate is no part of the result. A cascade's
        # second estimate is for what the first leaves open.
        rank = site.parameters["rank"]
        first_rank = site.parameters.get("first_rank", rank)
        spent = 2.0 * rows * (rank * site.groups + first_rank * site.outputs) + rows * site.outputs * cost(1)
        if first_rank < rank:
            spent += survivors[0] * (2.0 * (rank - first_rank) + cost(1))
        return spent + 2.0 * survivors[-1] * site.groups * whole
    alive: float = rows * site.outputs
    spent, start = 0.0, 0
    for check, end in enumerate(site.ends):
        width = end - start
        work = alive * width * site.taps
        if len(survivors) >= 2 * len(site.ends) - 1:
            work = survivors[len(site.ends) - 1 + check]
        elif site.input_nonzero:
            work *= site.input_nonzero[check]
        spent += 2.0 * work * (site.nonzero[check] if site.nonzero else 1.0)
        if check < len(site.ends) - 1:
            spent += alive * cost(width)
            if site.kind == "argmax" and site.test == "stats":
                # The variance of (w_lead - w_j) x needs the cross term of the leader and j.
                spent += 2.0 * alive * width
            alive = survivors[check]
        start = end
    if site.test == "bound":
        spent += 2.0 * rows * site.groups * site.taps
    # Where groups are chosen per image: a square and a sum for each input. An output position has as many input
    # positions as the strides say, padding aside.
    spent += 2.0 * rows * site.parameters.get("input_positions", 0) * site.groups
    if site.input_nonzero:  # every input of every position is compared with zero
        spent += float(rows * site.groups * site.taps)
    return spent


def estimate_flops(site: SiteRecord, rows: int) -> float:
    """What of :func:`spent_flops` goes to the estimate and the tests: what is spent if all is decided at once.

    0 for a site that is computed whole, without a test.
    """
    if site.test is None and site.kind != "sparse":
        return 0.0
    return spent_flops(site, rows, [0.0] * max(1, len(site.ends) - 1))


def expected_flops(site: SiteRecord, rows: int) -> float | None:
    """What :func:`spent_flops` is expected to be; None where it is not known how much is pruned."""
    exact = site.kind == "relu" and len(site.ends) == 1
    if site.pruned is None and not exact:
        return None
    tested = rows * ((site.groups if site.kind == "sparse" else site.outputs) or 0)
    return spent_flops(site, rows, [(1 - share) * tested for share in site.pruned or ()])


def int8_macs(site: SiteRecord, rows: int, survivors: Sequence[float]) -> int:
    """Integer multiply-accumulates of a staged site's estimate."""
    if site.estimate != "quantized" or survivors[0] < 0:
        return 0
    return rows * (site.outputs or 0) * (site.groups or 0)


def dense_site_flops(site: SiteRecord, rows: int) -> float:
    """FLOPs of the site's dense layer on ``rows`` rows."""
    groups = float(site.groups or 0)
    if site.nonzero and not site.ends:
        groups *= site.nonzero[0]
    elif site.nonzero:
        groups = float(np.dot(np.diff([0, *site.ends]), site.nonzero))
    return 2.0 * rows * (site.outputs or 0) * groups * (site.taps or 1)
