"""An open number of rows: an If takes the dense layer above the rows at which staging stops to win."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import exprune_cli
from exprune_cli.counting import FlopsCounter
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.low_rank import basis
from exprune_cli.planning.planner import plan_sparse
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.record import Record, write_record
from exprune_cli.rewrite import rewrite
from exprune_cli.runtime import runtime_available
from exprune_cli.sites import Site, SitePlan
from exprune_cli.staged_nodes import staged_view
from exprune_cli.verify import verify
from tests.models import build

ROWS = 4
SHAPES = {"w1": (64, 32), "b1": (64,), "w2": (64, 16), "b2": (16,), "w3": (16, 300)}
FFN = """g (float[{lead}, 32] x) => ({kind}[{lead}{k}] y) {{
  a = {first}
  s = Add (a, b1)
  r = Relu (s)
  m = MatMul (r, w2)
  n = Add (m, b2)
  l = MatMul (n, w3)
  {end}
}}"""


def low_rank_plan(site: Site) -> SitePlan:
    """Rank 2 with limits that decide nothing: the result is the dense layer's."""
    weight = site.load_weight()[:, :, 0]
    found = basis(weight, np.random.default_rng(0).standard_normal((50, site.groups)), 2)
    parameters = {"V": found.down.astype(np.float32), "U": found.up.astype(np.float32)}
    if site.kind == "relu":
        parameters["limit"] = np.full(site.outputs, -np.inf, np.float32)
    else:
        parameters |= {"shift": site.bias, "margin": np.full(site.outputs, 1e9, np.float32)}
    return SitePlan(site.name, True, "", "low-rank", "calibrated", parameters=parameters)


def model(lead: str, end: str) -> onnx.ModelProto:
    first = "MatMul (x, w1)"
    weights = {**SHAPES, "w1": (32, 64)}
    ends = {
        "argmax": ("int64", "", "y = ArgMax <axis: int = -1, keepdims: int = 0> (l)"),
        "top_k": ("int64", ", 5", "v, y = TopK <axis: int = -1> (l, k)"),
    }
    kind, extra, text = ends[end]
    if end == "top_k":
        weights["k"] = np.array([5], np.int64)
    return build(FFN.format(lead=lead, first=first, kind=kind, k=extra, end=text), weights)


def staged(
    proto: onnx.ModelProto,
    estimate: str,
    most_rows: int | None = ROWS,
    others: Mapping[str, int | None] | None = None,
):
    """All sites staged, for at most so many rows; ``others`` by the site's output."""
    loaded = load(proto)
    sites = match(loaded).sites
    plans = {}
    for site in sites:
        if site.kind == "sparse":
            plan = plan_sparse(site, None)
        else:
            plan = (
                low_rank_plan(site)
                if estimate == "low-rank" and site.kind != "top_k"
                else plan_quantized(site)
            )
        assert plan is not None
        plans[site.name] = dataclasses.replace(plan, most_rows=(others or {}).get(site.output, most_rows))
    out, records = rewrite(loaded, sites, plans)
    write_record(out, Record("test", loaded.sha256, "latency", "bound", records))
    verify(loaded, out)
    return out, records


def session(proto: onnx.ModelProto, native: bool) -> ort.InferenceSession:
    return exprune_cli.session(proto.SerializeToString(), use_runtime=native)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("estimate", ["quantized", "low-rank"])
@pytest.mark.parametrize("end", ["argmax", "top_k"])
@pytest.mark.parametrize("lead", ["N", "N, T"])
def test_both_branches_are_the_dense_layer(lead, end, estimate, native):
    if native and not runtime_available():
        pytest.skip("the native runtime is not built")
    proto = model(lead, end)
    out, records = staged(proto, estimate)
    assert [node.op_type for node in out.graph.node].count("If") == 1
    assert len([n for n in staged_view(out.graph.node) if n.domain == "com.exprune"]) == 3
    dense, both = session(proto, False), session(out, native)
    survivors = [record.survivors for record in records]
    counted = onnx.ModelProto()
    counted.CopyFrom(out)
    for name in survivors:
        counted.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    counting = session(counted, native)
    rng = np.random.default_rng(0)
    for rows in (1, ROWS, ROWS + 1, 40, 0):
        x = rng.standard_normal((rows, 32) if lead == "N" else (rows, 1, 32)).astype(np.float32)
        np.testing.assert_array_equal(both.run(None, {"x": x})[0], dense.run(None, {"x": x})[0])
        for count in counting.run(survivors, {"x": x}):
            assert (count.tolist() == [-1]) == (rows > ROWS)


def test_flops_of_the_dense_branch_are_dense():
    proto = model("N", "argmax")
    out, _ = staged(proto, "quantized")
    counter = FlopsCounter(out, use_runtime=runtime_available())
    for rows in (2, 9):
        x = {"x": np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)}
        alive = [np.array([-1 if rows > ROWS else 7]) for _ in counter.survivor_names]
        counter.add(x, alive, rows, "test")
    dense = 2 * (32 * 64 + 64 * 16 + 16 * 300)
    assert counter.sums.flops_dense == 11 * dense
    quantized = 2 * (2 * (32 * 64 + 16 * 300) + 3 * (64 + 300)) + 2 * 7 * (32 + 16)
    sparse = 2 * 7 * 16 + 2 * 64
    assert counter.sums.flops == 9 * dense + quantized + sparse
    assert counter.sums.int8_macs == 2 * (32 * 64 + 16 * 300)
    assert (
        counter.sums.survivors["a" if "a" in counter.sums.survivors else next(iter(counter.sums.survivors))]
        > 0
    )


def test_weights_are_there_once():
    out, _ = staged(model("N", "argmax"), "quantized")
    sizes = {tensor.name: np.prod(tensor.dims) for tensor in out.graph.initializer if tensor.data_type == 1}
    assert sum(size in (32 * 64, 64 * 16, 16 * 300) for size in sizes.values()) == 3
