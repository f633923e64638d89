"""Doubtful small layers: which are tried in the whole model, and what comes out of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.planning.planner import plan as plan_sites
from exprune_cli.planning.quantized import plan_quantized
from exprune_cli.planning.relu import dense
from exprune_cli.random_feeds import random_feeds
from exprune_cli.rewrite import rewrite
from exprune_cli.runtime import runtime_available
from exprune_cli.sessions import open_session
from exprune_cli.timing import SiteTiming
from exprune_cli.whole_model import MOST_TRIED, NEAR, Setting, doubtful, keep_even, keep_in_whole

from ..models import build, mlp

pytestmark = pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")


@pytest.fixture(scope="module")
def case():
    model = load(mlp())
    sites = match(model).sites
    forms = {site.name: [plan_quantized(site, None)] for site in sites if site.kind == "relu"}
    assert forms and all(plans[0] is not None for plans in forms.values())
    plans = {site.name: dense(site, "slower here") for site in sites}
    return model, sites, forms, plans


def times(sites, speedup):
    return {site.name: SiteTiming(10.0, 10.0 / speedup, speedup) for site in sites}


def test_near_forms_are_tried_without_their_guard(case):
    _, sites, forms, plans = case
    guarded = {
        **plans,
        **{name: dataclasses.replace(options[0], most_rows=2) for name, options in forms.items()},
    }
    for before in (plans, guarded):
        found = doubtful(sites, before, forms, times(sites, 0.95))
        assert set(found) == set(forms)
        assert all(plan.staged and plan.most_rows is None for plan in found.values())
        assert all(plan.reason.endswith("chosen in the whole model") for plan in found.values())


def test_what_is_settled_is_not_tried(case):
    _, sites, forms, plans = case
    staged = {**plans, **{name: options[0] for name, options in forms.items()}}
    assert doubtful(sites, staged, forms, times(sites, 0.95)) == {}
    assert doubtful(sites, plans, forms, times(sites, NEAR - 0.01)) == {}
    assert doubtful(sites, plans, forms, {}) == {}
    lossy = {
        name: [dataclasses.replace(p, test="calibrated") for p in options] for name, options in forms.items()
    }
    assert doubtful(sites, plans, lossy, times(sites, 0.95)) == {}


def test_the_fastest_alone_come_first_and_no_more_than_so_many(case):
    _, sites, forms, _ = case
    site = next(site for site in sites if site.name in forms)
    many = [dataclasses.replace(site, name=f"site {i}") for i in range(MOST_TRIED + 5)]
    speeds = np.random.default_rng(0).permutation(len(many)) / len(many) * 0.3 + 0.7
    timings = {each.name: SiteTiming(1, 1, float(speed)) for each, speed in zip(many, speeds, strict=True)}
    options = {each.name: forms[site.name] for each in many}
    found = doubtful(many, {each.name: dense(each, "") for each in many}, options, timings)
    chosen = [timings[name].speedup for name in found]
    assert chosen == sorted(speeds, reverse=True)[:MOST_TRIED]


def test_the_model_computes_the_same_whatever_is_kept(case):
    model, sites, forms, plans = case
    feeds = random_feeds(model, 1, 0, 4)
    setting = Setting(model, model, feeds, 0)
    kept = keep_in_whole(setting, sites, plans, forms, times(sites, 0.95))
    assert set(kept) == set(plans)
    for name, plan in kept.items():
        assert plan is plans[name] or (plan.staged and plan.most_rows is None)
    changed = rewrite(model, sites, kept)[0]
    for feed in feeds:
        wanted, got = (open_session(proto).run(None, feed) for proto in (model.proto, changed))
        for a, b in zip(wanted, got, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Nothing is doubtful: nothing is timed.
    assert keep_in_whole(setting, sites, plans, forms, {}) == plans


def test_what_is_slower_with_more_rows_is_taken_back(case):
    """The paper's z-test costs more than the whole layer: no machine is faster with it."""
    model, sites, _, plans = case
    setting = Setting(model, model, random_feeds(model, 1, 0, 4), 0)
    slow = plan_sites(sites, None, "stats")[0]
    assert any(plan.staged for plan in slow.values())
    even = {name: dataclasses.replace(plan, fallback=plans[name]) for name, plan in slow.items()}
    assert keep_even(setting, sites, even) == plans
    assert keep_even(setting, sites, slow) == slow  # nothing is in doubt: nothing is timed


def test_batches_that_the_model_does_not_run_on_are_not_held():
    """It adds three rows: one row fits, and two do not."""
    text = "g (float[N, 8] x) => (float[N, 16] y) { s = Add (x, c) a = MatMul (s, w) y = Relu (a) }"
    model = load(build(text, {"c": (3, 8), "w": (8, 16)}))
    sites = match(model).sites
    setting = Setting(model, model, [], 0)
    form = dataclasses.replace(plan_quantized(sites[0], None), fallback=dense(sites[0], "slower"))
    kept = keep_even(setting, sites, {sites[0].name: form})
    assert kept[sites[0].name] is form.fallback
