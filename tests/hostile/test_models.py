"""Crafted models: one clear line and exit code 3, or through unharmed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import exprune_cli
from exprune_cli import structure
from exprune_cli.errors import ExpruneError
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.page import to_html
from exprune_cli.render import to_json, to_table
from tests.hostile.conftest import Fails, run_limited
from tests.models import cnn, mlp

HEAD = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'


def _functions(calls: list[list[str]]) -> onnx.ModelProto:
    """A model that calls function ``f0``; function i calls the functions ``calls[i]`` in turn."""
    proto = parser.parse_model(HEAD + "g (float[N, 4] x) => (float[N, 4] y) { y = own.f0 (x) }")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for index, callees in enumerate(calls):
        nodes, last = [], "a"
        for place, name in enumerate(callees):
            domain = "" if name == "Relu" else "own"
            nodes.append(helper.make_node(name, [last], [f"t{place}"], domain=domain))
            last = f"t{place}"
        nodes[-1].output[0] = "b"
        proto.functions.append(helper.make_function("own", f"f{index}", ["a"], ["b"], nodes, opsets))
    return proto


def _chain(length: int, times: int) -> onnx.ModelProto:
    return _functions([[f"f{i + 1}"] * times for i in range(length - 1)] + [["Relu"]])


def _message(field: int, content: bytes) -> bytes:
    size, text = len(content), b""
    while size > 127:
        text += bytes([size & 127 | 128])
        size >>= 7
    return bytes([field << 3 | 2]) + text + bytes([size]) + content


def _nested_subgraphs(depth: int) -> bytes:
    graph = _message(2, b"g")
    for _ in range(depth):
        branch = _message(1, b"then_branch") + _message(6, graph) + bytes([0xA0, 1, 5])
        node = _message(4, b"If") + _message(2, b"o") + _message(5, branch)
        graph = _message(1, node) + _message(2, b"g")
    return b"\x08\x08" + _message(7, graph)


def _concat_bomb() -> onnx.ModelProto:
    doubled = " ".join(f"t{i + 1} = Concat <axis = 0> (t{i}, t{i})" for i in range(40))
    text = f"g (float[1, 4] x) => (float[A] y) {{ t0 = Shape (x) {doubled} y = ConstantOfShape (t40) }}"
    return parser.parse_model(HEAD + text)


def _typed(depth: int) -> onnx.ModelProto:
    proto = mlp()
    kind = proto.graph.value_info.add(name="h").type
    for _ in range(depth):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


REFUSED = {
    "function calls itself": (lambda: _functions([["f0"]]), "function 'f0' calls itself"),
    "functions call each other": (lambda: _functions([["f1"], ["f0"]]), "calls itself"),
    "long chain of functions": (lambda: _chain(20_000, 1), "deeper than 64 levels"),
    "function bomb": (lambda: _chain(40, 2), "has over 2,000,000 nodes"),
    "deep subgraphs": (lambda: _nested_subgraphs(28), "nested deeper than 24 levels"),
    "very deep subgraphs": (lambda: _nested_subgraphs(5000), "cannot be parsed"),
    "concat bomb": (_concat_bomb, "joins over 1,048,576 constants"),
    "deep types": (lambda: _typed(25), "nested deeper than 16 levels"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("command", ["report", "optimize"])
def test_bombs(refuses: Fails, tmp_path: Path, name: str, command: str) -> None:
    make, expected = REFUSED[name]
    made = make()
    (tmp_path / "m.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    arguments = ["report", "m.onnx"] if command == "report" else ["optimize", "m.onnx", "o.onnx"]
    assert expected in refuses(*arguments, seconds=20)


def _edited(edit: str) -> onnx.ModelProto:
    proto = mlp()
    graph, weight = proto.graph, proto.graph.initializer[0]
    if edit == "cycle":
        graph.node[0].input[0] = graph.node[-1].output[0]
    elif edit == "dangling":
        graph.node[0].input[0] = "nowhere"
    elif edit == "two producers":
        graph.node[1].output[0] = graph.node[0].output[0]
    elif edit == "negative size":
        weight.dims[0] = -weight.dims[0]
    elif edit == "two negative sizes":
        weight.dims[0], weight.dims[1] = -weight.dims[0], -weight.dims[1]
    elif edit == "huge size":
        weight.dims[0] = 2**60
    elif edit == "declared but empty":
        weight.dims[0] = 2**30
        weight.ClearField("raw_data")
    elif edit == "bytes cut":
        weight.raw_data = weight.raw_data[:-4]
    elif edit == "unknown type":
        weight.data_type = 99
    elif edit == "unknown input type":
        graph.input[0].type.tensor_type.elem_type = 99
    elif edit == "huge input":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**60
    elif edit == "no operator":
        graph.node[0].op_type = ""
    return proto


EDITS = {
    "cycle": "topologically sorted",
    "dangling": "topologically sorted",
    "two producers": "SSA",
    "negative size": "impossible shape",
    "two negative sizes": "impossible shape",
    "huge size": "impossible shape",
    "declared but empty": "elements holds 0 numbers",
    "bytes cut": "bytes, not",
    "unknown type": "unknown type 99",
    "unknown input type": "unknown type 99",
    "huge input": "impossible shape",
    "no operator": "op_type",
}


@pytest.mark.parametrize("edit", EDITS)
def test_models_that_are_none(edit: str) -> None:
    for source in (_edited(edit), _edited(edit).SerializeToString()):
        with pytest.raises(ExpruneError, match="not a valid ONNX model") as caught:
            load(source)
        assert EDITS[edit] in str(caught.value)


@pytest.mark.parametrize("where", ["operator", "tensor", "node name", "metadata"])
def test_text_that_is_not_utf8(tmp_path: Path, where: str) -> None:
    proto = mlp()
    if where == "operator":
        proto.graph.node[0].op_type = "MARKER"
    elif where == "tensor":
        proto.graph.initializer[0].name = "MARKER"
    elif where == "node name":
        proto.graph.node[0].name = "MARKER"
    else:
        proto.metadata_props.add(key="MARKER", value="x")
    content = proto.SerializeToString()
    assert content.count(b"MARKER") == 1
    with pytest.raises(ExpruneError, match=r"not UTF-8|cannot be parsed"):
        load(content.replace(b"MARKER", b"M\xff\xfe\x80ER"))


CONV_ATTRIBUTES: dict[str, dict[str, object]] = {
    "negative pads": {"pads": [-1] * 4},
    "huge pads": {"pads": [2**40] * 4},
    "no stride": {"strides": [0, 0]},
    "no stride, same": {"strides": [0, 0], "auto_pad": "SAME_UPPER"},
    "negative stride": {"strides": [-1, -1]},
    "one stride": {"strides": [1]},
    "three strides": {"strides": [1, 1, 1]},
    "no dilation": {"dilations": [0, 0]},
    "huge dilation": {"dilations": [2**40] * 2},
    "no group": {"group": 0},
    "negative group": {"group": -1},
    "other kernel": {"kernel_shape": [7, 7]},
    "unknown auto_pad": {"auto_pad": "WHAT"},
}


@pytest.mark.parametrize("name", CONV_ATTRIBUTES)
def test_odd_conv_is_left_alone(name: str) -> None:
    proto = cnn()
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    kept = [a for a in conv.attribute if a.name not in CONV_ATTRIBUTES[name]]
    del conv.attribute[:]
    conv.attribute.extend(kept)
    conv.attribute.extend(helper.make_attribute(key, value) for key, value in CONV_ATTRIBUTES[name].items())
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_value")
    done = exprune_cli.optimize(proto, objective="flops", test="stats", measure=False)
    first = next(site for site in done.report.sites if site.op == "Conv")
    assert not first.staged and first.reason


@pytest.mark.parametrize("value", [-1, 2, 2**40])
@pytest.mark.parametrize(
    "end",
    [
        "y = ArgMax <axis = -1, keepdims = FLAG> (s)",
        "y = ArgMax <axis = -1, select_last_index = FLAG> (s)",
        "y = ArgMin <axis = -1, keepdims = FLAG> (s)",
        "k = Constant <value_ints = [1]> () v, y = TopK <largest = FLAG> (s, k)",
        "k = Constant <value_ints = [3]> () v, y = TopK <largest = FLAG> (s, k)",
    ],
)
def test_flags_that_are_none(end: str, value: int) -> None:
    """What ONNX Runtime makes of them depends on the operator."""
    made = end.replace("FLAG", str(value))
    proto = parser.parse_model(HEAD + f"g (float[N, 8] x) => (int64[M, K] y) {{ s = MatMul (x, w) {made} }}")
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = match(load(proto))
    assert not found.sites and found.refusals[0].code in ("odd-flag", "topk")


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers(name: str, value: float) -> None:
    proto = parser.parse_model(
        HEAD + "g (float[N, 8] x) => (float[N, 8] y) { h = Gemm (x, w, b) y = Relu (h) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "b"))
    proto.graph.node[0].attribute.append(helper.make_attribute(name, value))
    done = exprune_cli.optimize(proto, objective="flops", test="stats", measure=False)
    assert not done.staged
    assert "finite" in done.report.sites[0].reason


def test_a_model_that_loops_for_ever_is_reported(tmp_path: Path) -> None:
    text = """g (float[1, 4] x) => (float[A, B] y) {
      n = Constant <value_int = 9000000000000000000> ()
      t = Constant <value_int = 1> ()
      c = Cast <to = 9> (t)
      z = Loop (n, c, x) <body = b (int64 i, bool ci, float[A, 4] v) => (bool co, float[A, 4] w)
        { co = Identity (ci) w = Relu (v) }>
      q = NonZero (z)
      f = Cast <to = 1> (q)
      u = Transpose (f)
      y = MatMul (u, w2) }"""
    proto = parser.parse_model(HEAD + text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3), np.float32), "w2"))
    onnx.save(proto, tmp_path / "m.onnx")
    program = (
        "import exprune_cli, exprune_cli.reporting as r; r._ZEROS_SECONDS = 0.5; exprune_cli.report('m.onnx')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=200)


def test_a_constant_too_large_for_shape_inference(tmp_path: Path) -> None:
    text = """g (float[1, 4] x) => (float[A, B] y) {
      s = Constant <value_ints = [10000000000]> ()
      p = ConstantOfShape (s)
      i = Cast <to = 7> (p)
      q = Pad (x, i)
      h = MatMul (q, w)
      y = Relu (h) }"""
    proto = parser.parse_model(HEAD + text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    # Written out element by element it takes over a minute, or all memory.
    assert run_limited("report", "m.onnx", folder=tmp_path, seconds=15).returncode == 0


#: Ways to a vector of three billion numbers, which shape inference would follow.
LONG = {
    "product": ("1", "a = Constant <value_ints = [60000]> () s = Mul (a, a) p = ConstantOfShape (s)"),
    "size of an input": ("3000000000", "s = Shape (x) p = ConstantOfShape (s)"),
    "expanded": (
        "1",
        "s = Constant <value_ints = [3000000000]> () v = Constant <value_ints = [1]> () p = Expand (v, s)",
    ),
    "input": ("3000000000", "p = Identity (x)"),
    "function": ("1", "p = own.f (x)"),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_vector_is_not_written_out(tmp_path: Path, name: str) -> None:
    """Not only constants that are seen to be long: in seconds, and with little memory, where there is much."""
    size, made = LONG[name]
    head = f"g (float[{size}] x, float[N, 4] z) => (float[A] q, float[N, 4] y)"
    proto = parser.parse_model(
        f"{HEAD}{head} {{ {made} q = Cast <to = 1> (p) h = MatMul (z, w) y = Relu (h) }}"
    )
    proto.functions.append(
        parser.parse_function(
            '<domain: "own", opset_import: ["" : 17]> f (x) => (p) '
            "{ s = Constant <value_ints = [3000000000]> () t = ConstantOfShape (s) p = Add (t, t) }"
        )
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    program = (
        "import resource, sys; from exprune_cli.cli import main; code = main(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "report", "m.onnx", "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 2500, done.stderr
    assert json.loads(done.stdout)["sites"][0]["flops_dense"] == 32


def test_names_cannot_drive_a_terminal_or_a_page(tmp_path: Path) -> None:
    name = "\x1b[31mred\x1b]0;title\x07<script>alert(1)</script>[bold]\u202e\r\n"
    proto = mlp()
    proto.graph.node[0].name = name
    proto.graph.node[0].input[1] = proto.graph.initializer[0].name = name + "w"
    report = exprune_cli.report(proto)
    table = to_table(report)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", table)
    assert "<script>alert" not in to_html(report)
    assert "\x1b" not in to_json(report)
    onnx.save(proto, tmp_path / "m.onnx")
    done = run_limited("optimize", "m.onnx", "o.onnx", "--exclude", "\x1b[31mno", folder=tmp_path)
    assert done.returncode == 2 and "\x1b" not in done.stderr


def test_many_nodes_take_seconds(tmp_path: Path) -> None:
    proto = parser.parse_model(HEAD + "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    del proto.graph.node[:]
    for index in range(100_000):
        before = "x" if not index else f"t{index - 1}"
        proto.graph.node.add(op_type="Relu", input=[before], output=["y" if index == 99_999 else f"t{index}"])
    onnx.save(proto, tmp_path / "m.onnx")
    done = run_limited("report", "m.onnx", folder=tmp_path, seconds=60)
    assert done.returncode == 0, done.stderr


def test_many_sites_take_seconds(tmp_path: Path) -> None:
    """What a site costs does not grow with the number of nodes around it."""
    proto = parser.parse_model(HEAD + "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    del proto.graph.node[:]
    rng = np.random.default_rng(0)
    sites, x = 8000, "x"
    for index in range(sites):
        name = f"w{index}"
        values = rng.standard_normal((4, 4)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
        proto.graph.node.add(op_type="MatMul", input=[x, name], output=[f"h{index}"])
        x = "y" if index == sites - 1 else f"r{index}"
        proto.graph.node.add(op_type="Relu", input=[f"h{index}"], output=[x])
    onnx.save(proto, tmp_path / "m.onnx")
    command = ("optimize", "m.onnx", "o.onnx", "--objective", "flops", "--format", "json")
    done = run_limited(*command, folder=tmp_path, seconds=30)
    assert done.returncode == 0, done.stderr
    assert sum(site["staged"] for site in json.loads(done.stdout)["sites"]) == sites


def test_functions_of_another_operator_set_version(caplog: pytest.LogCaptureFixture) -> None:
    proto = mlp()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(
        helper.make_function("own", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 14)])
    )
    proto.opset_import.add(domain="own", version=1)
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.domain, relu.op_type = "own", "Act"
    assert exprune_cli.report(proto).sites
    assert "not in the FLOPs" in caplog.text


def test_limits_leave_valid_models_alone() -> None:
    proto = _chain(structure.MAX_CALL_DEPTH, 1)
    structure.check_structure(proto, "here")
    structure.check_structure(_typed(structure.MAX_TYPE_DEPTH), "here")
    assert structure.MAX_NODES > 100_000
