"""Every form of every pattern is found, and staging it losslessly changes nothing."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.planner import plan
from exprune_cli.rewrite import rewrite
from tests.models import build, cnn, mlp, run

VEC = {"w": (12, 8), "b": (12,)}
IMG = {"w": (12, 6, 3, 3), "b": (12,)}


def _norm(n: int) -> dict[str, object]:
    rng = np.random.default_rng(5)
    positive = {"gamma": rng.uniform(-2, 2, n), "var": rng.uniform(0.5, 2, n)}
    return {"beta": (n,), "mean": (n,)} | {k: v.astype(np.float32) for k, v in positive.items()}


GEMM = {
    "gemm": ("x", "y = Gemm <transB: int = 1> (x, w, b)", VEC),
    "gemm without C": ("x", "y = Gemm <transB: int = 1> (x, w)", VEC),
    "gemm scalar C": ("x", "y = Gemm <transB: int = 1> (x, w, s)", {**VEC, "s": np.float32(0.3)}),
    "gemm transA": ("xt", "y = Gemm <transA: int = 1, transB: int = 1> (xt, w, b)", VEC),
    "gemm alpha beta": (
        "x",
        "y = Gemm <transB: int = 1, alpha: float = -0.5, beta: float = 2.0> (x, w, b)",
        VEC,
    ),
    "gemm computed C": ("x", "y = Gemm <transB: int = 1> (x, w, other)", VEC),
    "matmul": ("x", "y = MatMul (x, v)", {"v": (8, 12)}),
    "matmul bias": ("x", "m = MatMul (x, v)\n y = Add (m, b)", {"v": (8, 12), "b": (12,)}),
    "matmul bias left": ("x", "m = MatMul (x, v)\n y = Add (b, m)", {"v": (8, 12), "b": (1, 12)}),
    "matmul 3-D": ("x3", "m = MatMul (x3, v)\n y = Add (m, b)", {"v": (8, 12), "b": (12,)}),
    "transposed weight": ("x", "v = Transpose <perm: ints = [1, 0]> (w)\n y = MatMul (x, v)", VEC),
    "identity weight": ("x", "v = Identity (w)\n y = Gemm <transB: int = 1> (x, v, b)", VEC),
    "batch norm": (
        "x",
        "m = Gemm <transB: int = 1> (x, w, b)\n y = BatchNormalization (m, gamma, beta, mean, var)",
        {**VEC, **_norm(12)},
    ),
    "residual": ("x", "m = Gemm <transB: int = 1> (x, w, b)\n y = Add (other, m)", VEC),
    "residual and bias": (
        "x",
        "m = MatMul (x, v)\n n = Add (m, other)\n y = Add (n, b)",
        {"v": (8, 12), "b": (12,)},
    ),
    "dropout": ("x", "m = Gemm <transB: int = 1> (x, w, b)\n y = Dropout (m)", VEC),
}

CONV = {
    "conv": ("x", "y = Conv (x, w, b)", IMG),
    "no bias": ("x", "y = Conv (x, w)", IMG),
    "pads": ("x", "y = Conv <pads: ints = [1, 0, 2, 1]> (x, w, b)", IMG),
    "strides": ("x", "y = Conv <strides: ints = [2, 3], pads: ints = [1, 1, 1, 1]> (x, w, b)", IMG),
    "dilations": ("x", "y = Conv <dilations: ints = [2, 1]> (x, w, b)", IMG),
    "same upper": ("x", 'y = Conv <strides: ints = [2, 2], auto_pad: string = "SAME_UPPER"> (x, w, b)', IMG),
    "same lower": ("x", 'y = Conv <strides: ints = [2, 2], auto_pad: string = "SAME_LOWER"> (x, w, b)', IMG),
    "valid": ("x", 'y = Conv <auto_pad: string = "VALID"> (x, w, b)', IMG),
    "1x1": ("x", "y = Conv (x, w)", {"w": (12, 6, 1, 1)}),
    "1-D": (
        "x1",
        "y = Conv <pads: ints = [2, 1], strides: ints = [2]> (x1, w, b)",
        {"w": (12, 6, 5), "b": (12,)},
    ),
    "batch norm": (
        "x",
        "m = Conv (x, w, b)\n y = BatchNormalization <epsilon: float = 0.001> (m, gamma, beta, mean, var)",
        {**IMG, **_norm(12)},
    ),
    "bias add": ("x", "m = Conv (x, w)\n y = Add (m, c)", {"w": (12, 6, 3, 3), "c": (12, 1, 1)}),
    "residual": ("x", "m = Conv <pads: ints = [1, 1, 1, 1]> (x, w, b)\n y = Add (m, same)", IMG),
    "residual left": ("x", "m = Conv <pads: ints = [1, 1, 1, 1]> (x, w, b)\n y = Add (same, m)", IMG),
}

ENDS = {
    "relu": ("z = Relu (y)", {}),
    "clip": ("z = Clip (y, zero, six)", {"zero": np.float32(0), "six": np.float32(0.6)}),
    "clip without max": ("z = Clip (y, zero)", {"zero": np.float32(0)}),
}

INPUTS = "float[N, 8] x, float[8, N] xt, float[2, N, 8] x3, float[N, 12] other"
IMAGES = "float[N, 6, 9, 10] x, float[N, 6, 17] x1, float[N, 12, 9, 10] same"


def _feeds(model: onnx.ModelProto, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        shape = [d.dim_value or 4 for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _keep_inputs(inputs: str, body: str) -> str:
    declared = re.findall(r"(float\[[^\]]*\] (\w+))", inputs)
    return ", ".join(text for text, name in declared if re.search(rf"[(, ]{name}[,)]", body))


def _site_model(inputs: str, lines: str, end: str, weights: dict[str, object], rank: int) -> onnx.ModelProto:
    dims = ", ".join(f"d{i}" for i in range(rank))
    body = f"g ({_keep_inputs(inputs, lines)}) => (float[{dims}] z) {{ {lines}\n {end} }}"
    return build(body, weights)


def _staged_equals_original(proto: onnx.ModelProto, test: str = "bound") -> None:
    model = load(proto)
    matches = match(model)
    assert [site.op for site in matches.sites], matches.refusals
    staged, records = rewrite(model, matches.sites, plan(matches.sites, None, test, [0.01])[0])
    assert any(record.staged for record in records), records
    onnx.checker.check_model(staged, full_check=True)
    feeds = _feeds(proto)
    before = run(proto, **feeds)
    for after in (run(staged, **feeds), ReferenceEvaluator(staged).run(None, feeds)):
        for a, b in zip(before, after, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", GEMM)
def test_relu_gemm(form: str, end: str) -> None:
    _, lines, weights = GEMM[form]
    tail, more = ENDS[end]
    proto = _site_model(INPUTS, lines, tail, {**weights, **more}, 3 if "3-D" in form else 2)
    matches = match(load(proto))
    assert [site.rule for site in matches.sites] == ["relu-gemm"], matches.refusals
    _staged_equals_original(proto)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", CONV)
def test_relu_conv(form: str, end: str) -> None:
    _, lines, weights = CONV[form]
    tail, more = ENDS[end]
    proto = _site_model(IMAGES, lines, tail, {**weights, **more}, 3 if form == "1-D" else 4)
    matches = match(load(proto))
    assert [site.rule for site in matches.sites] == ["relu-conv"], matches.refusals
    _staged_equals_original(proto)


HEADS = {
    "argmax": ("k = ArgMax <axis: int = -1> (y)", {}),
    "argmax last": ("k = ArgMax <axis: int = 1, keepdims: int = 0, select_last_index: int = 1> (y)", {}),
    "softmax": ("p = Softmax <axis: int = -1> (y)\n k = ArgMax <axis: int = 1> (p)", {}),
    "log softmax": (
        "p = LogSoftmax <axis: int = 1> (y)\n k = ArgMax <axis: int = 1, keepdims: int = 0> (p)",
        {},
    ),
    "sigmoid": ("p = Sigmoid (y)\n k = ArgMax <axis: int = 1> (p)", {}),
    "scaled": (
        "p = Mul (two, y)\n q = Div (p, two)\n k = ArgMax <axis: int = 1> (q)",
        {"two": np.float32(2)},
    ),
    "top 1": ("best, k = TopK <axis: int = 1> (y, one)", {"one": np.array([1], np.int64)}),
}


@pytest.mark.parametrize("end", HEADS)
@pytest.mark.parametrize("form", ["gemm", "gemm without C", "gemm alpha beta", "matmul", "matmul bias"])
def test_argmax_gemm(form: str, end: str) -> None:
    _, lines, weights = GEMM[form]
    tail, more = HEADS[end]
    rank = 1 if "keepdims: int = 0" in tail else 2
    dims = ", ".join(f"d{i}" for i in range(rank))
    proto = build(f"g (float[N, 8] x) => (int64[{dims}] k) {{ {lines}\n {tail} }}", {**weights, **more})
    matches = match(load(proto))
    assert [site.rule for site in matches.sites] == ["argmax-gemm"], matches.refusals
    _staged_equals_original(proto)


@pytest.mark.parametrize("between", ["", "Reshape", "Identity"])
@pytest.mark.parametrize("form", ["gemm", "matmul bias", "batch norm"])
def test_sparse_gemm(form: str, between: str) -> None:
    _, lines, weights = GEMM[form]
    first = {
        "": "x = Relu (u)",
        "Identity": "t = Relu (u)\n x = Identity (t)",
        "Reshape": "t = Relu (u)\n x = Reshape (t, s)",
    }
    more = {"s": np.array([0, 8], np.int64)} if between == "Reshape" else {}
    proto = build(
        f"g (float[N, 8] u) => (float[N, 12] y) {{ {first[between]}\n {lines} }}", {**weights, **more}
    )
    matches = match(load(proto))
    assert [site.rule for site in matches.sites] == ["sparse-gemm"], matches.refusals
    _staged_equals_original(proto)


REFUSED = {
    "grouped-conv": (
        "float[N, 6, 9, 9] x",
        "y = Conv <group: int = 2> (x, w)\n z = Relu (y)",
        {"w": (12, 3, 3, 3)},
    ),
    "other-activation": ("float[N, 8] x", "y = Gemm <transB: int = 1> (x, w, b)\n z = Sigmoid (y)", VEC),
    "graph-output": ("float[N, 8] x", "z = Gemm <transB: int = 1> (x, w, b)", VEC),
    "several-readers": (
        "float[N, 8] x",
        "y = Gemm <transB: int = 1> (x, w, b)\n r = Relu (y)\n z = Mul (r, y)",
        VEC,
    ),
    "computed-weight": ("float[N, 8] x, float[8, 12] v", "y = MatMul (x, v)\n z = Relu (y)", {}),
    "weight-on-the-left": ("float[8, N] x", "y = MatMul (w, x)\n z = Relu (y)", {"w": (12, 8)}),
    "weight-rank": ("float[2, N, 8] x", "y = MatMul (x, w)\n z = Relu (y)", {"w": (2, 8, 12)}),
    "bias-shape": (
        "float[3, 8] x",
        "y = MatMul (x, v)\n q = Add (y, b)\n z = Relu (q)",
        {"v": (8, 12), "b": (3, 1)},
    ),
    "offset-shape": (
        "float[N, 8] x, float[N, 1] o",
        "y = MatMul (x, v)\n q = Add (y, o)\n z = Relu (q)",
        {"v": (8, 12)},
    ),
    "two-offsets": (
        "float[N, 8] x, float[N, 12] o",
        "y = MatMul (x, v)\n q = Add (y, o)\n p = Add (q, o)\n z = Relu (p)",
        {"v": (8, 12)},
    ),
    "too-small": ("float[N, 1] x", "y = MatMul (x, v)\n z = Relu (y)", {"v": (1, 12)}),
    "norm-after-offset": (
        "float[N, 8] x, float[N, 12] o",
        "y = MatMul (x, v)\n q = Add (y, o)\n p = BatchNormalization (q, gamma, beta, mean, var)\n z = Relu (p)",
        {"v": (8, 12), **_norm(12)},
    ),
    "conv-rank": ("float[N, 2, 5, 5, 5] x", "y = Conv (x, w)\n z = Relu (y)", {"w": (4, 2, 3, 3, 3)}),
    "auto-pad": (
        "float[N, 6, H, W] x",
        'y = Conv <strides: ints = [2, 2], auto_pad: string = "SAME_UPPER"> (x, w)\n z = Relu (y)',
        {"w": (12, 6, 3, 3)},
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refusals(code: str) -> None:
    inputs, lines, weights = REFUSED[code]
    rank = {"conv-rank": 5, "weight-rank": 3, "grouped-conv": 4, "auto-pad": 4}.get(code, 2)
    dims = ", ".join(f"d{i}" for i in range(rank))
    matches = match(load(build(f"g ({inputs}) => (float[{dims}] z) {{ {lines} }}", weights)))
    assert [refusal.code for refusal in matches.refusals] == [code]
    assert not matches.sites
    assert matches.refusals[0].reason


def test_refuses_other_types() -> None:
    half = {"w": np.zeros((8, 12), np.float16)}
    double = {"w": np.zeros((8, 12), np.float64)}
    for name, weights in (("float16", half), ("double", double)):
        proto = build(
            f"g ({name}[N, 8] x) => ({name}[N, 12] z) {{ y = MatMul (x, w)\n z = Relu (y) }}", weights
        )
        assert [r.code for r in match(load(proto)).refusals] == ["dtype"]


def test_refuses_weights_that_callers_may_set() -> None:
    proto = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n z = Relu (y) }", {"v": (8, 12)}
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [8, 12]))
    assert [r.code for r in match(load(proto)).refusals] == ["overridable-weight"]


def test_refuses_old_opsets_and_keeps_the_model() -> None:
    proto = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n z = Relu (y) }", {"v": (8, 12)}, opset=10
    )
    matches = match(load(proto))
    assert [r.code for r in matches.refusals] == ["opset"]


def test_sites_in_subgraphs_are_refused() -> None:
    proto = build(
        """g (bool c, float[N, 8] x) => (float[N, 12] z) {
          z = If (c) <
            then_branch: graph = t () => (float[N, 12] a) { p = MatMul (x, v)\n a = Relu (p) },
            else_branch: graph = e () => (float[N, 12] b) { q = MatMul (x, v)\n b = Neg (q) }
          >
        }""",
        {"v": (8, 12)},
    )
    matches = match(load(proto))
    assert not matches.sites
    assert [r.code for r in matches.refusals] == ["subgraph", "subgraph"]


def test_readers_in_subgraphs_count() -> None:
    proto = build(
        """g (bool c, float[N, 8] x) => (float[N, 12] z) {
          y = MatMul (x, v)
          r = Relu (y)
          z = If (c) <
            then_branch: graph = t () => (float[N, 12] a) { a = Add (r, y) },
            else_branch: graph = e () => (float[N, 12] b) { b = Neg (r) }
          >
        }""",
        {"v": (8, 12)},
    )
    assert [r.code for r in match(load(proto)).refusals] == ["several-readers"]


def test_of_two_linear_ops_before_one_relu_the_larger_is_the_site() -> None:
    proto = build(
        """g (float[N, 8] x, float[N, 16] u) => (float[N, 12] z) {
          small = MatMul (x, v)
          large = MatMul (u, w)
          s = Add (small, large)
          z = Relu (s)
        }""",
        {"v": (8, 12), "w": (16, 12)},
    )
    matches = match(load(proto))
    assert [(s.name, s.offset) for s in matches.sites] == [("large", "small")]
    assert [r.code for r in matches.refusals] == ["offset-of-site"]
    _staged_equals_original(proto)


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 20, 21])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_whole_models_at_every_opset(make, opset: int) -> None:
    _staged_equals_original(make(opset))


def test_a_shared_weight_is_split_once() -> None:
    proto = build(
        """g (float[N, 8] x) => (float[N, 8] z) {
          a = MatMul (x, v)
          b = Relu (a)
          t = Transpose <perm: ints = [1, 0]> (v)
          c = MatMul (b, t)
          z = Relu (c)
        }""",
        {"v": (8, 8)},
    )
    matches = match(load(proto))
    assert [site.name for site in matches.sites] == ["a"]
    assert [refusal.code for refusal in matches.refusals] == ["shared-weight"]
    _staged_equals_original(proto)
