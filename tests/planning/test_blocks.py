"""Plans in blocks keep their budget, and the kernel does on whole models what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli.api import report
from exprune_cli.block_plans import with_blocks
from exprune_cli.match import match
from exprune_cli.observe import observe
from exprune_cli.observe_blocks import BlockObserver
from exprune_cli.planning import blocks, chunks
from exprune_cli.planning.relu import dense
from exprune_cli.record import Record, write_record
from exprune_cli.rewrite import rewrite

from .chunked import (
    check_exact_on_the_model,
    check_plans_on_the_model,
    conv_site,
    smooth_case,
    smooth_statistics,
)

BUDGETS = (0.001, 0.01, 0.1)


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
    site = conv_site()
    ends = blocks.candidate_ends(site.groups)
    statistics = smooth_statistics(site, ends, seed=seed)
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
    site = dataclasses.replace(conv_site(), bias=np.full(6, 100, np.float32))
    ends = blocks.candidate_ends(site.groups)
    (plan,) = blocks.plan_blocks(site, np.arange(site.groups), ends, smooth_statistics(site, ends), [0.01])
    assert plan.staged and plan.block == 0 and plan.ends == (site.groups,)


def test_weights_that_are_not_finite_are_left_alone():
    site = conv_site()
    assert blocks.can_be_blocks(site)
    bad = site.load_weight().copy()
    bad[0, 0, 0] = np.inf
    assert not blocks.can_be_blocks(dataclasses.replace(site, load_weight=lambda: bad))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return smooth_case(tmp_path_factory.mktemp("images"), size=20, outputs=16, stride=1)


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
    _, steps = _plans(case)
    assert any(plan.block for plan in steps[-1].values())
    check_plans_on_the_model(case, steps[-1])


def test_exact_costs_what_dense_costs(case):
    plans = {site.name: blocks.exact_plan(site) for site in match(case[0]).sites}
    check_exact_on_the_model(case, plans, "ConvRelu")


def test_order_is_by_energy(case):
    sites, steps = _plans(case)
    calibration = observe(case[0], sites, case[1])
    for site in sites:
        plan = steps[-1][site.name]
        for form in (plan, *plan.alternatives):
            if not form.block or form.dynamic:
                continue
            order = chunks.energy_order(site.load_weight(), calibration.sites[site.name])
            np.testing.assert_array_equal(form.order, order)


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
