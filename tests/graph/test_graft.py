"""What exprune does not touch comes out as it went in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.planner import plan
from exprune_cli.rewrite import rewrite
from tests.models import build, mlp, run


def _stage(proto: onnx.ModelProto, full_check: bool = True) -> onnx.ModelProto:
    model = load(proto)
    matches = match(model)
    staged, records = rewrite(model, matches.sites, plan(matches.sites, None, "bound", [0.01])[0])
    assert any(record.staged for record in records), matches.refusals
    onnx.checker.check_model(staged, full_check=full_check)
    return staged


def test_model_fields_survive() -> None:
    proto = mlp()
    proto.doc_string = "a model"
    proto.domain = "org.example"
    proto.model_version = 42
    proto.producer_name, proto.producer_version = "somebody", "1.2"
    proto.metadata_props.add(key="author", value="x")
    proto.graph.doc_string = "a graph"
    proto.graph.node[1].doc_string = "kept only if the node is"
    annotation = proto.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    staged = _stage(proto)
    for name in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        assert getattr(staged, name) == getattr(proto, name)
    assert list(staged.metadata_props) == list(proto.metadata_props)
    assert staged.graph.doc_string == "a graph"
    assert list(staged.graph.quantization_annotation) == list(proto.graph.quantization_annotation)
    assert list(staged.graph.input) == list(proto.graph.input)
    assert list(staged.graph.output) == list(proto.graph.output)


def test_untouched_nodes_keep_every_byte() -> None:
    proto = build(
        """g (bool c, float[N, 8] x) => (float[N, 12] z, float[N, 12] q) {
          y = MatMul (x, v)
          r = Relu (y)
          z = If (c) <
            then_branch: graph = t () => (float[N, 12] a) { a = Add (r, k) },
            else_branch: graph = e () => (float[N, 12] b) { n = Neg (r)\n b = Mul (n, k) }
          >
          q = Abs (r)
        }""",
        {"v": (8, 12), "k": (12,)},
    )
    for node in proto.graph.node:
        node.doc_string = f"about {node.op_type}"
        node.metadata_props.add(key="origin", value=node.output[0])
    staged = _stage(proto)
    kept = {node.output[0]: node for node in proto.graph.node if node.op_type in ("If", "Abs")}
    found = {node.output[0]: node for node in staged.graph.node if node.output[0] in kept}
    assert found == kept
    assert [t.name for t in staged.graph.initializer].count("k") == 1
    feeds = {"c": np.array(True), "x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
    for a, b in zip(run(proto, **feeds), run(staged, **feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_sparse_initializers_and_functions_survive() -> None:
    proto = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n r = Relu (y)\n z = Add (r, sparse) }",
        {"v": (8, 12), "sparse": np.zeros(12, np.float32)},
    )
    dense = next(t for t in proto.graph.initializer if t.name == "sparse")
    proto.graph.initializer.remove(dense)
    values = numpy_helper.from_array(np.array([2.0], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([3], np.int64), "sparse_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [12]))
    proto.functions.append(
        parser.parse_function(
            '<domain: "org.example", opset_import: ["" : 17]> Twice (a) => (b) { b = Add (a, a) }'
        )
    )
    proto.opset_import.add(domain="org.example", version=3)
    staged = _stage(proto, full_check=False)  # ONNX's inference has no types for sparse initializers
    assert list(staged.graph.sparse_initializer) == list(proto.graph.sparse_initializer)
    assert staged.functions[0] == proto.functions[0]
    assert {(o.domain, o.version) for o in staged.opset_import} == {
        ("", 17),
        ("org.example", 3),
        ("com.exprune", 1),
    }


def test_shared_weights_stay_and_unread_ones_go() -> None:
    proto = build(
        """g (float[N, 8] x) => (float[N, 12] z, float[N, 12] u) {
          y = MatMul (x, v)
          z = Relu (y)
          w = MatMul (x, v)
          u = Tanh (w)
        }""",
        {"v": (8, 12)},
    )
    staged = _stage(proto)
    assert "v" in {t.name for t in staged.graph.initializer}
    alone = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n z = Relu (y) }", {"v": (8, 12)}
    )
    assert "v" not in {t.name for t in _stage(alone).graph.initializer}


def test_initializers_nobody_reads_are_left_alone() -> None:
    proto = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n z = Relu (y) }",
        {"v": (8, 12), "spare": (3,)},
    )
    assert "spare" in {t.name for t in _stage(proto).graph.initializer}


def test_ir_version_3_keeps_the_inputs_that_callers_feed() -> None:
    proto = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n z = Relu (y) }",
        {"v": (8, 12)},
        opset=11,
        ir=8,
    )
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [8, 12]))
    staged = _stage(proto)
    assert [value.name for value in staged.graph.input] == ["x"]
    assert staged.ir_version >= 8


def test_staged_outputs_have_shapes() -> None:
    staged = _stage(mlp())
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in staged.graph.value_info}
    assert shapes["r"] == 2 and shapes["e"] == 2
    # Their survivors must have none: see rules/_stage.py.
    assert not any(node.output[1] in shapes for node in staged.graph.node if node.domain == "com.exprune")


def test_names_that_the_model_uses_are_not_taken_again() -> None:
    proto = mlp()
    proto.graph.node[0].name = "site"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "site/bias"))
    names = [t.name for t in _stage(proto).graph.initializer]
    assert "site/bias" in names and "site/bias_2" in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("opset", [13, 17])
def test_original_is_not_changed(opset: int) -> None:
    proto = mlp(opset)
    before = proto.SerializeToString(deterministic=True)
    _stage(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_symbols_that_inference_made_up_are_not_declared() -> None:
    # ONNX Runtime makes up the same names; equal names would let it share buffers of different sizes.
    proto = build(
        """g (float[N, 8] x, int64[2] s) => (float[N, 12] z, float[a, b] q) {
          t = Reshape (x, s)
          y = MatMul (t, v)
          r = Relu (y)
          q = Abs (r)
          u = MatMul (x, v)
          z = Relu (u)
        }""",
        {"v": (8, 12)},
    )
    symbols = {
        dim.dim_param for value in _stage(proto).graph.value_info for dim in value.type.tensor_type.shape.dim
    }
    assert symbols <= {"", "N"}


def test_types_that_numpy_lacks_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is for results."""
    proto = build(
        "g (float[N, 8] x) => (float[N, 12] z) { y = MatMul (x, v)\n r = Relu (y)\n z = Add (r, c)\n}",
        {"v": (8, 12), "c": (12,)},
    )
    lone = onnx.TensorProto(name="lone", data_type=TensorProto.BFLOAT16, dims=[2], raw_data=bytes(4))
    proto.graph.initializer.append(lone)
    assert lone in _stage(proto).graph.initializer
    assert capfd.readouterr().out == ""
