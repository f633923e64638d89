"""Low-rank plans: the best basis, numbers that mean what the op computes, and more saved than by a prefix."""

from __future__ import annotations

import numpy as np
import pytest

from exprune_cli.flops import spent_flops
from exprune_cli.planning import low_rank
from exprune_cli.planning.argmax import plan_argmax
from exprune_cli.planning.relu import plan_relu
from exprune_cli.record import SiteRecord
from exprune_cli.sites import Site, SiteStatistics

OUTPUTS, GROUPS, COUNT = 48, 64, 600
BUDGETS = (0.001, 0.01, 0.05)


def _case(kind: str) -> tuple[Site, SiteStatistics]:
    """A layer whose outputs lie near a plane of few dimensions."""
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((OUTPUTS, GROUPS)) / 8).astype(np.float32)
    rows = rng.standard_normal((COUNT, 4)) @ rng.standard_normal((4, GROUPS))
    rows = (rows + 0.3 * rng.standard_normal((COUNT, GROUPS)) + 0.5).astype(np.float32)
    bias = rng.standard_normal(OUTPUTS).astype(np.float32) - 0.5
    site = Site("s", "Gemm", "r", kind, "x", "y", OUTPUTS, GROUPS, bias, lambda: weight[:, :, None])
    squares = np.square(rows, dtype=np.float64).sum(axis=0)
    zeros, keys = np.zeros(GROUPS, np.int64), np.arange(COUNT, dtype=np.uint64)
    return site, SiteStatistics(rows[:, :, None], keys, None, squares, zeros, COUNT, COUNT)


def test_the_basis_is_the_best_of_its_rank() -> None:
    site, statistics = _case("relu")
    weight, rows = site.load_weight()[:, :, 0], statistics.rows[:, :, 0]
    found = low_rank.basis(weight, rows, 6)
    final = rows @ weight.T
    left = final - (rows @ found.down.T) @ found.up.T
    values = np.linalg.svd(final - final.mean(axis=0), compute_uv=False)
    assert np.square(left - left.mean(axis=0)).sum() == pytest.approx(np.square(values[6:]).sum(), rel=1e-3)


def test_relu_numbers_decide_what_was_planned() -> None:
    site, statistics = _case("relu")
    weight, rows = site.load_weight()[:, :, 0], statistics.rows[:, :, 0]
    energy = np.square(np.maximum(rows @ weight.T + site.bias, 0))
    prefix = plan_relu(site, statistics, "calibrated", BUDGETS)
    plans = low_rank.better(site, statistics, prefix, BUDGETS)
    for plan, budget in zip(plans, BUDGETS, strict=True):
        assert plan.estimate == "low-rank" and plan.pruned is not None and plan.saved is not None
        p = plan.parameters
        pruned = (rows @ p["V"].T) @ p["U"].T + site.bias < p["limit"]
        assert pruned.mean() == pytest.approx(plan.pruned[0], abs=5e-3)
        assert energy[pruned].sum() / energy.sum() <= 1.05 * budget
        rank = len(p["V"])
        record = SiteRecord(
            "s", "Gemm", "r", "relu", True, "", None, "low-rank", "calibrated", OUTPUTS, GROUPS, 1
        )
        record.parameters["rank"] = rank
        spent = spent_flops(record, COUNT, [float((~pruned).sum())])
        assert 1 - spent / (2 * COUNT * OUTPUTS * GROUPS) == pytest.approx(plan.saved, abs=5e-3)


@pytest.mark.parametrize("estimate", ["low-rank", "prefix"])
def test_large_budgets_prune_what_is_small(estimate: str) -> None:
    """Not only outputs that are expected to be negative: all that the estimate is sure of would be those."""
    site, statistics = _case("relu")
    weight, rows = site.load_weight()[:, :, 0], statistics.rows[:, :, 0]
    plans = plan_relu(site, statistics, "calibrated", (0.1, 0.2, 0.4))
    if estimate == "low-rank":
        plans = low_rank.better(site, statistics, plans, (0.1, 0.2, 0.4))
    lost = [plan.lost_energy for plan in plans]
    assert [plan.estimate for plan in plans] == [estimate] * 3
    assert all(0.7 * budget < loss <= budget for loss, budget in zip(lost, (0.1, 0.2, 0.4), strict=True))
    negative = float((rows @ weight.T + site.bias < 0).mean())
    assert plans[-1].pruned is not None and plans[-1].pruned[-1] > negative + 0.1


def test_a_head_keeps_its_winners() -> None:
    site, statistics = _case("argmax")
    weight, rows = site.load_weight()[:, :, 0], statistics.rows[:, :, 0]
    winner = (rows @ weight.T + site.bias).argmax(axis=1)
    prefix = plan_argmax(site, statistics, "calibrated", BUDGETS)
    for plan, budget in zip(low_rank.better(site, statistics, prefix, BUDGETS), BUDGETS, strict=True):
        assert plan.estimate == "low-rank"
        p = plan.parameters
        score = (rows @ p["V"].T) @ p["U"].T + p["shift"]
        lead = (score - p["margin"]).max(axis=1, keepdims=True)
        alive = ~(score + p["margin"] < lead)
        assert (~alive[np.arange(COUNT), winner]).mean() <= budget + 1e-9


def test_a_prefix_that_saves_more_stays() -> None:
    site, statistics = _case("relu")
    rng = np.random.default_rng(0)
    # Inputs without structure, one of them much larger: there is no plane to find.
    rows = rng.standard_normal((COUNT, GROUPS)).astype(np.float32)
    rows[:, :4] *= 30
    statistics.rows[:, :, 0] = rows
    statistics.energy[:] = np.square(rows).sum(axis=0)
    prefix = plan_relu(site, statistics, "calibrated", BUDGETS)
    plans = low_rank.better(site, statistics, prefix, BUDGETS)
    assert all((a.saved or 0) >= (b.saved or 0) for a, b in zip(plans, prefix, strict=True))
    assert any(plan.estimate == "prefix" for plan in plans)
