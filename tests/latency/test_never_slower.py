"""Which forms are kept under ``latency``: decided by timings of real sessions, or by the cost model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from exprune_cli import never_slower
from exprune_cli.choice import Job, faster
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.pipeline import optimize_model
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.planning.relu import dense
from exprune_cli.random_feeds import random_feeds
from exprune_cli.runtime import runtime_available
from exprune_cli.shapes import infer_shapes
from exprune_cli.sites import SitePlan
from exprune_cli.timing import (
    SiteTimer,
    SiteTiming,
    cache_filler,
    cache_sizes,
    processors,
    site_inputs,
    thread_counts,
    with_rows,
)
from tests.models import build, mlp

HEAD = """g (float[{n}, 64] x) => (int64[{n}] y) {{
  a = MatMul (x, w)
  y = ArgMax <axis: int = -1, keepdims: int = 0> (a)
}}"""


def head(n="N", classes=40_000):
    return load(
        build(
            HEAD.format(n=n),
            {"w": np.random.default_rng(0).standard_normal((64, classes)).astype(np.float32)},
        )
    )


class Clock(SiteTimer):
    """Times nothing: a site wins up to so many rows."""

    wins_up_to = 4
    beyond = 0.9

    def __init__(self):
        pass

    def time(self, inputs, seconds):
        rows = inputs[0]["in_0"].size // 64
        return SiteTiming(10.0, 5.0, 2.0 if rows <= self.wins_up_to else self.beyond)


def for_all_rows(model, clock, inputs, meant, won=2.0, up_to=None):
    (site,) = match(model).sites
    shapes = infer_shapes(model.proto)
    return never_slower._for_all_rows(
        site, plan_quantized(site), clock, inputs, meant, won, shapes, 0.1, up_to
    )


@pytest.mark.parametrize(
    ("wins", "rows", "most"), [(4, 1, 4), (4, 4, 4), (5, 3, 4), (63, 1, 32), (64, 1, None), (1000, 100, None)]
)
def test_the_limit_is_where_winning_ends(wins, rows, most):
    clock = Clock()
    clock.wins_up_to = wins
    plan = for_all_rows(head(), clock, [{"in_0": np.ones((rows, 64), np.float32)}] * 100, rows)
    assert plan.staged and plan.most_rows == most


@pytest.mark.parametrize(("won", "most"), [(1.2, 64), (1.3, None)])
def test_without_a_limit_only_what_wins_by_far_at_many_rows(won, most):
    clock = Clock()
    clock.wins_up_to = 1000
    inputs = [{"in_0": np.ones((64, 64), np.float32)}]
    assert for_all_rows(head(), clock, inputs, 64, won).most_rows == most
    assert for_all_rows(head(), clock, inputs, 64, won, up_to=64).most_rows == 64


@pytest.mark.parametrize(
    ("beyond", "rows", "up_to", "most"),
    [
        (1.06, 100, None, None),
        (0.99, 100, None, 4),
        (0.97, 100, None, 4),
        (1.06, 40, None, 4),
        (1.06, 100, 8, 4),
    ],
)
def test_a_kernel_that_computes_everything_needs_no_guard_where_it_is_even(beyond, rows, up_to, most):
    """Up to the most rows that are tried, and on any number of threads; a head always has its guard."""
    clock = Clock()
    clock.beyond = beyond
    inputs = [{"in_0": np.ones((1, 64), np.float32)}] * rows
    model = load(mlp())
    site = next(s for s in match(model).sites if s.kind == "relu")
    shapes = infer_shapes(model.proto)
    decide = lambda plan: never_slower._for_all_rows(site, plan, clock, inputs, 1, 2.0, shapes, 0.1, up_to)
    plan = decide(plan_quantized(site))
    assert plan.most_rows == most
    # In the whole model it may turn out slower after all: then it is for the rows that are meant alone.
    assert plan.fallback is not None and plan.fallback.most_rows == 1
    prefix = dataclasses.replace(plan_quantized(site), estimate="low-rank")
    assert decide(prefix).most_rows == 4
    assert for_all_rows(head(), clock, inputs, 1, up_to=up_to).most_rows == 4


def test_a_site_that_wins_only_at_odd_sizes_stays_dense():
    clock = Clock()
    clock.wins_up_to = 1
    plan = for_all_rows(head(), clock, [{"in_0": np.ones((8, 64), np.float32)}], 8)
    assert not plan.staged and "8 rows" in plan.reason


def test_a_fixed_number_of_rows_needs_no_guard():
    model = head(n="2")
    (site,) = match(model).sites
    assert not never_slower.rows_vary(site, infer_shapes(model.proto))
    plan = for_all_rows(model, Clock(), [], 2)
    assert plan.staged and plan.most_rows is None


def test_rows_are_cut_from_all_inputs():
    inputs = [
        {"in_0": np.full((3, 2), i, np.float32), "in_1": np.full((3, 5), i, np.float32)} for i in range(4)
    ]
    cut = with_rows(inputs, 5, False)
    assert [feed["in_0"].shape for feed in cut] == [(5, 2), (5, 2)]
    assert cut[0]["in_0"][:, 0].tolist() == [0, 0, 0, 1, 1] and cut[1]["in_1"][:, 0].tolist() == [
        1,
        2,
        2,
        2,
        3,
    ]
    assert with_rows(inputs, 30, False)[0]["in_0"].shape == (30, 2)
    deep = with_rows([{"in_0": np.zeros((2, 3, 4), np.float32)}], 2, False)
    assert deep[0]["in_0"].shape == (1, 2, 4)
    turned = with_rows([{"in_0": np.zeros((4, 3), np.float32)}], 2, True)
    assert turned[0]["in_0"].shape == (4, 2)


def test_the_cost_model_takes_large_heads_only():
    large, small = head(), head(classes=500)
    for model, wins in ((large, True), (small, False)):
        (site,) = match(model).sites
        kept = never_slower.keep_expected(
            [site], {site.name: [plan_quantized(site)]}, infer_shapes(model.proto)
        )
        assert kept[site.name].staged == wins
        assert not wins or kept[site.name].most_rows == 1
    (site,) = match(large).sites
    already = dense(site, "no")
    assert never_slower.keep_expected([site], {site.name: [already]}, {})[site.name] is already


@pytest.mark.parametrize(("saved", "wins"), [(0.9, True), (0.2, False)])
def test_the_cost_model_knows_plans_without_chunks(saved, wins):
    model = head()
    (site,) = match(model).sites
    plan = SitePlan(site.name, True, "", "low-rank", "calibrated", pruned=(0.95,), saved=saved)
    kept = never_slower.keep_expected([site], {site.name: [plan]}, infer_shapes(model.proto))
    assert kept[site.name].staged == wins


def test_without_measuring_the_file_is_the_same_everywhere():
    model = head()
    files = [
        optimize_model(model, measure=False).proto.SerializeToString(deterministic=True) for _ in range(2)
    ]
    assert files[0] == files[1]
    assert optimize_model(model, measure=False).staged == 1


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
def test_timings_stand_in_the_record():
    done = optimize_model(load(mlp()))
    timed = [site for site in done.record.sites if site.latency_us is not None]
    assert timed and all(site.latency_dense_us > 0 for site in timed)
    for site in timed:
        assert site.staged or "slower here" in site.reason or "faster" in site.reason


def test_site_inputs_are_what_the_model_computes():
    model = load(mlp())
    sites = match(model).sites
    feeds = random_feeds(model, 2, 0, 3)
    inputs = site_inputs(model, sites, feeds)
    assert [len(inputs[site.name]) for site in sites] == [3] * len(sites)
    second = next(site for site in sites if site.offset)
    assert inputs[second.name][0]["in_1"].shape == (2, 96)
    np.testing.assert_array_equal(inputs[sites[0].name][1]["in_0"], feeds[1]["x"])


def test_weights_are_put_where_the_model_has_them():
    *inner, last = cache_sizes()
    assert sorted({*inner, last}) == [*inner, last] and last > 2**16
    assert cache_filler(1) is None
    beyond = cache_filler(last)
    assert beyond is not None and beyond.nbytes == 2 * last
    if max(inner) < last // 2:
        between = cache_filler(last // 2)
        assert between is not None and abs(between.nbytes - last // 2) < 4


def test_no_row_is_timed_twice():
    """With few inputs the limit is what they are enough for."""
    clock = Clock()
    clock.wins_up_to = 1000
    inputs = [{"in_0": np.ones((1, 64), np.float32)}] * 10
    plan = for_all_rows(head(), clock, inputs, 1)
    assert plan.most_rows == 8


def test_settled_sites_stay_what_they_became():
    """Also where the search falls back to lossless plans, which for these sites nobody has timed."""
    model = head()
    matches = match(model)
    (site,) = matches.sites
    job = Job(model, matches, None, None, None, latency=True)
    job.settled = {site.name: dense(site, "slower here")}
    assert faster(job, {site.name: plan_quantized(site)})[site.name] is job.settled[site.name]


def test_sizes_of_one_name_are_equal_in_random_inputs():
    """The batch of a cache may be its second axis."""
    proto = build(
        "g (float[B, 1] t, float[3, B, P] cache, float[Q, P] other) => (float[B, 1] y) { y = Relu (t) }", {}
    )
    (feed,) = random_feeds(load(proto), 5, 0, 1)
    assert {name: value.shape for name, value in feed.items()} == {
        "t": (5, 1),
        "cache": (3, 5, 16),
        "other": (5, 16),
    }


def test_inputs_that_cannot_be_made_up_are_no_failure(caplog):
    """Nothing is timed where random inputs do not fit together; the model is planned all the same."""
    proto = build("g (float[N, K] x) => (float[N, 8] y) { a = MatMul (x, w) y = Relu (a) }", {"w": (64, 8)})
    done = optimize_model(load(proto))
    assert "nothing was timed: random inputs: the model fails on it" in caplog.text
    assert all(site.latency_us is None for site in done.record.sites)


@pytest.mark.parametrize(("wins_on_all_cores", "most"), [(0, None), (2, 2), (1000, 4)])
def test_a_site_has_to_win_on_one_thread_and_on_all_cores(monkeypatch, wins_on_all_cores, most):
    """The smaller number of rows counts, and what loses on either stays dense."""

    class Both(Clock):
        def __init__(self, *_, threads, **__):
            self.threads = threads
            self.wins_up_to = 4 if threads == 1 else wins_on_all_cores

        def time(self, inputs, seconds):
            return dataclasses.replace(super().time(inputs, seconds), threads=self.threads)

    monkeypatch.setattr(never_slower, "SiteTimer", Both)
    monkeypatch.setattr(never_slower, "thread_counts", lambda: (1, 0))
    model = head()
    (site,) = match(model).sites
    feeds = [{"x": np.ones((1, 64), np.float32)}] * 64
    kept, timings = never_slower.keep_faster(model, [site], {site.name: [plan_quantized(site)]}, feeds)
    assert kept[site.name].staged == (most is not None)
    assert kept[site.name].most_rows == most
    if most is None:
        assert "on all cores" in kept[site.name].reason and timings[site.name].threads == 0


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
def test_timings_on_all_cores():
    """Bursts give pairs of one input, at least as many as on one thread."""
    model = head(classes=5000)
    (site,) = match(model).sites
    rng = np.random.default_rng(0)
    inputs = [{"in_0": rng.standard_normal((1, 64)).astype(np.float32)} for _ in range(5)]
    timing = SiteTimer(model, site, plan_quantized(site), 2, threads=0).time(inputs, 0.0)
    assert timing.threads == 0
    assert 0 < timing.staged_us < 1e6 and 0 < timing.dense_us < 1e6
    assert thread_counts() == ((1,) if processors() == 1 else (1, 0))


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
def test_a_site_behind_an_operator_of_onnx_runtime_alone_is_timed():
    """Nothing tells the shape of what it reads: it is timed on inputs of the rank that they have."""
    rng = np.random.default_rng(0)
    proto = build(
        "g (float[N, 1, 64] x) => (float[N, 1, 256] y) { e = Elu (x) a = MatMul (e, w) y = Relu (a) }",
        {"w": rng.standard_normal((64, 256)).astype(np.float32)},
    )
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Gelu", "com.microsoft"
    proto.graph.node[0].ClearField("attribute")
    proto.opset_import.add(domain="com.microsoft", version=1)
    model = load(proto)
    (site,) = match(model).sites
    assert site.input not in infer_shapes(model.proto)
    feeds = [{"x": rng.standard_normal((2, 1, 64)).astype(np.float32)} for _ in range(3)]
    _, timings = never_slower.keep_faster(model, [site], {site.name: [plan_quantized(site)]}, feeds)
    assert timings[site.name].dense_us > 0
