"""Without its kernels a lossless file is the dense layer: folded, fused, the same operators."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import make_case, op_model, run_ort


def _operators(case, tmp_path, full_batch=True):
    """Operators that ONNX Runtime is left with, by type. Every dimension is fixed but maybe the batch."""
    model = op_model(case, 17)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, size in enumerate(case.inputs[value.name].shape):
            if axis or full_batch:
                dims[axis].dim_value = size
    path = tmp_path / "optimized.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    run_ort(model, case, "all", options)
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


COUNTING = {"Shape", "ReduceProd", "Expand"}
LAYOUT = {"ReorderInput", "ReorderOutput"}


@pytest.mark.parametrize("full_batch", [True, False])
def test_gemm_relu_is_one_operator(tmp_path, full_batch):
    case = make_case("PrefixGemmBound", outputs=64, groups=32)
    left = _operators(case, tmp_path, full_batch)
    assert set(left) - COUNTING == {"FusedGemm"}
    assert not full_batch or set(left) == {"FusedGemm"}


@pytest.mark.parametrize("ceiling", [np.inf, 6.0])
@pytest.mark.parametrize("full_batch", [True, False])
def test_conv_relu_is_one_operator(tmp_path, full_batch, ceiling):
    case = make_case("PrefixConvBound", outputs=32, groups=32, ceiling=ceiling)
    left = _operators(case, tmp_path, full_batch)
    assert len(set(left) - COUNTING - LAYOUT) == 1, left
    assert not full_batch or not COUNTING & set(left)


def test_head_is_a_gemm_and_an_argmax(tmp_path):
    left = _operators(make_case("PrefixArgMaxBound", outputs=64, groups=32), tmp_path)
    assert set(left) == {"Gemm", "ArgMax"}


def test_sparse_gemm_is_a_gemm_and_a_count(tmp_path):
    left = _operators(make_case("SparseGemm", outputs=64, groups=32), tmp_path)
    assert left["Gemm"] == 1
    assert set(left) <= {"Gemm", "Cast", "ReduceSum", "Reshape"}
