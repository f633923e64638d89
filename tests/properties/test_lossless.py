"""``--test bound`` changes no output beyond float rounding, on models that hypothesis makes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from exprune_cli.model import load
from exprune_cli.pipeline import optimize_model
from exprune_cli.runtime import runtime_available, session
from tests.models import build, run


@st.composite
def perceptrons(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A chain of layers with random widths, biases that push outputs below zero, residuals."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    widths = draw(st.lists(st.integers(2, 40), min_size=2, max_size=4))
    shift = draw(st.floats(-3, 1))
    spread = draw(st.floats(0, 2))
    lines, weights, last = [], {}, "x"
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        scale = np.exp(spread * rng.standard_normal((inputs, outputs))) / np.sqrt(inputs)
        weights[f"w{i}"] = (rng.standard_normal((inputs, outputs)) * scale).astype(np.float32)
        weights[f"b{i}"] = (rng.standard_normal(outputs) + shift).astype(np.float32)
        lines += [f"m{i} = MatMul ({last}, w{i})", f"a{i} = Add (m{i}, b{i})"]
        linear = f"a{i}"
        if inputs == outputs and draw(st.booleans()):
            lines.append(f"s{i} = Add ({linear}, {last})")
            linear = f"s{i}"
        lines.append(f"r{i} = Relu ({linear})")
        last = f"r{i}"
    lines.append(f"y = Identity ({last})")
    body = "\n".join(lines)
    proto = build(f"g (float[N, {widths[0]}] x) => (float[N, {widths[-1]}] y) {{ {body} }}", weights)
    rows = draw(st.integers(1, 5))
    return proto, {"x": rng.standard_normal((rows, widths[0])).astype(np.float32)}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Two Convs of random geometry."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = [draw(st.integers(2, 12)) for _ in range(3)]
    size = draw(st.integers(5, 11))
    lines, weights, last = [], {}, "x"
    for i in range(2):
        k = draw(st.sampled_from([1, 3]))
        stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2)) if k == 1 or size > 7 else 1
        weights[f"w{i}"] = (channels[i + 1], channels[i], k, k)
        weights[f"b{i}"] = (rng.standard_normal(channels[i + 1]) - 1).astype(np.float32)
        lines.append(
            f"c{i} = Conv <strides: ints = [{stride}, 1], dilations: ints = [1, {dilation}], "
            f"pads: ints = [{k // 2}, 1, {k // 2}, 1]> ({last}, w{i}, b{i})\n r{i} = Relu (c{i})"
        )
        last = f"r{i}"
    body = "\n".join([*lines, f"y = Identity ({last})"])
    proto = build(
        f"g (float[N, {channels[0]}, {size}, {size}] x) => (float[N, C, H, W] y) {{ {body} }}", weights
    )
    return proto, {"x": rng.standard_normal((2, channels[0], size, size)).astype(np.float32)}


def _check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    done = optimize_model(load(proto), test="bound", objective="flops")
    before = run(proto, **feeds)[0]
    scale = float(np.abs(before).max()) + 1e-6
    results = [run(done.proto, **feeds)[0]]
    if runtime_available():
        results.append(session(done.proto.SerializeToString()).run(None, feeds)[0])
    for after in results:
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=3e-6 * scale)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(perceptrons())
def test_perceptrons(case: tuple[onnx.ModelProto, dict[str, np.ndarray]]) -> None:
    _check(*case)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(convolutions())
def test_convolutions(case: tuple[onnx.ModelProto, dict[str, np.ndarray]]) -> None:
    _check(*case)


def test_the_bound_does_decide_outputs() -> None:
    """The equality above would say nothing if nothing were ever pruned."""
    rng = np.random.default_rng(0)
    weights = {"w": (16, 64), "b": np.full(64, -4, np.float32)}
    proto = build(
        "g (float[N, 16] x) => (float[N, 64] y) { m = MatMul (x, w)\n a = Add (m, b)\n y = Relu (a) }",
        weights,
    )
    done = optimize_model(load(proto), test="bound", objective="flops")
    survivors = done.record.sites[0].survivors
    done.proto.graph.output.append(
        onnx.helper.make_tensor_value_info(survivors, onnx.TensorProto.INT64, None)
    )
    feeds = {"x": (0.3 * rng.standard_normal((20, 16))).astype(np.float32)}
    if runtime_available():
        alive = session(done.proto.SerializeToString()).run(None, feeds)[1]
        assert alive[-1] < 0.5 * 20 * 64
