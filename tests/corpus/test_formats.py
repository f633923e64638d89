"""Versions, types and constructs of the format: every valid model is staged or goes through unharmed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from exprune_cli import api
from tests.corpus.checks import FORMS, check_all
from tests.corpus.sources import Item
from tests.models import build, cnn, mlp, run

_NEWEST = onnx.defs.onnx_opset_version()
#: This ONNX Runtime is older than some of the models here.
_OLD = tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 24)
_X = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)


def check(
    proto: onnx.ModelProto, tmp_path: Path, *feeds: dict[str, Any], staged: bool | None, runs: bool = True
) -> onnx.ModelProto:
    """Checks a model in all forms, as those of the corpus; returns its ``bound`` form.

    Args:
        proto: The model.
        tmp_path: For files.
        feeds: Inputs to run it on.
        staged: Whether a site has to be staged; None if either will do.
        runs: Whether ONNX Runtime runs the original.
    """
    counts = check_all([Item("model", lambda: proto, lambda: list(feeds))], tmp_path)
    assert not counts.failures, counts.failures
    assert staged is None or bool(counts.staged) == staged, str(counts)
    assert _OLD or counts.not_run == (not runs), "the original has to run, or not to"
    api.optimize(tmp_path / "in.onnx", tmp_path / "bound.onnx", **FORMS["bound"])
    return onnx.load(tmp_path / "bound.onnx")


def gemm(
    ir: int = 8, opset: int = 17, dtype: type | np.dtype = np.float32, name: str = "float"
) -> onnx.ModelProto:
    """``y = Relu(x w + b)``."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((64, 96)) / 8, "b": rng.standard_normal(96) / 8}
    model = build(
        f"g ({name}[N, 64] x) => ({name}[N, 96] y) {{ g = Gemm (x, w, b)\n y = Relu (g) }}",
        {key: value.astype(dtype) for key, value in weights.items()},
        opset=opset,
        ir=ir,
    )
    return model


# --- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", range(7, _NEWEST + 1))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    """A Gemm, a MatMul and a Conv before a ReLU, and a head, in one model."""
    model = _four_sites(opset)
    # ONNX Runtime only promises to run the opsets of its own release.
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 8)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options)
        runs = True
    except Exception:  # noqa: BLE001
        runs = False
    assert runs or _OLD or opset > 24
    check(model, tmp_path, {"x": x}, staged=opset >= 11 if runs else None, runs=runs)


def _four_sites(opset: int) -> onnx.ModelProto:
    """In IR version 3, in which initializers are inputs as well, as models of old opsets are."""
    rng = np.random.default_rng(0)
    shapes = {"wc": (16, 2, 3, 3), "bc": (16,), "wg": (1024, 32), "bg": (32,), "wm": (32, 24), "wh": (24, 40)}
    nodes = [
        helper.make_node("Conv", ["x", "wc", "bc"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["rc"]),
        helper.make_node("Flatten", ["rc"], ["f"]),
        helper.make_node("Gemm", ["f", "wg", "bg"], ["g"]),
        helper.make_node("Relu", ["g"], ["rg"]),
        helper.make_node("MatMul", ["rg", "wm"], ["m"]),
        helper.make_node("Relu", ["m"], ["z"]),
        helper.make_node("MatMul", ["z", "wh"], ["s"]),
        helper.make_node("ArgMax", ["s"], ["y"], axis=1),
    ]
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / 8).astype(np.float32), n) for n, s in shapes.items()
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2, 8, 8])]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 24]),
        helper.make_tensor_value_info("y", TensorProto.INT64, [3, 1]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


@pytest.mark.parametrize("ir", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version(ir: int, tmp_path: Path) -> None:
    model = gemm(8, opset=13)
    model.ir_version = ir
    if ir < 4:
        for tensor in model.graph.initializer:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    runs = ir <= 11
    if not runs:
        try:
            run(model, x=_X)
            runs = True
        except Exception:  # noqa: BLE001  newer than this ONNX Runtime
            runs = False
    staged = check(model, tmp_path, {"x": _X}, staged=True, runs=runs)
    assert staged.ir_version == max(ir, 8)


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, shape", [(mlp(), (64,)), (cnn(), (3, 16, 16))], ids=["mlp", "cnn"])
def test_no_rows_and_many(model: onnx.ModelProto, shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = (0, 1, 2, 9)
    if _OLD and any(node.op_type == "ArgMax" for node in model.graph.node):
        sizes = sizes[1:]  # an ArgMax over axis -1 of no rows has a wrong shape there
    feeds = [{"x": rng.standard_normal((rows, *shape)).astype(np.float32)} for rows in sizes]
    check(model, tmp_path, *feeds, staged=True)


def test_no_rows_before_a_residual_and_in_three_dimensions(tmp_path: Path) -> None:
    model = build(
        "g (float[A, B, 32] x) => (float[A, B, 32] y) { m = MatMul (x, w)\n a = Add (m, x)\n y = Relu (a) }",
        {"w": (32, 32)},
    )
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((*lead, 32)).astype(np.float32)}
        for lead in ((0, 3), (3, 0), (0, 0), (2, 3))
    ]
    check(model, tmp_path, *feeds, staged=True)


def test_sizes_of_zero_in_the_model(tmp_path: Path) -> None:
    """No outputs, no groups: there is nothing to stage, and nothing breaks."""
    for shape in ((64, 0), (0, 8)):
        model = build(
            f"g (float[N, {shape[0]}] x) => (float[N, {shape[1]}] y) {{ m = MatMul (x, w)\n y = Relu (m) }}",
            {"w": np.zeros(shape, np.float32)},
        )
        check(model, tmp_path, {"x": np.zeros((2, shape[0]), np.float32)}, staged=False)


# --- types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, name", [(np.float16, "float16"), (np.float64, "double")])
def test_floats_of_other_widths(dtype: type, name: str, tmp_path: Path) -> None:
    check(gemm(dtype=dtype, name=name), tmp_path, {"x": _X.astype(dtype)}, staged=False)


def test_bfloat16(tmp_path: Path) -> None:
    model = gemm()
    for tensor in model.graph.initializer:
        upper = numpy_helper.to_array(tensor).view(np.uint32) >> 16
        tensor.raw_data = upper.astype(np.uint16).tobytes()
        tensor.data_type = TensorProto.BFLOAT16
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.checker.check_model(model, full_check=True)
    check(model, tmp_path, staged=False, runs=False)


def test_mixed_types_stage_what_is_float32(tmp_path: Path) -> None:
    model = build(
        """g (float16[N, 64] x) => (float16[N, 32] y) {
          a = Gemm (x, v)
          h = Relu (a)
          f = Cast <to: int = 1> (h)
          m = MatMul (f, w)
          r = Relu (m)
          y = Cast <to: int = 10> (r)
        }""",
        {"v": np.random.default_rng(0).standard_normal((64, 48)).astype(np.float16), "w": (48, 32)},
    )
    check(model, tmp_path, {"x": _X.astype(np.float16)}, staged=True)


_QDQ = """
  qw = DequantizeLinear <axis: int = 1> (w8, ws, wz)
  qx = QuantizeLinear (x, s, z)
  dx = DequantizeLinear (qx, s, z)
  g = Gemm (dx, qw, b)
  y = Relu (g)
"""
_QLINEAR = """
  qx = QuantizeLinear (x, s, z)
  q = QLinearMatMul (qx, s, z, w8, ws0, wz0, s, z)
  g = DequantizeLinear (q, s, z)
  y = Relu (g)
"""
_INTEGER = """
  qx, xs, xz = DynamicQuantizeLinear (x)
  i = MatMulInteger (qx, w8, xz, wz0)
  f = Cast <to: int = 1> (i)
  g = Mul (f, xs)
  y = Relu (g)
"""


@pytest.mark.parametrize("body", [_QDQ, _QLINEAR, _INTEGER], ids=["qdq", "qlinear", "integer"])
def test_quantised(body: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w8": rng.integers(-127, 127, (64, 96), np.int8),
        "ws": np.full(96, 0.01, np.float32),
        "wz": np.zeros(96, np.int8),
        "ws0": np.float32(0.01),
        "wz0": np.int8(0),
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "b": np.zeros(96, np.float32),
    }
    model = build(
        f"g (float[N, 64] x) => (float[N, 96] y) {{ {body} }}",
        {name: value for name, value in weights.items() if name in re.split(r"\W+", body)},
    )
    check(model, tmp_path, {"x": _X}, staged=False)


def test_a_float_layer_beside_quantised_ones(tmp_path: Path) -> None:
    """It is staged, and the quantised one is as it was."""
    rng = np.random.default_rng(0)
    model = build(
        """g (float[N, 64] x) => (float[N, 8] y) {
          dw = DequantizeLinear (w8, s, z)
          a = MatMul (x, dw)
          h = Relu (a)
          m = MatMul (h, w)
          y = Relu (m)
        }""",
        {
            "w8": rng.integers(-127, 127, (64, 48), np.int8),
            "s": np.float32(0.01),
            "z": np.int8(0),
            "w": (48, 8),
        },
    )
    staged = check(model, tmp_path, {"x": _X}, staged=True)
    kept = [node for node in model.graph.node if node.output[0] in ("dw", "a")]
    assert [node for node in staged.graph.node if node.output[0] in ("dw", "a")] == kept


def test_int4_weights(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 64] x) => (float[N, 96] y) '
        "{ w = DequantizeLinear (w4, s)\n g = MatMul (x, w)\n y = Relu (g) }"
    )
    values = np.random.default_rng(0).integers(0, 256, 64 * 96 // 2, np.uint8)
    model.graph.initializer.append(
        TensorProto(name="w4", data_type=TensorProto.INT4, dims=[64, 96], raw_data=values.tobytes())
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    onnx.checker.check_model(model, full_check=True)
    check(model, tmp_path, {"x": _X}, staged=False)


def test_matmul_nbits(tmp_path: Path) -> None:
    """ONNX Runtime's own 4-bit layer, beside one that is staged."""
    model = build(
        """g (float[N, 64] x) => (float[N, M] y) {
          a = MatMul (x, v)
          h = Relu (a)
          g = Neg (h)
          y = Relu (g)
        }""",
        {"v": (64, 64)},
    )
    rng = np.random.default_rng(0)
    neg = next(node for node in model.graph.node if node.op_type == "Neg")
    neg.op_type, neg.domain = "MatMulNBits", "com.microsoft"
    neg.input.extend(["w4", "s"])
    for name, value in {"K": 64, "N": 96, "bits": 4, "block_size": 32}.items():
        neg.attribute.append(helper.make_attribute(name, value))
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.initializer.append(numpy_helper.from_array(rng.integers(0, 256, (96, 2, 16), np.uint8), "w4"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(96 * 2, 0.01, np.float32), "s"))
    staged = check(model, tmp_path, {"x": _X}, staged=True)
    assert neg in staged.graph.node
    refused = [site for site in api.report(tmp_path / "bound.onnx").sites if not site.staged]
    assert [site.op for site in refused] == ["MatMulNBits"]


# --- constructs --------------------------------------------------------------------------------


def test_sparse_initializers(tmp_path: Path) -> None:
    """One that a site would read, and one beside a site."""
    for where in ("w", "b"):
        model = build(
            "g (float[N, 64] x) => (float[N, 96] y) { g = MatMul (x, w)\n r = Relu (g)\n y = Add (r, b) }",
            {"w": (64, 96), "b": (96,)},
        )
        dense = next(tensor for tensor in model.graph.initializer if tensor.name == where)
        values = numpy_helper.to_array(dense)
        mask = np.random.default_rng(0).random(values.shape) < 0.1
        model.graph.initializer.remove(dense)
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                numpy_helper.from_array(values[mask], where),
                numpy_helper.from_array(np.flatnonzero(mask), f"{where}_indices"),
                values.shape,
            )
        )
        staged = check(model, tmp_path, {"x": _X}, staged=where == "b")
        assert list(staged.graph.sparse_initializer) == list(model.graph.sparse_initializer)


def test_local_functions_with_sites_inside_and_beside(tmp_path: Path) -> None:
    model = build(
        "g (float[N, 64] x) => (float[N, 32] y) { t = Neg (x)\n g = MatMul (t, w)\n r = Relu (g)\n y = MatMul (r, u) }",
        {"w": (64, 96), "u": (96, 32)},
    )
    function = parser.parse_function(
        """<domain: "org.example", opset_import: ["" : 17]> Layer (a, v) => (c) {
          b = MatMul (a, v)
          c = Relu (b)
        }"""
    )
    model.functions.append(function)
    model.opset_import.add(domain="org.example", version=1)
    neg = model.graph.node[0]
    neg.op_type, neg.domain = "Layer", "org.example"
    neg.input.append("q")
    model.graph.initializer.append(
        numpy_helper.from_array(
            np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32) / 8, "q"
        )
    )
    staged = check(model, tmp_path, {"x": _X}, staged=True)
    assert function in staged.functions


def test_subgraphs_that_read_outer_values_and_share_names(tmp_path: Path) -> None:
    """Branches read a site's weight, its result and its input, and use the same names inside."""
    model = build(
        """g (bool c, float[N, 64] x) => (float[N, 96] y) {
          g = MatMul (x, w)
          r = Relu (g)
          y = If (c) <
            then_branch: graph = t () => (float[N, 96] a) { inner = MatMul (x, w)\n a = Add (r, inner) },
            else_branch: graph = e () => (float[N, 96] b) { inner = Relu (r)\n b = Add (inner, r) }
          >
        }""",
        {"w": (64, 96)},
    )
    feeds = [{"c": np.array(value), "x": _X} for value in (True, False)]
    staged = check(model, tmp_path, *feeds, staged=True)
    assert "w" in {tensor.name for tensor in staged.graph.initializer}  # a branch reads it still


def test_names_of_a_subgraph_that_staging_would_choose(tmp_path: Path) -> None:
    """A branch may have a name already that a staged node's constant would get."""
    model = build(
        """g (bool c, float[N, 64] x) => (float[N, 96] y) {
          layer = MatMul (x, w)
          r = Relu (layer)
          y = If (c) <
            then_branch: graph = t () => (float[N, 96] a) { order = Neg (r)\n a = Abs (order) },
            else_branch: graph = e () => (float[N, 96] b) { bias = Neg (r)\n b = Relu (bias) }
          >
        }""",
        {"w": (64, 96)},
    )
    renamed = {"order": "layer/order", "bias": "layer/bias"}
    for attribute in model.graph.node[-1].attribute:
        for node in attribute.g.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
    feeds = [{"c": np.array(value), "x": _X} for value in (True, False)]
    check(model, tmp_path, *feeds, staged=True)


def test_tied_weights(tmp_path: Path) -> None:
    """One weight for two sites, and one for a site and a Gather (an embedding)."""
    model = build(
        """g (float[N, 64] x, int64[N] i) => (float[N, 64] y, float[N, 64] z, int64[N] k) {
          a = MatMul (x, w)
          h = Relu (a)
          b = MatMul (h, w)
          y = Relu (b)
          z = Gather (e, i)
          s = Gemm <transB: int = 1> (y, e)
          k = ArgMax <axis: int = -1, keepdims: int = 0> (s)
        }""",
        {"w": (64, 64), "e": (128, 64)},
    )
    staged = check(model, tmp_path, {"x": _X, "i": np.arange(5)}, staged=True)
    assert "e" in {tensor.name for tensor in staged.graph.initializer}


def test_empty_optional_inputs(tmp_path: Path) -> None:
    model = build(
        """g (float[N, 64] x) => (float[N, 96] y) {
          g = Gemm (x, w, b)
          y = Clip (g, zero)
        }""",
        {"w": (64, 96), "b": (96,), "zero": np.float32(0), "six": np.float32(6)},
    )
    for inputs, staged in (
        (["g", "zero", ""], True),
        (["g", "zero", "six"], True),
        (["g", "", "six"], False),
        (["g", "", ""], False),
    ):
        del model.graph.node[1].input[:]
        model.graph.node[1].input.extend(inputs)
        check(model, tmp_path, {"x": _X}, staged=staged)
    del model.graph.node[1].input[:]
    model.graph.node[1].input.extend(["g", "zero"])
    model.graph.node[0].input[2] = ""
    check(model, tmp_path, {"x": _X}, staged=True)


def test_sequences_and_optionals_beside_a_site(tmp_path: Path) -> None:
    model = build(
        """g (float[N, 64] x, seq(float[N, 64]) s, optional(float[N, 64]) o)
           => (float[N, 96] y, seq(float[N, 96]) t, bool has) {
          zero = Constant <value: tensor = int64 {0}> ()
          e = SequenceAt (s, zero)
          a = Add (x, e)
          g = MatMul (a, w)
          y = Relu (g)
          t = SequenceConstruct (y, y)
          has = OptionalHasElement (o)
        }""",
        {"w": (64, 96)},
        opset=18,
    )
    check(model, tmp_path, {"x": _X, "s": [_X, _X], "o": _X}, staged=True)


def test_what_is_said_of_a_model_survives(tmp_path: Path) -> None:
    """Texts, versions, annotations and value_info, also where they are about neighbours of a site."""
    model = mlp()
    model.doc_string, model.domain, model.model_version = "a model\nof two lines", "org.example", 2**40
    model.producer_name, model.producer_version = "somebody", "1.2"
    for key in ("author", "exprune.example", "ünïcode"):
        model.metadata_props.add(key=key, value="x")
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="graph", value="y")
    graph.input[0].doc_string = "the input"
    graph.output[0].doc_string = "the output"
    graph.initializer[0].doc_string = "a weight"
    graph.value_info.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 10]))
    graph.value_info.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [3]))
    annotation = graph.quantization_annotation.add(tensor_name="r")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    model.ir_version = 10  # the first with metadata of graphs
    staged = check(model, tmp_path, {"x": _X}, staged=True)
    for name in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        assert getattr(staged, name) == getattr(model, name)
    assert [entry for entry in staged.metadata_props if entry in model.metadata_props] == list(
        model.metadata_props
    )
    assert staged.graph.doc_string == graph.doc_string
    assert list(staged.graph.metadata_props) == list(graph.metadata_props)
    assert list(staged.graph.quantization_annotation) == list(graph.quantization_annotation)
    assert list(staged.graph.input) == list(graph.input) and list(staged.graph.output) == list(graph.output)
    assert "unused" in {value.name for value in staged.graph.value_info}
