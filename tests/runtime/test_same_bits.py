"""What is computed in full has the bits that ONNX Runtime's own product has: sums are taken in its order.

That needs its multiply-adds too, which only the kernels for AVX2 and AVX-512 have.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from .quantized import good, run_quantized
from .test_packed import ALIVE, run, sparse_call


@pytest.fixture
def fused(library):
    """A library whose kernels have fused multiply-adds."""
    if not any(isa in library for isa in ("avx2", "avx512")):
        pytest.skip("products are rounded before they are added")
    return library


def dense(nodes, feed, constants):
    """The result of these nodes in ONNX Runtime; ``constants`` are initializers, as in a model."""
    values = [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, None])]
    results = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
    arrays = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "dense", values, results, arrays)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feed
    )[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 70])
@pytest.mark.parametrize("groups", [1, 17, 256, 300, 768, 1100])
def test_relu(fused, rows, groups):
    inputs = good("Gemm", seed=groups, rows=rows, outputs=601, groups=groups)
    nodes = [
        helper.make_node("Gemm", ["X", "W", "bias"], ["H"], transB=1),
        helper.make_node("Relu", ["H"], ["Y"]),
    ]
    wanted = dense(nodes, {"X": inputs["X"]}, {name: inputs[name] for name in ("W", "bias")})
    for threads in (1, 2):
        y, survivors = run_quantized(fused, "Gemm", inputs, threads=threads)
        np.testing.assert_array_equal(y.view(np.int32), wanted.view(np.int32))
        assert (wanted > 0).sum() <= survivors[0]


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("groups", [17, 300, 768])
def test_scores(fused, rows, groups):
    inputs = good("TopK", seed=groups, rows=rows, outputs=3000, groups=groups, k=40)
    inputs["bias"][:] = 0
    nodes = [helper.make_node("MatMul", ["X", "W"], ["Y"])]
    scores = dense(nodes, {"X": inputs["X"]}, {"W": np.ascontiguousarray(inputs["W"].T)})
    values, indices, _ = run_quantized(fused, "TopK", inputs)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :40]
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, wanted, 1))


@pytest.mark.parametrize("rows", [1, 4, 8, 70])
@pytest.mark.parametrize("alive", ALIVE)
@pytest.mark.parametrize(("depth", "columns"), [(17, 33), (600, 300), (1100, 1000), (2900, 790)])
def test_sparse(fused, rows, alive, depth, columns):
    call = sparse_call(np.random.default_rng(depth), rows, depth, columns, alive)
    nodes = [helper.make_node("Gemm", ["X", "W", "bias"], ["Y"])]
    constants = {name: call.inputs[name] for name in ("W", "bias")}
    wanted = dense(nodes, {"X": call.inputs["X"]}, constants)
    for constant in (True, False):
        np.testing.assert_array_equal(run(fused, call, constants=constant)[0], wanted)
