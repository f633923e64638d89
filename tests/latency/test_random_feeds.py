"""Inputs that are made up: of which types and sizes, and of which not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, TypeProto, helper

from exprune_cli.model import Model
from exprune_cli.random_feeds import random_feeds
from exprune_cli.static import zero_feeds

MADE = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT64: np.int64,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
}
#: What NumPy has no numbers for, or ONNX Runtime no way to be fed with.
NOT_MADE = {
    "string": helper.make_tensor_type_proto(TensorProto.STRING, [2]),
    "complex": helper.make_tensor_type_proto(TensorProto.COMPLEX64, [2]),
    "bfloat16": helper.make_tensor_type_proto(TensorProto.BFLOAT16, [2]),
    "float8": helper.make_tensor_type_proto(TensorProto.FLOAT8E4M3FN, [2]),
    "int4": helper.make_tensor_type_proto(TensorProto.INT4, [2]),
    "no type": TypeProto(),
    "no shape": helper.make_tensor_type_proto(TensorProto.FLOAT, None),
    "sequence": helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2])),
    "optional": helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2])),
    "negative size": helper.make_tensor_type_proto(TensorProto.FLOAT, [2, -3]),
    "negative sizes": helper.make_tensor_type_proto(TensorProto.FLOAT, [-2, -3]),
    "too many elements": helper.make_tensor_type_proto(TensorProto.INT8, [2**20, 2**20]),
}
WAYS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "random": lambda proto: random_feeds(Model(proto, None, ""), 2, 0, 1),
    "zeros": zero_feeds,
}


def _with_input(kind: TypeProto) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2]), helper.make_value_info("b", kind)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["y"])], "g", inputs, [output])
    return helper.make_model(graph)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", NOT_MADE)
def test_what_is_not_made_up(kind: str, way: str) -> None:
    assert WAYS[way](_with_input(NOT_MADE[kind])) is None


@pytest.mark.parametrize("kind", MADE)
def test_what_is_made_up(kind: int) -> None:
    proto = _with_input(helper.make_tensor_type_proto(kind, [2, 3]))
    (feeds,) = random_feeds(Model(proto, None, ""), 2, 0, 1) or [{}]
    zeros = zero_feeds(proto) or {}
    for made in (feeds["b"], zeros["b"]):
        assert made.dtype == MADE[kind] and made.shape == (2, 3)
    assert not zeros["b"].any() and feeds["b"].any() == (feeds["b"].dtype.kind == "f")
