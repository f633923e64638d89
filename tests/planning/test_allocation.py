"""One price: no other choice of the sites' plans saves as much at the same predicted loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from exprune_cli.planning.allocation import LEVELS, Sensitivity, allocate, saved_flops, walk_levels
from exprune_cli.sites import Calibration, Site, SitePlan, SiteStatistics

GROUPS, OUTPUTS, ROWS = 32, 16, 10


def _site(name: str, kind: str = "relu") -> Site:
    bias = np.zeros(OUTPUTS, np.float32)
    return Site(
        name,
        "Gemm",
        "relu-gemm",
        kind,
        "x",
        name + "/y",
        OUTPUTS,
        GROUPS,
        bias,
        lambda: np.ones((OUTPUTS, GROUPS, 1), np.float32),
    )


def _calibration(sites: list[Site]) -> Calibration:
    def statistics(rows: int) -> SiteStatistics:
        empty = np.zeros((0, GROUPS, 1), np.float32)
        ones = np.ones(GROUPS)
        return SiteStatistics(empty, np.zeros(0, np.uint64), None, ones, ones.astype(np.int64), rows, rows)

    found = {site.name: statistics(ROWS * (i + 1)) for i, site in enumerate(sites)}
    return Calibration("", "", 0, 1, np.zeros(1, np.uint64), found)


def _plan(site: Site, pruned: float, lost: float) -> SitePlan:
    return SitePlan(
        site.name, True, "", "prefix", "calibrated", ends=(8, GROUPS), pruned=(pruned,), lost_energy=lost
    )


def _offers(sites: list[Site], seed: int) -> list[dict[str, SitePlan]]:
    """Concave offers: the more a site loses the less the next step saves."""
    rng = np.random.default_rng(seed)
    lost = {site.name: np.cumsum(rng.uniform(1e-4, 1e-2, 6)) for site in sites}
    pruned = {site.name: np.cumsum(np.sort(rng.uniform(0.01, 0.15, 6))[::-1]) for site in sites}
    return [{s.name: _plan(s, pruned[s.name][i], lost[s.name][i]) for s in sites} for i in range(6)]


@pytest.mark.parametrize("seed", range(4))
def test_no_other_choice_saves_more_at_the_same_loss(seed: int) -> None:
    sites = [_site("a"), _site("b"), _site("c")]
    calibration, plans = _calibration(sites), _offers(sites, seed)
    rng = np.random.default_rng(seed)
    errors = {site.name: ([0.001], [float(rng.uniform(0.001, 0.1))]) for site in sites}
    sensitivity = Sensitivity(errors, None)

    def value(choice: tuple[SitePlan | None, ...]) -> tuple[float, float]:
        saved = square = 0.0
        for i, (site, plan) in enumerate(zip(sites, choice, strict=True)):
            if plan is not None and plan.staged:
                saved += saved_flops(site, plan, ROWS * (i + 1))
                square += float(sensitivity.square(site.name, np.array([plan.lost_energy]))[0])
        return saved, sensitivity.loss(square)

    options = [[None, *(step[site.name] for step in plans)] for site in sites]
    every = [value(choice) for choice in itertools.product(*options)]
    levels = (0.2, 0.5, 1.0)
    losses = []
    for level, chosen in zip(levels, allocate(sites, calibration, plans, sensitivity, levels), strict=True):
        saved, loss = value(tuple(chosen[site.name] for site in sites))
        losses.append(loss)
        assert loss <= level
        assert saved >= max(s for s, other in every if other <= loss) - 1e-6
    assert losses == sorted(losses) and losses[-1] > 0


def test_what_costs_more_is_pruned_less() -> None:
    sites = [_site("a"), _site("b")]
    plans = _offers(sites[:1], 0)
    plans = [
        {"a": step["a"], "b": _plan(sites[1], step["a"].pruned[0], step["a"].lost_energy)} for step in plans
    ]
    sensitivity = Sensitivity({"a": ([0.01], [0.05]), "b": ([0.01], [0.01])}, None)
    chosen = allocate(sites, _calibration(sites), plans, sensitivity, (0.25,))[0]
    assert chosen["a"].lost_energy < chosen["b"].lost_energy
    worth = {"a": 1000.0, "b": 1e-6}
    turned = allocate(sites, _calibration(sites), plans, sensitivity, (0.25,), worth)[0]
    assert turned["a"].lost_energy > chosen["a"].lost_energy and not turned["b"].staged


def test_errors_follow_what_was_measured() -> None:
    sensitivity = Sensitivity({"a": ([0.01, 0.1], [0.02, 2.0])}, 0.5)
    squares = sensitivity.square("a", np.array([0.0, 0.001, 0.01, 0.1, 1.0]))
    np.testing.assert_allclose(squares, [0, 0.002, 0.02, 2.0, 200.0], rtol=1e-9)
    assert sensitivity.slope(0.02) == pytest.approx(
        (sensitivity.loss(0.02 + 1e-9) - sensitivity.loss(0.02 - 1e-9)) / 2e-9, rel=1e-4
    )
    assert not sensitivity.square("unknown", np.array([0.5])).any()


@pytest.mark.parametrize("max_drop", [0.0, 0.001, 0.01, 0.1, 1.0])
def test_a_walk_is_a_bounded_part_of_the_knob(max_drop: float) -> None:
    part = walk_levels(max_drop)
    assert len(LEVELS[part]) == 18
    assert part.start == 0 or LEVELS[part.start] <= max_drop
    walked = LEVELS[part]
    assert walked[-1] > 150 * walked[0]  # two orders of magnitude in as many steps, whatever the knob's own
    if 0.001 <= max_drop <= 0.01:
        assert walked[0] < max_drop / 5 and walked[-1] > max_drop
