"""Plans in blocks keep their budget, and the kernel does on whole models what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli.api import report
from exprune_cli.block_plans import with_blocks
from exprune_cli.data import open_data
from exprune_cli.flops import dense_site_flops, spent_flops
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.observe_blocks import BlockObserver, BlockStatistics
from exprune_cli.planning import blocks, chunks
from exprune_cli.planning.relu import dense
from exprune_cli.record import Record, write_record
from exprune_cli.rewrite import rewrite
from exprune_cli.sites import ConvGeometry, Site
from tests.models import build

BUDGETS = (0.001, 0.01, 0.1)


def _site(outputs=6, groups=16) -> Site:
    weight = np.random.default_rng(0).standard_normal((outputs, groups, 9)).astype(np.float32)
    return Site(
        name="s",
        op="Conv",
        rule="relu-conv",
        kind="relu",
        input="x",
        output="y",
        outputs=outputs,
        groups=groups,
        bias=np.linspace(-0.5, 0.5, outputs).astype(np.float32),
        load_weight=lambda: weight,
        conv=ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    )


def _statistics(site: Site, ends, positions=100, seed=0) -> BlockStatistics:
    """Smooth maps whose partial sums tell more and more of the final ones."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.standard_normal((20, site.outputs, positions)), axis=2) / 4 - 1
    final = smooth.astype(np.float32)
    partial = [
        (final * e / site.groups + (1 - e / site.groups) * rng.standard_normal(final.shape)).astype(
            np.float32
        )
        for e in ends
    ]
    return BlockStatistics(partial, final, site.bias[None, :, None])


def _decided(site, plan, statistics, ends):
    """The blocks that the op decides, and the energy they lose, from its meaning alone."""
    partial = statistics.partial[ends.index(plan.ends[0])]
    scale, shift, limit = (plan.parameters[name][0] for name in ("scale", "shift", "limit"))
    above = np.maximum(scale[:, None] * partial + statistics.offset + shift[:, None], 0) ** 2
    energy = np.maximum(statistics.final + statistics.offset, 0) ** 2
    starts = np.arange(0, partial.shape[2], plan.block)
    score = np.add.reduceat(above, starts, axis=2)
    pruned = score < limit[None, :, None]
    sizes = np.diff(np.append(starts, partial.shape[2]))
    return (pruned * sizes).sum() / partial.size, (
        np.add.reduceat(energy, starts, axis=2) * pruned
    ).sum() / energy.sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_keeps_its_budget(seed):
    site = _site()
    ends = blocks.candidate_ends(site.groups)
    statistics = _statistics(site, ends, seed=seed)
    plans = blocks.plan_blocks(site, np.arange(site.groups), ends, statistics, BUDGETS)
    saved = []
    for budget, plan in zip(BUDGETS, plans, strict=True):
        if not plan.block:
            saved.append(0.0)
            continue
        share, lost = _decided(site, plan, statistics, list(ends))
        assert lost <= budget * 1.01 + 1e-6
        assert abs(share - plan.pruned[0]) < 0.01 and abs(lost - plan.lost_energy) < 0.01
        saved.append((1 - plan.ends[0] / site.groups) * share)
    assert plans[-1].block and saved[-1] > 0.1


def test_nothing_to_save_is_exact():
    site = dataclasses.replace(_site(), bias=np.full(6, 100, np.float32))
    ends = blocks.candidate_ends(site.groups)
    (plan,) = blocks.plan_blocks(site, np.arange(site.groups), ends, _statistics(site, ends), [0.01])
    assert plan.staged and plan.block == 0 and plan.ends == (site.groups,)


def test_weights_that_are_not_finite_are_left_alone():
    site = _site()
    assert blocks.can_be_blocks(site)
    bad = site.load_weight().copy()
    bad[0, 0, 0] = np.inf
    assert not blocks.can_be_blocks(dataclasses.replace(site, load_weight=lambda: bad))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model of two Convs, one with a residual, and smooth images."""
    model = build(
        """g (float[N, 4, 20, 20] x) => (float[N, 16, 20, 20] y) {
          a = Conv <pads: ints = [1, 1, 1, 1]> (x, w1, b1)
          r = Relu (a)
          b = Conv <pads: ints = [1, 1, 1, 1]> (r, w2, b2)
          c = Add (b, r)
          y = Relu (c)
        }""",
        {"w1": (16, 4, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,)},
    )
    rng = np.random.default_rng(3)
    images = np.cumsum(np.cumsum(rng.standard_normal((60, 4, 20, 20)), axis=2), axis=3).astype(np.float32) / 8
    folder = tmp_path_factory.mktemp("images")
    np.savez(folder / "images.npz", x=images)
    loaded = load(model)
    return loaded, open_data(folder, loaded.proto), images


def _plans(case):
    model, data, _ = case
    sites = match(model).sites
    calibration = observe(model, sites, data)
    steps = [{site.name: dense(site, "") for site in sites} for _ in BUDGETS]
    return sites, with_blocks(model, sites, steps, BUDGETS, calibration, data, 0)


def test_the_observer_sees_the_models_sums(case):
    model, data, _images = case
    site = match(model).sites[1]
    order = np.random.default_rng(0).permutation(16)
    seen = BlockObserver(model, [site], data, 0).observe(site, order, (4, 8))
    value = seen.final + seen.offset
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    want = np.concatenate([b.feeds["x"] for b in data.take(len(value), 0).batches(1)])
    (y,) = session.run(None, {"x": want})
    np.testing.assert_allclose(np.maximum(value, 0).reshape(y.shape), y, atol=1e-4)
    weight = site.load_weight()[:, order[:4]].reshape(16, 4, 3, 3)
    assert seen.partial[0].shape == (len(want), 16, 400) and weight.shape[1] == 4


def test_plans_do_on_the_model_what_they_say(case):
    runtime = pytest.importorskip("exprune_cli.runtime")
    if not runtime.runtime_available():
        pytest.skip("the runtime is not built")
    model, _, images = case
    sites, steps = _plans(case)
    plans = steps[-1]
    assert any(plan.block for plan in plans.values())
    proto, records = rewrite(model, sites, plans)
    onnx.checker.check_model(proto, full_check=True)
    for record in records:
        if record.survivors and plans[record.name].block:
            proto.graph.output.append(
                onnx.helper.make_tensor_value_info(record.survivors, onnx.TensorProto.INT64, None)
            )
    native = runtime.session(proto.SerializeToString())
    plain = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got, want = native.run(None, {"x": images}), plain.run(None, {"x": images})
    assert (np.abs(got[0] - want[0]) > 1e-4).mean() < 0.01
    staged = [record for record in records if plans[record.name].block]
    for record, one, other in zip(staged, got[1:], want[1:], strict=True):
        rows = images.shape[0] * 400
        assert abs(int(one[0]) - int(other[0])) <= 0.01 * rows * record.outputs
        share = 1 - one[0] / (rows * record.outputs)
        assert abs(share - record.pruned[0]) < 0.05
        spent = spent_flops(record, rows, [float(one[0])])
        end, full = record.ends[0], dense_site_flops(record, rows)
        expected = (
            full * (end + (1 - share) * (record.groups - end)) / record.groups + 6 * rows * record.outputs
        )
        assert abs(spent - expected) < 1e-6 * full


def test_exact_costs_what_dense_costs(case):
    model, _, images = case
    sites = match(model).sites
    proto, records = rewrite(model, sites, {site.name: blocks.exact_plan(site) for site in sites})
    assert [node.op_type for node in proto.graph.node] == ["ConvRelu", "ConvRelu"]
    for record in records:
        assert spent_flops(record, 7, [0.0]) == dense_site_flops(record, 7)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    dense_session = ort.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"x": images})[0], dense_session.run(None, {"x": images})[0], atol=1e-4
    )


def test_order_is_by_energy(case):
    sites, steps = _plans(case)
    calibration = observe(case[0], sites, case[1])
    for site in sites:
        plan = steps[-1][site.name]
        if plan.block:
            order = chunks.energy_order(site.load_weight(), calibration.sites[site.name])
            np.testing.assert_array_equal(plan.order, order)


def test_the_report_counts_exact_and_pruned_sites(case, tmp_path):
    """An exact site spends what dense spends, said without data and measured with it."""
    model, _, images = case
    sites, steps = _plans(case)
    exact = sites[0].name
    plans = steps[-1] | {exact: blocks.exact_plan(sites[0])}
    proto, records = rewrite(model, sites, plans)
    write_record(proto, Record("exprune", model.sha256, "latency", "calibrated", records))
    staged, folder = tmp_path / "staged.onnx", tmp_path / "data"
    onnx.save(proto, staged)
    folder.mkdir()
    np.savez(folder / "images.npz", x=images[:8])
    for data in (None, folder):
        found = report(staged, data=data)
        by_name = {site.name: site for site in found.sites}
        assert by_name[exact].flops == by_name[exact].flops_dense and by_name[exact].test is None
        other = by_name[sites[1].name]
        assert 0 < other.pruned < 1 and other.flops < other.flops_dense * 1.05
        assert found.totals.flops_dense == 2 * 400 * 16 * 9 * (4 + 16)
