"""Models over protobuf's 2 GB, in memory. They take 10 GB and minutes, so only on demand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exprune_cli.model import load, save
from exprune_cli.protobuf import MESSAGE_LIMIT, byte_size, model_digest
from exprune_cli.sessions import open_session, run

pytestmark = pytest.mark.skipif(
    not os.environ.get("EXPRUNE_LARGE_TESTS"), reason="takes 10 GB of memory: set EXPRUNE_LARGE_TESTS=1"
)
_WEIGHTS = 9
_ROWS, _COLUMNS = 2**18, 2**8


@pytest.fixture(scope="module")
def large() -> onnx.ModelProto:
    """Nine weights of 256 MB, of which every run reads one row each."""
    nodes, weights = [], []
    for index in range(_WEIGHTS):
        values = np.full((_ROWS, _COLUMNS), index, np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes.append(helper.make_node("Gather", [f"w{index}", "row"], [f"r{index}"]))
    nodes.append(helper.make_node("Sum", [f"r{index}" for index in range(_WEIGHTS)], ["y"]))
    row = helper.make_tensor_value_info("row", onnx.TensorProto.INT64, [])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [_COLUMNS])
    graph = helper.make_graph(nodes, "large", [row], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_size_and_digest_of_what_protobuf_cannot_serialise(large: onnx.ModelProto) -> None:
    assert byte_size(large) == _WEIGHTS * _ROWS * _COLUMNS * 4 > MESSAGE_LIMIT
    before = model_digest(large)
    large.graph.node[0].name = "renamed"
    assert model_digest(large) != before
    large.graph.node[0].ClearField("name")
    assert model_digest(large) == before


def test_it_is_saved_loaded_and_run(large: onnx.ModelProto, tmp_path: Path) -> None:
    save(large, tmp_path / "large.onnx")
    model = load(tmp_path / "large.onnx")
    (y,) = run(open_session(model.proto), {"row": np.array(5, np.int64)}, "a row")
    np.testing.assert_array_equal(y, np.full(_COLUMNS, sum(range(_WEIGHTS)), np.float32))
