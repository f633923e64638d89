"""FLOPs of every counted operator against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import pytest
from onnx import TensorProto, helper

from exprune_cli import flops
from exprune_cli.record import SiteRecord


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


CASES = [
    # y[1,8,4,4] needs 8*16 outputs x 3*3*3 taps
    (node("Conv", "x w"), {"w": (8, 3, 3, 3), "y": (1, 8, 4, 4)}, 2 * 128 * 27),
    # grouped: a filter sees 2 of 4 channels
    (node("Conv", "x w b", group=2), {"w": (6, 2, 5), "y": (3, 6, 10)}, 2 * 180 * 10),
    (node("ConvInteger", "x w"), {"w": (1, 1, 2, 2), "y": (1, 1, 2, 2)}, 2 * 4 * 4),
    (node("QLinearConv", "x xs xz w ws wz ys yz"), {"w": (2, 3, 1, 1), "y": (1, 2, 5, 5)}, 2 * 50 * 3),
    # every input element of [1,3,4,4] is spread over 2 channels x 2x2 taps
    (node("ConvTranspose", "x w"), {"x": (1, 3, 4, 4), "w": (3, 2, 2, 2)}, 2 * 48 * 8),
    (node("ConvTranspose", "x w", group=3), {"x": (1, 3, 4), "w": (3, 1, 2)}, 2 * 12 * 2),
    (node("Gemm", "x w b"), {"x": (5, 7), "y": (5, 3)}, 2 * 15 * 7),
    (node("Gemm", "x w", transA=1), {"x": (7, 5), "y": (5, 3)}, 2 * 15 * 7),
    (node("Gemm", "x w", transB=1), {"x": (5, 7), "y": (5, 3)}, 2 * 15 * 7),
    (node("MatMul", "x w"), {"x": (2, 6, 4), "y": (2, 6, 9)}, 2 * 108 * 4),
    (node("MatMul", "x w"), {"x": (4,), "y": (9,)}, 2 * 9 * 4),
    (node("MatMul", "x w"), {"x": (6, 4), "y": (6,)}, 2 * 6 * 4),
    (node("MatMul", "x w"), {"x": (4,), "y": ()}, 2 * 4),
    (node("MatMul", "x w"), {"x": (1, 6, 4), "y": (8, 6, 9)}, 2 * 432 * 4),
    (node("MatMulInteger", "x w"), {"x": (2, 3), "y": (2, 5)}, 2 * 10 * 3),
    (node("QLinearMatMul", "x xs xz w ws wz ys yz"), {"x": (2, 3), "y": (2, 5)}, 2 * 10 * 3),
    # 10 steps, batch 2, input 3, hidden 4: W [1,4,3], R [1,4,4]
    (node("RNN", "x w r"), {"x": (10, 2, 3), "w": (1, 4, 3), "r": (1, 4, 4)}, 2 * 20 * (12 + 16)),
    (node("GRU", "x w r"), {"x": (10, 2, 3), "w": (1, 12, 3), "r": (1, 12, 4)}, 2 * 20 * (36 + 48)),
    (node("LSTM", "x w r"), {"x": (10, 2, 3), "w": (1, 16, 3), "r": (1, 16, 4)}, 2 * 20 * (48 + 64)),
    # both directions: W [2,16,3], R [2,16,4]
    (
        node("LSTM", "x w r", direction="bidirectional"),
        {"x": (10, 2, 3), "w": (2, 16, 3), "r": (2, 16, 4)},
        2 * 20 * (96 + 128),
    ),
    (node("Relu", "x"), {"x": (5, 5), "y": (5, 5)}, 0),
    (node("Softmax", "x"), {}, 0),
    (node("Gemm", "x w"), {"x": (0, 7), "y": (0, 3)}, 0),
    # staged nodes count as the layer that they stand for
    (
        node("PrefixGemmThreshold", "x order ends head tail b o m scale limit", "y s", flops.DOMAIN),
        {"x": (2, 6, 4), "head": (9, 1), "y": (2, 6, 9)},
        2 * 108 * 4,
    ),
    (
        node("PrefixConvBound", "x order ends head tail b o m radius slack", "y s", flops.DOMAIN),
        {"x": (1, 3, 6, 6), "head": (8, 1, 3, 3), "y": (1, 8, 4, 4)},
        2 * 128 * 27,
    ),
    (
        node("PrefixArgMaxStats", "x order ends head tail b", "y s", flops.DOMAIN),
        {"x": (5, 4), "head": (100, 2), "y": (5,)},
        2 * 500 * 4,
    ),
    *(
        (
            node(op, f"x {first} ends w b o m scale shift limit block", "y s", flops.DOMAIN),
            {"x": (1, 3, 6, 6), "w": (3, 8, 3, 3), "y": (1, 8, 4, 4)},
            2 * 128 * 27,
        )
        for op, first in (("PrefixConvBlock", "order"), ("DynamicPrefixConvBlock", "energy"))
    ),
    (
        node("PrefixConvPanel", "x order ends w b o m scale shift limit channels", "y s", flops.DOMAIN),
        {"x": (1, 3, 6, 6), "w": (2, 3, 3, 3, 16), "y": (1, 20, 4, 4)},
        2 * 320 * 27,
    ),
    (
        node("ConvReluPanel", "x w b o m", "y s", flops.DOMAIN),
        {"x": (2, 3, 9), "w": (2, 5, 3, 16), "y": (2, 20, 5)},
        2 * 200 * 15,
    ),
    (
        node("SparseGemm", "x w b", "y s", flops.DOMAIN),
        {"x": (2, 6, 4), "w": (4, 9), "y": (2, 6, 9)},
        2 * 108 * 4,
    ),
]


@pytest.mark.parametrize(
    ("op", "shapes", "expected"), CASES, ids=[f"{c[0].op_type}-{i}" for i, c in enumerate(CASES)]
)
def test_by_hand(op: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], expected: int) -> None:
    assert flops.node_flops(op, shapes.get) == expected


@pytest.mark.parametrize(
    ("op", "shapes", "expected"), CASES, ids=[f"{c[0].op_type}-{i}" for i, c in enumerate(CASES)]
)
def test_an_unknown_shape_makes_it_unknown(
    op: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], expected: int
) -> None:
    for name in flops.counted_tensors(op):
        partial = {key: value for key, value in shapes.items() if key != name}
        assert flops.node_flops(op, partial.get) is None
        symbolic = {
            key: ("N", *value[1:]) if key == name and value else value for key, value in shapes.items()
        }
        if shapes[name]:
            assert flops.node_flops(op, symbolic.get) is None


@pytest.mark.parametrize(
    ("op", "domain"),
    [
        ("Einsum", ""),
        ("Attention", ""),
        ("DeformConv", ""),
        ("FusedConv", "com.microsoft"),
        ("FusedMatMul", "com.microsoft"),
    ],
)
def test_linear_work_that_is_not_counted_is_unknown_not_zero(op: str, domain: str) -> None:
    assert flops.node_flops(node(op, "x w", domain=domain), lambda name: (2, 2)) is None


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


SHAPES = {"x": (2, 3), "y": (2, 5), "a": (2, 5), "b": (2, 7)}


def test_total_adds_nodes_and_takes_the_larger_branch_of_an_if() -> None:
    small, large = branch("a", node("MatMul", "x v", "a")), branch("b", node("MatMul", "x w", "b"))
    choice = node("If", "c", "z", then_branch=small, else_branch=large)
    assert flops.total_flops([node("MatMul", "x w"), choice], SHAPES.get) == 2 * 10 * 3 + 2 * 14 * 3


def test_a_loop_without_counted_nodes_is_free_and_one_with_them_unknown() -> None:
    free = node("Loop", "n c x", "z", body=branch("a", node("Relu", "x", "a")))
    counted = node("Loop", "n c x", "z", body=branch("a", node("MatMul", "x w", "a")))
    assert flops.total_flops([free], SHAPES.get) == 0
    assert flops.total_flops([free, counted], SHAPES.get) is None


def test_one_unknown_node_makes_the_total_unknown() -> None:
    assert flops.total_flops([node("MatMul", "x w"), node("MatMul", "x w", "unknown")], SHAPES.get) is None


def site(
    test: str | None, kind: str = "relu", ends: tuple[int, ...] = (4, 12, 16), taps: int = 1
) -> SiteRecord:
    return SiteRecord(
        "s", "Gemm", "r", kind, True, "", test=test, outputs=10, groups=16, taps=taps, ends=list(ends)
    )


def test_spent_threshold() -> None:
    # 3 rows x 10 outputs: first 4 groups of all 30, 1 test each; 8 groups of 12 and 1 test each; 4 groups of 5.
    assert flops.spent_flops(site("threshold"), 3, [12, 5]) == 2 * 30 * 4 + 30 + 2 * 12 * 8 + 12 + 2 * 5 * 4


def test_spent_calibrated_costs_two_per_test() -> None:
    assert flops.spent_flops(site("calibrated"), 3, [12, 5]) == 2 * 30 * 4 + 60 + 2 * 12 * 8 + 24 + 2 * 5 * 4


def test_spent_bound_adds_the_norms_of_the_input() -> None:
    dense_part = 2 * 30 * 4 + 90 + 2 * 12 * 8 + 36 + 2 * 5 * 4
    assert flops.spent_flops(site("bound"), 3, [12, 5]) == dense_part + 2 * 3 * 16


def test_spent_stats_costs_two_per_term_and_six() -> None:
    work = 2 * 30 * 4 + 30 * (2 * 4 + 6) + 2 * 12 * 8 + 12 * (2 * 8 + 6) + 2 * 5 * 4
    assert flops.spent_flops(site("stats"), 3, [12, 5]) == work


def test_spent_stats_of_an_argmax_adds_the_cross_terms() -> None:
    relu = flops.spent_flops(site("stats"), 3, [12, 5])
    assert flops.spent_flops(site("stats", kind="argmax"), 3, [12, 5]) == relu + 2 * 30 * 4 + 2 * 12 * 8


def test_spent_counts_taps() -> None:
    record = site("threshold", ends=(8, 16), taps=9)
    assert flops.spent_flops(record, 3, [6]) == 2 * 30 * 8 * 9 + 30 + 2 * 6 * 8 * 9


def test_spent_dynamic_adds_the_energies_of_the_input() -> None:
    """Two for each input, of which there are four for an output position at strides of 2."""
    fixed, dynamic = site("calibrated", ends=(8, 16), taps=9), site("calibrated", ends=(8, 16), taps=9)
    fixed.parameters["block"] = 64
    dynamic.parameters |= {"block": 64, "input_positions": 4}
    work = 2 * 30 * 8 * 9 + 6 * 30 + 2 * 6 * 8 * 9
    assert flops.spent_flops(fixed, 3, [6]) == work
    assert flops.spent_flops(dynamic, 3, [6]) == work + 2 * 3 * 4 * 16
    assert flops.estimate_flops(dynamic, 3) == flops.estimate_flops(fixed, 3) + 2 * 3 * 4 * 16


def test_spent_sparse() -> None:
    # 3 rows x 16 inputs, 20 of which are not zero; looking costs one per input.
    assert flops.spent_flops(site(None, kind="sparse"), 3, [20]) == 2 * 20 * 10 + 3 * 16


def test_nothing_decided_costs_the_dense_layer_and_the_tests() -> None:
    record = site("threshold")
    assert flops.spent_flops(record, 3, [30, 30]) == flops.dense_site_flops(record, 3) + 60
    assert flops.dense_site_flops(record, 3) == 2 * 3 * 10 * 16
