"""``--top-k``: the one change of a model's interface."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import exprune_cli
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.model import load
from exprune_cli.top_k import as_scores, parse_top_k, with_top_k
from tests.models import build

CLASSES = 20_000


@pytest.fixture
def files(tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, CLASSES)).astype(np.float32)
    proto = build(
        f"g (float[N, 64] x) => (float[N, {CLASSES}] scores, float[N, 64] twice) {{ scores = MatMul (x, w) twice = Add (x, x) }}",
        {"w": weight},
    )
    onnx.save(proto, tmp_path / "in.onnx")
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/a.npz", x=np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32))
    return tmp_path


def test_the_k_best_come_out(files, run):
    done = run(
        "optimize", str(files / "in.onnx"), str(files / "out.onnx"), "--top-k", "scores=5", "--no-measure"
    )
    assert done.code == 0, done.out + done.err
    assert "1 of 1" in done.out
    session = exprune_cli.session(files / "out.onnx")
    assert [value.name for value in session.get_outputs()] == ["twice", "scores_values", "scores_indices"]
    x = np.random.default_rng(2).standard_normal((1, 64)).astype(np.float32)
    _, values, indices = session.run(None, {"x": x})
    scores = exprune_cli.session(files / "in.onnx").run(["scores"], {"x": x})[0]
    np.testing.assert_array_equal(indices, np.argsort(-scores, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(values, np.take_along_axis(scores, indices, 1), rtol=1e-5)


def test_the_report_compares_with_the_original(files, run):
    assert (
        run(
            "optimize", str(files / "in.onnx"), str(files / "out.onnx"), "--top-k", "scores=5", "--no-measure"
        ).code
        == 0
    )
    words = (
        "report",
        *map(str, (files / "out.onnx", "--baseline", files / "in.onnx", "--data", files / "data")),
    )
    found = json.loads(run(*words, "--format", "json").out)
    assert found["fidelity"]["agreement"] == 1 and found["fidelity"]["samples"] == 20
    (site,) = found["sites"]
    assert site["staged"] and site["estimate"] == "quantized" and site["pruned"] > 0.5


def test_the_report_says_what_it_would_bring(files, run):
    assert "--top-k scores=1" in " ".join(run("report", str(files / "in.onnx")).out.split())


def test_a_dense_head_still_returns_the_best(files, run):
    words = ("--top-k", "scores=2", "--exclude", "scores", "--no-measure")
    done = run("optimize", str(files / "in.onnx"), str(files / "out.onnx"), *words)
    assert done.code == 0, done.out + done.err
    nodes = [node.op_type for node in onnx.load(files / "out.onnx").graph.node]
    assert nodes == ["MatMul", "Add", "TopK"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores", "OUTPUT=K"),
        ("scores=0", "at least 1"),
        ("scores=x", "OUTPUT=K"),
        ("=3", "OUTPUT=K"),
        ("none=3", "no such output; it has scores, twice"),
        ("scores=20001", "only 20000 scores"),
    ],
)
def test_wrong_words(files, run, text, message):
    done = run("optimize", str(files / "in.onnx"), str(files / "out.onnx"), "--top-k", text)
    assert done.code == 2 and message in done.err
    assert not (files / "out.onnx").exists()


def test_twice_and_taken_names():
    with pytest.raises(UsageError, match="named twice"):
        parse_top_k(["a=1", "a=2"])
    proto = build(
        "g (float[N, 4] x) => (float[N, 8] y) { y_k = MatMul (x, w) y = Relu (y_k) }", {"w": (4, 8)}
    )
    with pytest.raises(ExpruneError, match="uses the name"):
        with_top_k(load(proto), {"y": 2})
    old = build("g (float[N, 4] x) => (float[N, 8] y) { y = MatMul (x, w) }", {"w": (4, 8)}, opset=10)
    with pytest.raises(ExpruneError, match="opset 11"):
        with_top_k(load(old), {"y": 2})


def test_metrics_see_the_best_index():
    outputs = {"y_values": np.ones((2, 3)), "y_indices": np.array([[5, 1, 2], [7, 0, 1]]), "z": np.zeros(2)}
    assert list(as_scores(outputs, {"y": 3})) == ["y", "y_values", "z"]
    assert as_scores(outputs, {"y": 3})["y"].tolist() == [5, 7]
