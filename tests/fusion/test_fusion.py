"""Fused models compute what the originals do, and what cannot be fused is left as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import exprune_cli
from exprune_cli.errors import UsageError
from exprune_cli.flops import total_flops
from exprune_cli.fusion import fuse
from exprune_cli.fusion.constant_shapes import target_of
from exprune_cli.fusion.order import sort_nodes
from exprune_cli.match import match, still_excluded
from exprune_cli.model import Model, load
from exprune_cli.record import read_record
from exprune_cli.runtime import runtime_available
from exprune_cli.sessions import open_session
from exprune_cli.static import static_shapes

from .decoder import LAYERS, POSITIONS, decoder, feeds

STEP = Path(__file__).resolve().parents[2] / "sample_models" / "relu_lm" / "relu_lm_step.onnx"
#: Rounding of a few layers.
CLOSE = 2e-5


def results(proto, feed, native):
    return open_session(proto, use_runtime=native).run(None, feed)


def same(original, fused, feed):
    wanted = results(original, feed, False)
    for native in (True, False) if runtime_available() else (False,):
        got = results(fused, feed, native)
        for a, b in zip(wanted, got, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            if a.dtype.kind == "f":
                np.testing.assert_allclose(b, a, rtol=0, atol=CLOSE * max(1, np.abs(a).max(initial=0)))
            else:
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stacked": False},
        {"scaled": "divided"},
        {"scaled": "sides"},
        {"bias": False},
        {"computed_shapes": False},
        {"opset": 21},
    ],
    ids=str,
)
def test_decode_steps_are_fused(options):
    proto = decoder(**options)
    fused = fuse(load(proto))
    stacked = options.get("stacked", True)
    wanted = {"StackedCachedAttention" if stacked else "CachedAttention": LAYERS, "ResidualNorm": 2 * LAYERS}
    assert fused.counts == wanted
    kinds = Counter(node.op_type for node in fused.model.proto.graph.node)
    assert not kinds & Counter({"Softmax": 1, "Transpose": 1, "Shape": 1, "Reshape": 1})
    assert kinds["LayerNormalization"] == 1  # before it is no sum
    for seed, (batch, past) in enumerate([(1, 0), (1, 1), (2, 7), (5, 30)]):
        same(proto, fused.model.proto, feeds(proto, seed, batch, past))


@pytest.mark.parametrize(
    "options", [{"mask": True}, {"extra_reader": True}, {"cross": True}, {"length": 2}], ids=str
)
def test_other_attention_is_left(options):
    proto = decoder(**options)
    fused = fuse(load(proto))
    assert fused.counts == {"ResidualNorm": 2 * LAYERS}
    same(proto, fused.model.proto, feeds(proto, 3, length=options.get("length", 1)))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("positions", ["gathered", "gathered vector", "from Shape", "swapped"])
def test_embeddings_are_fused(positions, stacked):
    proto = decoder(positions=positions, stacked=stacked)
    fused = fuse(load(proto))
    attention = "StackedCachedAttention" if stacked else "CachedAttention"
    assert fused.counts == {attention: LAYERS, "ResidualNorm": 2 * LAYERS, "TokenEmbedding": 1}
    kinds = Counter(node.op_type for node in fused.model.proto.graph.node)
    assert not kinds & Counter({"Shape": 1, "Unsqueeze": 1, "Slice": 1})
    for batch, past in [(1, 0), (1, 1), (3, POSITIONS - 1)]:
        same(proto, fused.model.proto, feeds(proto, 5, batch, past))


@pytest.mark.parametrize("positions", ["seen", "second"])
def test_other_embeddings_are_left(positions):
    proto = decoder(positions=positions)
    fused = fuse(load(proto))
    assert "TokenEmbedding" not in fused.counts
    same(proto, fused.model.proto, feeds(proto, 6))


def test_an_open_number_of_positions_is_left():
    """Products of many positions are for ONNX Runtime."""
    proto = decoder(length="length")
    fused = fuse(load(proto))
    assert fused.counts == {"ResidualNorm": 2 * LAYERS}
    same(proto, fused.model.proto, feeds(proto, 4, length=9))


@pytest.mark.parametrize("options", [{"opset": 16}, {}], ids=["opset 16", "no norm"])
def test_others_go_through_unharmed(options):
    proto = decoder(**{"opset": 17, **options})
    if not options:
        proto.opset_import.add(domain="other", version=1)
        for node in proto.graph.node:
            if node.op_type == "LayerNormalization":
                node.domain = "other"
    model = Model(proto, None, "")
    fused = fuse(model)
    assert fused.model is model and fused.counts == {}


def test_sample_model():
    model = load(STEP)
    fused = fuse(model)
    assert fused.counts == {"StackedCachedAttention": 3, "ResidualNorm": 6, "TokenEmbedding": 1}
    assert len(fused.model.proto.graph.node) < 0.2 * len(model.proto.graph.node)
    rng = np.random.default_rng(0)
    for batch, past in ((1, 0), (1, 5), (3, 17)):
        feed = {"token": rng.integers(6000, size=(batch, 1))}
        for name in ("past_keys", "past_values"):
            feed[name] = rng.standard_normal((3, batch, 5, past, 32)).astype(np.float32)
        same(model.proto, fused.model.proto, feed)


def test_sites_keep_their_names_and_flops():
    model = load(decoder())
    fused = fuse(model).model
    before, after = match(model), match(fused)
    assert [site.name for site in before.sites] == [site.name for site in after.sites]
    assert len(before.sites) == 2 * LAYERS + 1
    flops = []
    for each in (model, fused):
        fixed = {"batch": 2, "past": 4, "total": 5}
        proto = onnx.ModelProto()
        proto.CopyFrom(each.proto)
        for value in (*proto.graph.input, *proto.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_value = fixed[dim.dim_param]
        del proto.graph.value_info[:]
        flops.append(total_flops(proto.graph.node, static_shapes(proto)))
    assert flops[0] == flops[1] and flops[0]


def test_exclusions_outlive_fusing():
    model = load(decoder())
    first = match(model, ["up0*", "key*"])
    fused = fuse(model).model
    patterns = still_excluded(first, fused)
    assert patterns == ["up0/product/MatMul"]
    assert {r.name for r in match(fused, patterns).refusals if r.code == "excluded"} == set(patterns)
    with pytest.raises(UsageError):  # what was packed has no name any more
        match(fused, ["key*"])


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (("b", "s", 24), ("b", "s", 3, 8), [0, 0, 3, 8]),
        (("b", "s", 24), ("b", "s", 3, "u"), [0, 0, 3, 8]),
        (("b", "s", 3, 8), ("b", "s", "u"), [0, 0, 24]),
        (("b", 1, 24), ("b", "u", 3, 8), [0, 1, 3, 8]),
        (("b", "s", 24), ("u", 24), None),
        (("b", "s", 25), ("b", "s", 3, "u"), None),
        ((None, 24), (None, 3, 8), None),
        (("b", 0), ("b", 0, 3), None),
    ],
)
def test_shapes(before, after, wanted):
    assert target_of(before, after) == wanted


def test_nodes_are_put_in_order():
    make = helper.make_node
    nodes = [
        make("Add", ["c", "a"], ["d"]),
        make("Neg", ["a"], ["c"]),
        make("Abs", ["x"], ["a"]),
        make("Exp", ["x"], ["e"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    sort_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Abs", "Neg", "Add", "Exp"]
    before = graph.SerializeToString()
    sort_nodes(graph)
    assert graph.SerializeToString() == before


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
def test_optimize_says_what_it_fused(tmp_path):
    """The sample model's step: where fusing is faster, file and report say so, and results are equal."""
    done = exprune_cli.optimize(
        STEP, tmp_path / "out.onnx", data=STEP.parent / "calibration_step", test="bound"
    )
    record = read_record(onnx.load(tmp_path / "out.onnx"))
    if done.staged and record.fused:  # a busy machine may find otherwise
        assert set(record.fused) == {"StackedCachedAttention", "ResidualNorm", "TokenEmbedding"}
        assert record.fused_speedup > 1
        assert any("fused around the sites" in note for note in done.report.notes)
    exprune_cli.optimize(
        STEP, tmp_path / "kept.onnx", data=STEP.parent / "calibration_step", test="bound", fuse=False
    )
    record = read_record(onnx.load(tmp_path / "kept.onnx"))
    assert record is None or (not record.fused and record.options["fuse"] is False)
