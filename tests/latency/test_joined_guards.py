"""Guarded sites that follow each other have one If."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import exprune_cli
from exprune_cli.staged_nodes import staged_view
from tests.latency.test_guard import staged
from tests.models import build

SHAPES = {
    "w1": (32, 64),
    "b1": (64,),
    "w2": (64, 32),
    "b2": (32,),
    "w3": (32, 64),
    "b3": (64,),
    "w4": (64, 8),
}
CHAIN = """g (float[N, 32] x) => (float[N, 8] y{more}) {{
  a = MatMul (x, w1)
  s = Add (a, b1)
  r = Relu (s)
  m = MatMul (r, w2)
  {second} = Add (m, b2)
  {between}
  c = MatMul (n, w3)
  d = Add (c, b3)
  q = Relu (d)
  y = MatMul (q, w4)
}}"""
STRAIGHT = {"second": "n", "between": "", "more": ""}
RESIDUAL = {"second": "e", "between": "n = Add (e, x)", "more": ""}


def chain(second: str, between: str, more: str) -> onnx.ModelProto:
    return build(CHAIN.format(second=second, between=between, more=more), SHAPES)


def guarded(proto: onnx.ModelProto, rows: dict[str, int | None]) -> tuple[onnx.ModelProto, list]:
    """All four sites staged; ``rows`` by the site's output, 2 for the others, None for no guard."""
    out, records = staged(proto, "quantized", 2, rows)
    assert len(records) == 4
    return out, records


def results(proto: onnx.ModelProto, x: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    return exprune_cli.session(proto.SerializeToString()).run(names, {"x": x})


def ifs(proto: onnx.ModelProto) -> int:
    return sum(node.op_type == "If" for node in proto.graph.node)


def same(proto: onnx.ModelProto, out: onnx.ModelProto, names: list[str] | None = None) -> None:
    rng = np.random.default_rng(0)
    for rows in (0, 1, 2, 3, 9):
        x = rng.standard_normal((rows, 32)).astype(np.float32)
        for a, b in zip(results(proto, x, names), results(out, x, names), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_chain_has_one_if():
    proto = chain(**STRAIGHT)
    out, records = guarded(proto, {})
    assert ifs(out) == 1
    assert [node.op_type for node in out.graph.node] == ["Size", "Less", "If"]
    assert sum("size_limit" in tensor.name for tensor in out.graph.initializer) == 1
    assert {node.name for node in staged_view(out.graph.node) if node.domain} == {r.node for r in records}
    same(proto, out)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [({"r": 4}, 2), ({"n": 4}, 3), ({"r": None}, 1), ({"n": None}, 2), ({"y": 1}, 2)],
    ids=str,
)
def test_only_what_is_for_as_many_rows(rows, expected):
    proto = chain(**STRAIGHT)
    out, _ = guarded(proto, rows)
    assert ifs(out) == expected
    same(proto, out)


def test_a_sum_between_keeps_them_apart():
    proto = chain(**RESIDUAL)
    out, _ = guarded(proto, {})
    assert ifs(out) == 2
    same(proto, out)


def test_what_else_is_read_keeps_its_name():
    proto = chain(**{**STRAIGHT, "more": ", float[N, 32] n, float[N, 64] r"})
    out, records = guarded(proto, {})
    assert ifs(out) == 1
    same(proto, out, ["y", "n", "r"])
    counted = onnx.ModelProto()
    counted.CopyFrom(out)
    names = [record.survivors for record in records]
    for name in names:
        counted.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    x = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    hidden = results(proto, x, ["r"])[0]
    alive = results(counted, x, names)
    assert alive[1].tolist() == [np.count_nonzero(hidden)]
    assert all(count.tolist() == [-1] for count in results(counted, np.repeat(x, 2, axis=0), names))
