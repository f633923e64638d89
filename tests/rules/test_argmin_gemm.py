"""A final ArgMin is found in its forms, refused where it must be, and staged without loss."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.rewrite import rewrite
from exprune_cli.runtime import session
from exprune_cli.sites import SitePlan
from tests.models import build, run

FORMS = {
    "gemm": "s = Gemm <transB: int = 1, alpha: float = -2.0> (x, codes, length)",
    "matmul": "c = Transpose (codes)\n p = MatMul (x, c)\n s = Add (length, p)",
}
ENDS = {
    "first": "k = ArgMin <axis: int = 1, keepdims: int = 0> (s)",
    "last": "k = ArgMin <axis: int = -1, keepdims: int = 0, select_last_index: int = 1> (s)",
}


def _codebook(form: str, end: str) -> onnx.ModelProto:
    """``|x - c|^2`` but for ``|x|^2``, over codes of which every one stands twice."""
    codes = np.repeat(np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32), 2, axis=0)
    weights = {"codes": codes, "length": np.square(codes).sum(axis=1)}
    return build(f"g (float[N, 32] x) => (int64[N] k) {{ {FORMS[form]}\n {ENDS[end]} }}", weights)


def _plan(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, SitePlan]:
    model = load(proto)
    matches = match(model)
    assert [site.rule for site in matches.sites] == ["argmin-gemm"], matches.refusals
    plan = plan_quantized(matches.sites[0], None)
    assert plan is not None
    return rewrite(model, matches.sites, {matches.sites[0].name: plan})[0], plan


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", FORMS)
def test_staging_keeps_every_index(form: str, end: str) -> None:
    proto = _codebook(form, end)
    staged, _ = _plan(proto)
    onnx.checker.check_model(staged, full_check=True)
    assert [node.op_type for node in staged.graph.node if node.domain] == ["QuantizedArgMaxBound"]
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    x[0] = 0
    expected = run(proto, x=x)[0]
    assert np.array_equal(run(staged, x=x)[0], expected)
    assert np.array_equal(session(staged.SerializeToString()).run(None, {"x": x})[0], expected)
    assert set(expected % 2) == ({1} if end == "last" else {0})  # of two equal codes the one asked for


REFUSED = {
    "argmin-axis": ("s = MatMul (x, w)\n k = ArgMin <axis: int = 0, keepdims: int = 0> (s)", (32, 8)),
    "one-class": ("s = MatMul (x, w)\n k = ArgMin <axis: int = 1, keepdims: int = 0> (s)", (32, 1)),
    "transposed-input": (
        "s = Gemm <transA: int = 1> (x, w)\n k = ArgMin <axis: int = 1, keepdims: int = 0> (s)",
        (6, 8),
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refusals(code: str) -> None:
    body, shape = REFUSED[code]
    matches = match(load(build(f"g (float[6, 32] x) => (int64[M] k) {{ {body} }}", {"w": shape})))
    assert not matches.sites
    assert [refusal.code for refusal in matches.refusals] == [code]
