"""One price: no other choice of the sites' plans saves as much at the same predicted loss, and steps are small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exprune_cli.certify import boldest
from exprune_cli.planning.allocation import Knob, Sensitivity, allocate, saved_flops
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
    knob = allocate(sites, calibration, plans, sensitivity)
    for step, said in zip(knob, knob.losses, strict=True):
        assert value(tuple(step[site.name] for site in sites))[1] == pytest.approx(said, rel=1e-9)
    steps = [{id(plan) for plan in step.values() if plan.staged} for step in knob]
    for price in np.geomspace(1e-8, 1e-3, 40):
        # What every site takes at this price, by itself.
        choice = []
        for site, own in zip(sites, options, strict=True):
            gains = [0.0]
            for plan in own[1:]:
                saved = saved_flops(site, plan, ROWS * (1 + sites.index(site)))
                lost = float(sensitivity.square(site.name, np.array([plan.lost_energy]))[0])
                gains.append(price * saved - lost)
            choice.append(own[int(np.argmax(gains))])
        assert {id(plan) for plan in choice if plan is not None} in steps
        saved, loss = value(tuple(choice))
        assert saved >= max(s for s, other in every if other <= loss) - 1e-6


def test_what_costs_more_is_pruned_less() -> None:
    sites = [_site("a"), _site("b")]
    plans = _offers(sites[:1], 0)
    plans = [
        {"a": step["a"], "b": _plan(sites[1], step["a"].pruned[0], step["a"].lost_energy)} for step in plans
    ]
    sensitivity = Sensitivity({"a": ([0.01], [0.05]), "b": ([0.01], [0.01])}, None)
    knob = allocate(sites, _calibration(sites), plans, sensitivity)
    chosen = knob[knob.within(0.25)]
    assert chosen["a"].lost_energy < chosen["b"].lost_energy
    worth = {"a": 1000.0, "b": 1e-6}
    knob = allocate(sites, _calibration(sites), plans, sensitivity, worth)
    turned = knob[knob.within(0.25)]
    assert turned["a"].lost_energy > chosen["a"].lost_energy and not turned["b"].staged


def test_errors_follow_what_was_measured() -> None:
    sensitivity = Sensitivity({"a": ([0.01, 0.1], [0.02, 2.0])}, 0.5)
    squares = sensitivity.square("a", np.array([0.0, 0.001, 0.01, 0.1, 1.0]))
    np.testing.assert_allclose(squares, [0, 0.002, 0.02, 2.0, 200.0], rtol=1e-9)
    assert sensitivity.slope(0.02) == pytest.approx(
        (sensitivity.loss(0.02 + 1e-9) - sensitivity.loss(0.02 - 1e-9)) / 2e-9, rel=1e-4
    )
    assert not sensitivity.square("unknown", np.array([0.5])).any()


_NUMBERS = st.floats(0, 1, width=32)
_OFFER = st.lists(st.tuples(_NUMBERS, _NUMBERS), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["relu", "argmax"]), _OFFER), min_size=1, max_size=4))
def test_a_step_changes_one_site_and_saves_more(offers: list[tuple[str, list[tuple[float, float]]]]) -> None:
    """Whatever is offered: savings and predicted losses rise, and every plan that no other beats is a step."""
    sites = [_site(f"s{i}", kind) for i, (kind, _) in enumerate(offers)]
    own = [
        [_plan(site, pruned, lost) for pruned, lost in offer]
        for site, (_, offer) in zip(sites, offers, strict=True)
    ]
    most = max(len(plans) for plans in own)
    steps = [{s.name: p[min(i, len(p) - 1)] for s, p in zip(sites, own, strict=True)} for i in range(most)]
    sensitivity = Sensitivity({site.name: ([0.01], [0.02]) for site in sites}, 1.5)
    knob = allocate(sites, _calibration(sites), steps, sensitivity)

    def saved(step: dict[str, SitePlan]) -> float:
        return sum(saved_flops(site, step[site.name], ROWS * (i + 1)) for i, site in enumerate(sites))

    every = [knob[i] for i in range(len(knob))]
    for before, after in itertools.pairwise(every):
        assert sum(before[name] is not after[name] for name in before) == 1
        assert saved(after) > saved(before)
    assert list(knob.losses) == sorted(knob.losses)
    for site, plans in zip(sites, own, strict=True):
        taken = {id(step[site.name]) for step in every}
        for plan in plans:
            beaten = any(
                (other.lost_energy <= plan.lost_energy)
                and saved_flops(site, other, 1) >= saved_flops(site, plan, 1)
                for other in plans
                if other is not plan
            )
            assert id(plan) in taken or beaten or saved_flops(site, plan, 1) <= 0


def test_a_knob_of_many_moves_is_searched_in_few_steps() -> None:
    site = _site("a")
    moves = [("a", _plan(site, i / 1e5, i / 1e5)) for i in range(12_345)]
    knob = Knob({"a": moves[0][1]}, moves, [i / 1e5 for i in range(12_346)])
    asked = []

    def holds(step: int) -> bool:
        asked.append(step)
        return knob[step]["a"].lost_energy <= 0.03

    last = boldest(range(len(knob)), holds)
    assert last is not None and len(asked) <= 10
    assert 0.03 - 13e-5 < knob[last]["a"].lost_energy <= 0.03
    assert knob[-1]["a"] is moves[-1][1] and knob[len(knob) - 1] == knob[-1] and len(knob) <= 1001


@pytest.mark.parametrize("max_drop", [0.0, 0.001, 0.01, 0.1, 1.0])
def test_a_walk_is_a_bounded_part_of_the_knob(max_drop: float) -> None:
    site = _site("a")
    moves = [("a", _plan(site, i / 1e3, 1e-5 * 1.02**i)) for i in range(600)]
    knob = Knob({"a": _plan(site, 0, 0)}, moves, [0.0, *(1e-5 * 1.02**i for i in range(600))])
    walked = [step["a"].lost_energy for step in knob.walk(max_drop)]
    assert len(walked) == 18 and walked == sorted(walked)
    assert walked[0] <= max(max_drop, 3e-5)
    assert walked[-1] > 150 * walked[0]  # two orders of magnitude in as many steps, whatever the knob's own
    if 0.001 <= max_drop <= 0.01:
        assert walked[0] < max_drop / 5 and walked[-1] > max_drop


def test_the_more_a_head_s_row_counts_the_later_it_is_pruned() -> None:
    sites = [_site("a"), _site("head", "argmax")]
    plans = _offers(sites, 3)

    def moved(row: float) -> list[int]:
        """After how many moves of other sites each plan of the head is taken."""
        sensitivity = Sensitivity({"a": ([0.01], [0.001])}, 1.0, 1.0, row)
        knob = list(allocate(sites, _calibration(sites), plans, sensitivity))
        return [i for i, (b, a) in enumerate(itertools.pairwise(knob)) if b["head"] is not a["head"]]

    early, late = moved(0.01), moved(0.9)
    assert len(early) == len(late) and all(e <= n for e, n in zip(early, late, strict=True)) and early != late


def test_with_labels_the_loss_is_what_normal_errors_swap() -> None:
    """Margins and errors drawn: what is lost where the second wins, on a line through zero at the tie."""
    rng = np.random.default_rng(0)
    most, error, slope = 4.0, 0.5, 0.2
    margins = rng.uniform(0, most, 2_000_000)
    swapped = margins + error * rng.standard_normal(len(margins)) < 0
    lost = float(np.mean(swapped * slope * margins))
    sensitivity = Sensitivity({}, 1 / most, slope)
    assert sensitivity.loss(error**2) == pytest.approx(lost, rel=0.02)
    assert sensitivity.slope(error**2) * error**2 == pytest.approx(sensitivity.loss(error**2))
