"""Small real models of every kind that the rules know, and files made from them: what mutations start from."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import helper

import exprune_cli
from tests.models import build

_TEXTS: dict[str, tuple[str, dict[str, object]]] = {
    "gemm": (
        (
            "g (float[N, 12] x) => (float[N, 4] y) "
            "{ h = Gemm <transB = 1, alpha = 0.5> (x, w1, b1)\n r = Relu (h)\n y = MatMul (r, w2) }"
        ),
        {"w1": (16, 12), "b1": (16,), "w2": (16, 4)},
    ),
    "conv": (
        (
            "g (float[1, 4, 6, 6] x) => (float[A, B, C, D] y) "
            "{ p = Pad (x, pads)\n h = Conv <strides = [1, 1]> (p, w, b)\n"
            "  n = BatchNormalization (h, s, o, m, v)\n y = Clip (n, low, high) }"
        ),
        {
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "w": (8, 4, 3, 3),
            "b": (8,),
            "s": np.ones(8, np.float32),
            "o": (8,),
            "m": np.zeros(8, np.float32),
            "v": np.ones(8, np.float32),
            "low": np.float32(0),
            "high": np.float32(6),
        },
    ),
    "conv_same": (
        (
            "g (float[N, 3, 16] x) => (float[A, B, C] y) "
            '{ h = Conv <auto_pad = "SAME_UPPER", dilations = [2]> (x, w)\n q = Add (h, c)\n y = Relu (q) }'
        ),
        {"w": (6, 3, 5), "c": np.ones((6, 1), np.float32)},
    ),
    "argmax": (
        "g (float[N, 12] x) => (int64[N] y) { h = MatMul (x, w)\n s = Add (h, b)\n y = ArgMax <axis = -1, keepdims = 0> (s) }",
        {"w": (12, 24), "b": (24,)},
    ),
    "argmin": (
        "g (float[N, 12] x) => (int64[N, 1] y) { h = Gemm (x, w, b)\n y = ArgMin <axis = 1> (h) }",
        {"w": (12, 24), "b": (24,)},
    ),
    "top_k": (
        "g (float[N, 12] x) => (float[N, K] v, int64[N, K] i) { h = Gemm (x, w, b)\n v, i = TopK (h, k) }",
        {"w": (12, 24), "b": (24,), "k": np.array([3])},
    ),
    "branches": (
        (
            "g (float[N, 8] x, bool c) => (float[N, 8] y) { h = MatMul (x, w)\n r = Relu (h)\n"
            " y = If (c) <then_branch = t () => (float[N, 8] a) { a = MatMul (r, w2) },"
            " else_branch = e () => (float[N, 8] b) { b = Identity (x) }> }"
        ),
        {"w": (8, 8), "w2": (8, 8)},
    ),
    "residual": (
        (
            "g (float[N, 8] x) => (float[N, 8] y) { h = Gemm (x, w, b)\n s = Add (h, x)\n r = Relu (s)\n"
            " t = Transpose <perm = [1, 0]> (r)\n u = Transpose <perm = [1, 0]> (t)\n z = Gemm (u, w2)\n y = Relu (z) }"
        ),
        {"w": (8, 8), "b": (8,), "w2": (8, 8)},
    ),
}


@cache
def models() -> dict[str, bytes]:
    """Serialised models by name: as written, one with a function, and all that can be staged as staged."""
    found = {name: build(body, weights) for name, (body, weights) in _TEXTS.items()}
    called = onnx.ModelProto()
    called.CopyFrom(found["gemm"])
    body = [helper.make_node("Relu", ["a"], ["b"])]
    called.functions.append(
        helper.make_function("own", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    called.opset_import.add(domain="own", version=1)
    called.graph.node[1].domain, called.graph.node[1].op_type = "own", "Act"
    found["function"] = called
    content = {name: proto.SerializeToString() for name, proto in found.items()}
    return content | staged()


@cache
def staged() -> dict[str, bytes]:
    """The models that can be staged, in several forms."""
    content = {}
    for name, (body, weights) in _TEXTS.items():
        proto = build(body, weights)
        for test in ("bound", "stats"):
            done = exprune_cli.optimize(proto, objective="flops", test=test, measure=False)
            if done.staged:
                content[f"{name}-{test}"] = done.model.SerializeToString()
    return content


def samples(count: int = 24) -> np.ndarray:
    """Inputs of the model ``gemm``."""
    return np.random.default_rng(0).standard_normal((count, 12)).astype(np.float32)
