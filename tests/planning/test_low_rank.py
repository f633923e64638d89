"""Low-rank plans: the best basis, numbers that mean what the op computes, and more saved than by a prefix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from exprune_cli.flops import spent_flops
from exprune_cli.planning import low_rank
from exprune_cli.planning.argmax import plan_argmax
from exprune_cli.planning.relu import plan_relu
from exprune_cli.record import SiteRecord
from exprune_cli.sites import Site, SitePlan, SiteStatistics

OUTPUTS, GROUPS, COUNT = 48, 64, 600
BUDGETS = (0.001, 0.01, 0.05)


def _case(kind: str, falling: bool = False) -> tuple[Site, SiteStatistics]:
    """A layer whose outputs lie near a plane of few dimensions, or whose directions matter less and less."""
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((OUTPUTS, GROUPS)) / 8).astype(np.float32)
    sizes = 3 * 0.8 ** np.arange(32) if falling else np.ones(4)
    rows = (sizes * rng.standard_normal((COUNT, len(sizes)))) @ rng.standard_normal((len(sizes), GROUPS))
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


@pytest.mark.parametrize(("falling", "checks"), [(False, 1), (True, 2)])
def test_relu_numbers_decide_what_was_planned(falling: bool, checks: int) -> None:
    site, statistics = _case("relu", falling)
    weight, rows = site.load_weight()[:, :, 0], statistics.rows[:, :, 0]
    energy = np.square(np.maximum(rows @ weight.T + site.bias, 0))
    prefix = plan_relu(site, statistics, "calibrated", BUDGETS)
    plans = low_rank.better(site, statistics, prefix, BUDGETS)
    assert max(len(plan.pruned or ()) for plan in plans) == checks
    for plan, budget in zip(plans, BUDGETS, strict=True):
        assert plan.estimate == "low-rank" and plan.pruned is not None
        p = plan.parameters
        open_, left = np.ones((COUNT, OUTPUTS), bool), []
        for estimate, more in _estimates(rows, p):
            open_ &= ~(estimate + site.bias < p["limit" + more])
            left.append(float(open_.sum()))
        assert [1 - count / open_.size for count in left] == pytest.approx(plan.pruned, abs=5e-3)
        assert energy[~open_].sum() / energy.sum() <= 1.05 * budget
        assert _saved(plan, left) == pytest.approx(plan.saved, abs=5e-3)


def _estimates(rows: np.ndarray, parameters: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, str]]:
    """The estimates of the plan's one or two ranks, without shifts, and the suffix of their arrays' names."""
    reduced, up = rows @ parameters["V"].T, parameters["U"]
    yield reduced[:, : up.shape[1]] @ up.T, ""
    if "U_more" in parameters:
        up = np.concatenate([up, parameters["U_more"]], axis=1)
        yield reduced @ up.T, "_more"


def _saved(plan: SitePlan, left: list[float]) -> float:
    """Share of the FLOPs that is saved by the accounting of what has run."""
    record = SiteRecord(
        "s", "Gemm", "r", "relu", True, "", None, "low-rank", "calibrated", OUTPUTS, GROUPS, 1
    )
    record.parameters |= {"rank": len(plan.parameters["V"]), "first_rank": plan.parameters["U"].shape[1]}
    return 1 - spent_flops(record, COUNT, left) / (2 * COUNT * OUTPUTS * GROUPS)


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
    plans = low_rank.better(site, statistics, prefix, BUDGETS)
    assert 2 in {len(plan.pruned or ()) for plan in plans}
    for plan, budget in zip(plans, BUDGETS, strict=True):
        assert plan.estimate == "low-rank"
        p, shift = plan.parameters, 0.0
        alive, left = np.ones((COUNT, OUTPUTS), bool), []
        for estimate, more in _estimates(rows, p):
            shift = shift + p["shift" + more]
            score, margin = estimate + shift, p["margin" + more]
            lead = np.where(alive, score - margin, -np.inf).max(axis=1, keepdims=True)
            alive &= ~(score + margin < lead)
            count = alive.sum(axis=1)
            left.append(float(np.where(count > 1, count, 0).sum()))
        assert (~alive[np.arange(COUNT), winner]).mean() <= budget + 1e-9
        assert _saved(plan, left) == pytest.approx(plan.saved, abs=0.02)  # on 256 rows expected


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
