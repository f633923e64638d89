"""Plans in panels keep their budget and collect channels, and the kernel does on whole models what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli.block_plans import exact_plans, with_blocks
from exprune_cli.data import open_data
from exprune_cli.flops import dense_site_flops, spent_flops
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.planning import blocks, panels
from exprune_cli.planning.relu import dense
from exprune_cli.rewrite import rewrite
from exprune_cli.static import static_shapes
from exprune_cli.timing import SiteTiming
from exprune_cli.together import keep_together
from tests.models import build

from .test_blocks import _site, _statistics

BUDGETS = (0.001, 0.01, 0.1)


def _families(outputs=48, positions=400, seed=0):
    """Scores ``[I, N, P]`` of three families of channels that are low together, and the family of each."""
    rng = np.random.default_rng(seed)
    family = rng.permutation(np.arange(outputs) % 3)
    low = rng.random((5, 3, positions)) < 0.5
    noise = rng.random((5, outputs, positions)) * 0.05
    return np.where(low[:, family], 0, 1).astype(np.float32) + noise.astype(np.float32), family


@pytest.mark.parametrize("seed", range(3))
def test_channels_that_are_low_together_share_a_panel(seed):
    scores, family = _families(seed=seed)
    order = panels.collect(scores, seed)
    assert sorted(order) == list(range(48))
    for panel in family[order].reshape(3, 16):
        assert len(set(panel)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_keeps_its_budget(seed):
    site = dataclasses.replace(_site(outputs=32), bias=np.linspace(-2.5, -1.5, 32).astype(np.float32))
    ends = blocks.candidate_ends(site.groups)
    statistics = _statistics(site, ends, seed=seed)
    plans = panels.plan_panels(site, np.arange(site.groups), ends, statistics, BUDGETS, seed)
    energy = np.maximum(statistics.final + statistics.offset, 0) ** 2
    for budget, plan in zip(BUDGETS, plans, strict=True):
        if not plan.block:
            continue
        partial = statistics.partial[list(ends).index(plan.ends[0])]
        scale, shift, limit = (plan.parameters[name][0] for name in ("scale", "shift", "limit"))
        above = np.maximum(scale[:, None] * partial + statistics.offset + shift[:, None], 0) ** 2
        shape = (len(partial), 2, 16, -1)
        channels = plan.parameters["channels"]
        pruned = above[:, channels].reshape(shape).sum(axis=2) < limit[None, :, None]
        lost = (energy[:, channels].reshape(shape).sum(axis=2) * pruned).sum() / energy.sum()
        assert lost <= budget * 1.01 + 1e-6 and abs(lost - plan.lost_energy) < 0.001
        assert abs(pruned.mean() - plan.pruned[0]) < 0.01
    assert plans[-1].block and plans[-1].pruned[0] > 0.1


def test_only_whole_panels():
    assert panels.can_be_panels(_site(outputs=32)) and not panels.can_be_panels(_site(outputs=24))
    assert [plan.panel for plan in exact_plans(_site(outputs=32))] == [False, True]
    assert [plan.panel for plan in exact_plans(_site(outputs=24))] == [False]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model of two Convs, one with a residual and a stride, and smooth images."""
    model = build(
        """g (float[N, 4, 12, 12] x) => (float[N, 32, 6, 6] y) {
          a = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (x, w1, b1)
          r = Relu (a)
          b = Conv <pads: ints = [1, 1, 1, 1]> (r, w2, b2)
          c = Add (b, r)
          y = Relu (c)
        }""",
        {"w1": (32, 4, 3, 3), "b1": (32,), "w2": (32, 32, 3, 3), "b2": (32,)},
    )
    rng = np.random.default_rng(3)
    images = np.cumsum(np.cumsum(rng.standard_normal((60, 4, 12, 12)), axis=2), axis=3).astype(np.float32) / 8
    folder = tmp_path_factory.mktemp("images")
    np.savez(folder / "images.npz", x=images)
    loaded = load(model)
    return loaded, open_data(folder, loaded.proto), images


def test_plans_do_on_the_model_what_they_say(case):
    runtime = pytest.importorskip("exprune_cli.runtime")
    if not runtime.runtime_available():
        pytest.skip("the runtime is not built")
    model, data, images = case
    sites = match(model).sites
    steps = [{site.name: dense(site, "") for site in sites} for _ in BUDGETS]
    steps = with_blocks(model, sites, steps, BUDGETS, observe(model, sites, data), data, 0)
    plans = {name: plan.alternatives[0] for name, plan in steps[-1].items()}
    assert all(plan.panel for plan in plans.values()) and any(plan.block for plan in plans.values())
    proto, records = rewrite(model, sites, plans)
    onnx.checker.check_model(proto, full_check=True)
    staged = [record for record in records if plans[record.name].block]
    for record in staged:
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info(record.survivors, onnx.TensorProto.INT64, None)
        )
    native = runtime.session(proto.SerializeToString())
    plain = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got, want = native.run(None, {"x": images}), plain.run(None, {"x": images})
    assert (np.abs(got[0] - want[0]) > 1e-4).mean() < 0.01
    rows = len(images) * 36
    for record, one, other in zip(staged, got[1:], want[1:], strict=True):
        assert abs(int(one[0]) - int(other[0])) <= 0.01 * rows * record.outputs
        share = 1 - one[0] / (rows * record.outputs)
        assert abs(share - record.pruned[0]) < 0.05
        end, full = record.ends[0], dense_site_flops(record, rows)
        spent = full * (end + (1 - share) * (record.groups - end)) / record.groups
        assert spent_flops(record, rows, [float(one[0])]) == pytest.approx(spent + 6 * rows * record.outputs)


def test_exact_costs_what_dense_costs(case):
    model, _, images = case
    sites = match(model).sites
    plans = {site.name: panels.exact_panel_plan(site) for site in sites}
    proto, records = rewrite(model, sites, plans)
    assert [node.op_type for node in proto.graph.node] == ["ConvReluPanel", "ConvReluPanel"]
    for record in records:
        assert spent_flops(record, 7, [0.0]) == dense_site_flops(record, 7)
    shape_of = static_shapes(proto, batch=2)
    assert list(shape_of(sites[-1].output)) == [2, 32, 6, 6]
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    dense_session = ort.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"x": images})[0], dense_session.run(None, {"x": images})[0], atol=1e-4
    )


def test_convs_that_win_little_are_left_where_the_whole_model_loses(case):
    """Only a set that the whole model was timed with is kept, and what is left out says so."""
    model, _, images = case
    sites = match(model).sites
    plans = {site.name: panels.exact_panel_plan(site) for site in sites}
    timings = {site.name: SiteTiming(10.0, 9.5, 1.05) for site in sites}
    kept = keep_together(model, sites, plans, timings, [{"x": images[:1]}])
    for site in sites:
        plan = kept[site.name]
        assert plan is plans[site.name] or (not plan.staged and "faster alone (1.05x)" in plan.reason)
    assert len({plan.staged for plan in kept.values()}) == 1
