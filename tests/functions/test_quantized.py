"""The functions of the quantised ops: the dense layer, wherever a staged file runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from tests.runtime.quantized import good, model, scores

ATTRIBUTES = {"Gemm": (), "TopK": (), "ArgMax": (("keepdims", 0), ("select_last_index", 0))}


def by_ort(proto, inputs):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, inputs
    )


def by_reference(proto, inputs):
    return ReferenceEvaluator(proto).run(None, inputs)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21, 25])
@pytest.mark.parametrize("kind", ["Gemm", "ArgMax", "TopK"])
@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("run", [by_ort, by_reference])
def test_it_is_the_dense_layer(kind, opset, bits, run):
    proto = model(kind, ATTRIBUTES[kind], opset=opset, rank=3)
    onnx.checker.check_model(proto, full_check=True)
    inputs = good(kind, rows=4, outputs=30, groups=300, bits=bits)
    inputs["X"] = inputs["X"].reshape(2, 2, 300)
    *results, survivors = run(proto, inputs)
    value = scores(inputs)
    assert survivors.tolist() == [value.size]
    if kind == "Gemm":
        np.testing.assert_allclose(results[0], np.maximum(value, 0), rtol=1e-5, atol=1e-6)
        return
    order = np.argsort(-value, axis=-1)
    np.testing.assert_array_equal(results[-1], order[..., :3] if kind == "TopK" else order[..., 0])
    if kind == "TopK":
        np.testing.assert_allclose(results[0], -np.sort(-value)[..., :3], rtol=1e-5, atol=1e-6)
