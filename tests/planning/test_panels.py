"""Plans in panels keep their budget and collect channels, and the kernel does on whole models what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from exprune_cli.block_plans import exact_plans, with_blocks
from exprune_cli.match import match
from exprune_cli.observe import observe
from exprune_cli.planning import blocks, panels
from exprune_cli.planning.relu import dense
from exprune_cli.static import static_shapes
from exprune_cli.timing import SiteTiming
from exprune_cli.together import keep_together

from .chunked import (
    check_exact_on_the_model,
    check_plans_on_the_model,
    conv_site,
    smooth_case,
    smooth_statistics,
)

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
    site = dataclasses.replace(conv_site(outputs=32), bias=np.linspace(-2.5, -1.5, 32).astype(np.float32))
    ends = blocks.candidate_ends(site.groups)
    statistics = smooth_statistics(site, ends, seed=seed)
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
    assert panels.can_be_panels(conv_site(outputs=32)) and not panels.can_be_panels(conv_site(outputs=24))
    assert [plan.panel for plan in exact_plans(conv_site(outputs=32))] == [False, True]
    assert [plan.panel for plan in exact_plans(conv_site(outputs=24))] == [False]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return smooth_case(tmp_path_factory.mktemp("images"), size=12, outputs=32, stride=2)


def test_plans_do_on_the_model_what_they_say(case):
    model, data, _ = case
    sites = match(model).sites
    steps = [{site.name: dense(site, "") for site in sites} for _ in BUDGETS]
    steps = with_blocks(model, sites, steps, BUDGETS, observe(model, sites, data), data, 0)
    plans = {name: plan.alternatives[0] for name, plan in steps[-1].items()}
    assert all(plan.panel for plan in plans.values()) and any(plan.block for plan in plans.values())
    check_plans_on_the_model(case, plans)


def test_exact_costs_what_dense_costs(case):
    sites = match(case[0]).sites
    plans = {site.name: panels.exact_panel_plan(site) for site in sites}
    proto = check_exact_on_the_model(case, plans, "ConvReluPanel")
    assert list(static_shapes(proto, batch=2)(sites[-1].output)) == [2, 32, 6, 6]


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
