"""FLOPs of models that run: survivors and shapes are measured, and agree with plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exprune_cli.counting import FlopsCounter
from exprune_cli.errors import ExpruneError
from exprune_cli.instrument import shapes_need_values, with_outputs
from exprune_cli.model import load
from exprune_cli.record import read_record, write_record
from exprune_cli.reporting import static_counts
from exprune_cli.sessions import open_session
from exprune_cli.static import static_shapes
from tests.models import build, cnn, mlp
from tests.report.staged import Samples, stage, staged_model

RNG = np.random.default_rng(3)


def count(proto: onnx.ModelProto, data: Samples, batch_size: int = 1) -> FlopsCounter:
    """What ``measure`` does for FLOPs."""
    counter = FlopsCounter(proto)
    session = open_session(proto, addition=with_outputs(proto, counter.survivor_names))
    for batch in data.batches(batch_size):
        values = session.run(counter.survivor_names, batch.feeds) if counter.survivor_names else []
        counter.add(batch.feeds, values, batch.count, batch.where)
    return counter


def gemm_relu() -> onnx.ModelProto:
    return build(
        "g (float[N, 16] x) => (float[N, 5] y) { a = Gemm (x, w, b) r = Relu (a) y = Mul (r, two) }",
        {"w": (16, 5), "b": (5,), "two": np.float32(2)},
    )


def test_survivors_and_flops_are_those_of_the_algorithm() -> None:
    source = gemm_relu()
    weights = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    x = RNG.standard_normal((7, 16)).astype(np.float32)
    alive = np.ones((7, 5), bool)
    left = []
    for end in (4, 8):
        alive &= ~(x[:, :end] @ weights["w"][:end] + weights["b"] < 0)
        left.append(int(alive.sum()))
    sums = count(staged_model(source).proto, Samples(x=x)).sums
    assert sums.rows == {"a": 7}
    assert sums.survivors["a"].tolist() == left
    dense = 2 * 7 * 5 * 16
    spent = 2 * 35 * 4 + 35 + 2 * left[0] * 4 + left[0] + 2 * left[1] * 8
    assert sums.flops_dense == dense
    assert sums.site_flops["a"] == sums.flops == spent
    assert sums.samples == 7


@pytest.mark.parametrize("make", [mlp, cnn])
def test_staging_does_not_change_the_dense_count(make: Callable[[], onnx.ModelProto]) -> None:
    source, shape = make(), (3, 64) if make is mlp else (3, 3, 16, 16)
    data = Samples(x=RNG.standard_normal(shape).astype(np.float32))
    plain, staged = count(source, data).sums, count(staged_model(source).proto, data).sums
    assert plain.flops == plain.flops_dense == staged.flops_dense
    assert plain.flops_dense == 3 * (static_counts(source, {}).total or 0) > 0
    assert sum(staged.survivors[name][0] for name in staged.survivors) > 0
    dense_of_sites = _dense_of_sites(staged_model(source).proto, staged.rows)
    assert staged.flops == staged.flops_dense - (dense_of_sites - sum(staged.site_flops.values()))


def _dense_of_sites(proto: onnx.ModelProto, rows: dict[str, int]) -> float:
    record = read_record(proto)
    assert record is not None
    sizes = {site.name: (site.outputs or 0) * (site.groups or 0) * (site.taps or 0) for site in record.sites}
    return sum(2 * count * sizes[name] for name, count in rows.items())


def test_batches_count_as_single_samples() -> None:
    proto = staged_model(cnn()).proto
    data = Samples(x=RNG.standard_normal((6, 3, 16, 16)).astype(np.float32))
    single, batched = count(proto, data).sums, count(proto, data, 4).sums
    assert single.flops == batched.flops
    assert single.rows == batched.rows
    assert {k: v.tolist() for k, v in single.survivors.items()} == {
        k: v.tolist() for k, v in batched.survivors.items()
    }


def test_sizes_that_vary_between_samples() -> None:
    source = build(
        "g (float[B, L, 8] x) => (float[B, L, 6] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }",
        {"w": (8, 12), "v": (12, 6)},
    )
    counter = FlopsCounter(source)
    lengths = [3, 9, 3, 1]
    for length in lengths:
        counter.add({"x": np.zeros((1, length, 8), np.float32)}, [], 1, "")
    assert counter.sums.flops_dense == sum(lengths) * 2 * (8 * 12 + 12 * 6)
    assert static_counts(source, {}).total is None


def test_shapes_that_depend_on_values_are_read_every_time() -> None:
    source = build(
        """g (float[8] x) => (float[M, 3] y) {
          i = NonZero (x)  r = Transpose (i)  f = Cast <to: int = 1> (r)  y = MatMul (f, w)
        }""",
        {"w": (1, 3)},
    )
    assert shapes_need_values(source.graph)
    counter = FlopsCounter(source)
    for zeros in (2, 5, 8):
        counter.add({"x": (np.arange(8) >= zeros).astype(np.float32)}, [], 1, "")
    assert counter.sums.flops_dense == (6 + 3 + 0) * 2 * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g (float[N, 4] x) => (float[N, 4] y) { s = Shape (x) y = Reshape (x, s) }", False),
        ("g (float[N, 4] x, int64[2] s) => (float[A, B] y) { y = Reshape (x, s) }", True),
        ("g (float[N, 4] x, int64[2] s) => (float[A, B] y) { t = Add (s, s) y = Reshape (x, t) }", True),
        ("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", False),
    ],
)
def test_where_shapes_depend_on_values(text: str, expected: bool) -> None:
    assert shapes_need_values(build(text, {}).graph) is expected


def test_own_functions_are_counted() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w = {1,1,1,1,1,1,1,1,1,1,1,1}> { y = own.Linear (x, w) }
    <domain: "own", opset_import: ["" : 17]> Linear (a, b) => (c) { c = MatMul (a, b) }"""
    proto = onnx.parser.parse_model(text)
    counter = FlopsCounter(proto)
    counter.add({"x": np.zeros((5, 4), np.float32)}, [], 5, "")
    assert counter.sums.flops_dense == 2 * 5 * 4 * 3
    assert static_counts(proto, {}).total == 2 * 4 * 3


def test_integer_operators_are_in_a_column_of_their_own() -> None:
    source = build(
        "g (uint8[N, 4] x) => (int32[N, 3] y) { y = MatMulInteger (x, w) }", {"w": np.ones((4, 3), np.uint8)}
    )
    counter = FlopsCounter(source)
    counter.add({"x": np.zeros((2, 4), np.uint8)}, [], 2, "")
    assert (counter.sums.int8_macs, counter.sums.flops_dense) == (24, 48)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_static_shapes_see_through_staged_nodes(make: Callable[[], onnx.ModelProto]) -> None:
    source = make()
    staged = stage(load(source))
    before, after = static_shapes(source, 3), static_shapes(staged, 3)
    for node in staged.graph.node:
        assert after(node.output[0]) == before(node.output[0]) is not None


def test_a_record_without_its_node_is_an_error() -> None:
    proto = stage(load(gemm_relu()))
    record = read_record(proto)
    assert record is not None
    record.sites[0].survivors = "gone"
    write_record(proto, record)
    with pytest.raises(ExpruneError, match="'a' is staged but has no such node"):
        FlopsCounter(proto)


def test_instrumenting_leaves_the_model_alone() -> None:
    proto = stage(load(cnn()))
    before = proto.SerializeToString(deterministic=True)
    count(proto, Samples(x=np.zeros((1, 3, 16, 16), np.float32)))
    static_counts(proto, {})
    assert proto.SerializeToString(deterministic=True) == before


def test_larger_than_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from exprune_cli import model, sessions

    monkeypatch.setattr(sessions, "_MESSAGE_LIMIT", 1000)
    monkeypatch.setattr(model, "_MESSAGE_LIMIT", 1000)
    data = Samples(x=np.zeros((2, 3, 16, 16), np.float32))
    assert count(staged_model(cnn()).proto, data).sums.flops_dense == 2 * (
        static_counts(cnn(), {}).total or 0
    )
