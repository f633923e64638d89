"""Small models for tests, written as ONNX text."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser


def build(
    body: str, weights: dict[str, object], *, opset: int = 17, ir: int = 8, seed: int = 0
) -> onnx.ModelProto:
    """A model from the text of its graph.

    Args:
        body: ``g (float[N, 4] x) => (float[N, 8] y) { ... }``.
        weights: Initializers: an array, or a shape (tuple) to fill with seeded normal values
            scaled by the square root of the fan-in.
        opset: Version of the default operator set.
        ir: IR version.
        seed: Of the weights.
    """
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{body}')
    rng = np.random.default_rng(seed)
    for name, value in weights.items():
        if isinstance(value, tuple):
            fan_in = max(1, int(np.prod(value[1:])))
            value = (rng.standard_normal(value) / np.sqrt(fan_in)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """Runs a model in ONNX Runtime, functions inlined, no native runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def mlp(opset: int = 17) -> onnx.ModelProto:
    """Three sites: Gemm with transB, MatMul with a residual, a head behind a Softmax."""
    return build(
        """g (float[N, 64] x) => (int64[N] y) {
          a = Gemm <transB: int = 1> (x, w1, b1)
          r = Relu (a)
          m = MatMul (r, w2)
          c = Add (b2, m)
          d = Add (c, r)
          e = Relu (d)
          f = Gemm (e, w3, b3)
          p = Softmax <axis: int = 1> (f)
          y = ArgMax <axis: int = 1, keepdims: int = 0> (p)
        }""",
        {"w1": (96, 64), "b1": (96,), "w2": (96, 96), "b2": (96,), "w3": (96, 10), "b3": (10,)},
        opset=opset,
    )


def cnn(opset: int = 17) -> onnx.ModelProto:
    """Conv with BatchNormalization, one with a residual, a strided one with auto_pad and Clip."""
    rng = np.random.default_rng(1)
    norm = {
        "gamma": rng.uniform(0.5, 2, 24).astype(np.float32),
        "beta": (24,),
        "mean": (24,),
        "var": rng.uniform(0.5, 2, 24).astype(np.float32),
    }
    return build(
        """g (float[N, 3, 16, 16] x) => (float[N, 10] y) {
          c1 = Conv <pads: ints = [1, 1, 1, 1]> (x, w1)
          n1 = BatchNormalization (c1, gamma, beta, mean, var)
          r1 = Relu (n1)
          c2 = Conv <pads: ints = [1, 1, 1, 1]> (r1, w2, b2)
          n2 = BatchNormalization (c2, gamma, beta, mean, var)
          s2 = Add (r1, n2)
          r2 = Relu (s2)
          c3 = Conv <strides: ints = [2, 2], auto_pad: string = "SAME_UPPER"> (r2, w3)
          r3 = Clip (c3, zero, six)
          p = GlobalAveragePool (r3)
          f = Flatten (p)
          y = Gemm (f, w4, b4)
        }""",
        {
            "w1": (24, 3, 3, 3),
            "w2": (24, 24, 3, 3),
            "b2": (24,),
            "w3": (40, 24, 3, 3),
            "zero": np.float32(0),
            "six": np.float32(6),
            "w4": (40, 10),
            "b4": (10,),
            **norm,
        },
        opset=opset,
    )
