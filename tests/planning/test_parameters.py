"""The tests' numbers against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from exprune_cli.planning import bound, calibrated, chunks, head, stats, threshold
from exprune_cli.sites import SiteStatistics


def _case(seed: int, rows: int = 40, outputs: int = 7, groups: int = 24, taps: int = 3, spread: float = 1.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, groups, taps)) * np.exp(spread * rng.standard_normal((1, groups, 1)))
    w = rng.standard_normal((outputs, groups, taps)) * np.exp(spread * rng.standard_normal((outputs, 1, 1)))
    return x.astype(np.float32), w.astype(np.float32), rng.standard_normal(outputs).astype(np.float32)


def _statistics(x: np.ndarray) -> SiteStatistics:
    energy = np.square(x, dtype=np.float64).sum(axis=(0, 2))
    zeros = (x == 0).sum(axis=(0, 2))
    keys = np.arange(len(x), dtype=np.uint64)
    return SiteStatistics(x, keys, None, energy, zeros, x.shape[0] * x.shape[2], x.shape[0])


def test_energy_order_puts_the_heaviest_groups_first() -> None:
    weight = np.array([[[1.0], [3.0], [2.0]]], np.float32)
    assert chunks.energy_order(weight, None).tolist() == [1, 2, 0]
    x = np.array([[[10.0], [1.0], [1.0]]], np.float32)
    assert chunks.energy_order(weight, _statistics(x)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("groups", [2, 3, 7, 16, 64, 1000])
def test_candidate_ends_rise_and_leave_a_tail(groups: int) -> None:
    ends = chunks.candidate_ends(groups)
    assert list(ends) == sorted(set(ends))
    assert 1 <= ends[0] and ends[-1] < groups


def test_partial_sums_end_in_the_whole_sum() -> None:
    x, w, _ = _case(0)
    sums = chunks.partial_sums(x, w, chunks.energy_order(w, None), (3, 9))
    np.testing.assert_allclose(sums[-1], np.einsum("rgt,ngt->rn", x, w), rtol=1e-4, atol=1e-3)


def test_saved_share_by_hand() -> None:
    # Two checks at 1/4 and 1/2 of the groups. 40 % are decided at the first, 70 % by the second:
    # 0.4 * 3/4 + 0.3 * 1/2 saved, tests paid by everybody and then by the remaining 60 %.
    assert chunks.saved_share([4, 8], 16, [0.4, 0.7], 0.01) == pytest.approx(0.3 + 0.15 - 0.01 - 0.006)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(2, 40),
    taps=st.integers(1, 9),
    spread=st.floats(0, 4),
    relu_input=st.booleans(),
)
def test_bound_never_decides_a_positive_output(
    seed: int, groups: int, taps: int, spread: float, relu_input: bool
) -> None:
    x, w, bias = _case(seed, groups=groups, taps=taps, spread=spread)
    x = np.maximum(x, 0) if relu_input else x
    order = chunks.energy_order(w, _statistics(x))
    ends = chunks.candidate_ends(groups)
    sums = chunks.partial_sums(x, w, order, ends)
    parameters = bound.bound_parameters(w, order, ends, one_sided=relu_input)
    decided = bound.bound_pruned(x, sums, bias, order, ends, parameters)
    exact = np.einsum("rgt,ngt->rn", x.astype(np.float64), w.astype(np.float64)) + bias
    assert not np.any(decided[-1] & (exact > 0))
    assert not np.any(decided[-1] & (sums[-1] + bias > 0))


def test_bound_decides_something_that_is_clearly_negative() -> None:
    x, w, _ = _case(1)
    order = chunks.natural_order(24)
    parameters = bound.bound_parameters(w, order, [12], one_sided=False)
    sums = chunks.partial_sums(x, w, order, [12])
    far = np.full(7, -1e6, np.float32)
    assert bound.bound_pruned(x, sums, far, order, [12], parameters)[0].all()


def test_bound_of_nan_weights_is_nan() -> None:
    _, w, _ = _case(2)
    w[3, 5] = np.nan
    parameters = bound.bound_parameters(w, chunks.natural_order(24), [12], one_sided=True)
    assert np.isnan(parameters["slack"][0, 3])
    assert np.isfinite(parameters["slack"][0, :3]).all()


def test_z_scores_are_the_papers() -> None:
    x, w, bias = _case(3)
    scores = stats.z_scores(x, w, bias, [6, 16])
    for k, score in zip((6, 16), scores, strict=True):
        terms = np.einsum("rgt,ngt->rng", x, w)[:, :, :k].astype(np.float64)
        mean = terms.mean(axis=2) + bias / 24
        expected = mean / np.sqrt(terms.var(axis=2, ddof=1) / k)
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)


def test_z_scores_of_a_gemm_agree_with_the_general_form() -> None:
    x, w, bias = _case(4, taps=1)
    terms = np.einsum("rgt,ngt->rng", x, w)[:, :, :9].astype(np.float64)
    expected = (terms.mean(axis=2) + bias / 24) / np.sqrt(terms.var(axis=2, ddof=1) / 9)
    np.testing.assert_allclose(stats.z_scores(x, w, bias, [9])[0], expected, rtol=1e-3, atol=1e-4)


def test_threshold_form_is_the_papers_mean() -> None:
    x, w, bias = _case(5)
    ends, groups, cut = [8], 24, -0.07
    sums = chunks.partial_sums(x, w, chunks.natural_order(groups), ends)
    parameters = threshold.threshold_parameters(7, groups, ends, cut)
    as_op = parameters["scale"][0] * sums[0] + bias < parameters["limit"][0]
    np.testing.assert_array_equal(as_op, threshold.means(sums, bias, groups, ends)[0] < cut)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_largest_threshold_is_within_budget_and_tight(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(-5, 5, 60).astype(np.float64)
    loss = rng.random(60)
    budget = share * loss.sum()
    cut = threshold.largest_threshold(score, loss, budget)
    assert loss[score < cut].sum() <= budget + 1e-9
    wider = score <= cut
    assert wider.all() or loss[wider].sum() > budget - 1e-9


def test_expected_loss_is_the_integral() -> None:
    # E[relu(u + e)^2] for a standard normal e, by quadrature.
    e = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * e * e) / np.sqrt(2 * np.pi)
    for u in (-4.0, -1.0, 0.0, 0.7):
        value = np.trapezoid(np.square(np.maximum(u + e, 0)) * density, e)
        assert calibrated.expected_loss(np.array(u)) == pytest.approx(value, rel=1e-5)
    assert float(ndtr(0.0)) == 0.5


def test_cut_is_the_boldest_that_the_price_allows() -> None:
    fit = calibrated.Fit(np.ones(4), np.zeros(4), np.array([0.1, 0.5, 1.0, 5.0]))
    for price in (1e-4, 1e-2, 1.0, 100.0):
        u = calibrated.cut(fit, price)
        assert np.all(np.square(fit.sigma) * calibrated.expected_loss(u) <= price)
        assert np.all(np.square(fit.sigma) * calibrated.expected_loss(u + 1e-3) > price)


def test_fit_recovers_a_line() -> None:
    rng = np.random.default_rng(7)
    partial = rng.standard_normal((5000, 3))
    final = 1.5 * partial + np.array([0.0, 1.0, -2.0]) + 0.2 * rng.standard_normal((5000, 3))
    fit = calibrated.fit(partial, final)
    np.testing.assert_allclose(fit.slope, 1.5, atol=0.02)
    np.testing.assert_allclose(fit.intercept, [0, 1, -2], atol=0.02)
    np.testing.assert_allclose(fit.sigma, 0.2, atol=0.01)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_needed_width_just_keeps_the_winner(seed: int) -> None:
    rng = np.random.default_rng(seed)
    partial, final = rng.standard_normal((2, 12, 30))
    form = (rng.uniform(0.5, 2, 30), rng.standard_normal(30), rng.uniform(0.1, 1, 30))
    width = head.needed_width(partial, final, form)
    winner, at = final.argmax(axis=1), np.arange(12)
    for factor, kept in ((1 + 1e-9, True), (0.999, False)):
        for row in range(12):
            stays = head.candidates(partial[row : row + 1], form, width[row] * factor)[0, winner[row]]
            assert stays if kept or width[row] == 0 else not stays
    assert at.size == 12


def test_head_z_scores_are_dominance_predictions() -> None:
    x, w, bias = _case(8, taps=1, outputs=9)
    scores, leader = head.z_scores(x, w, bias, 10)
    terms = (w[None, :, :10, 0] - w[leader][:, None, :10, 0]) * x[:, None, :10, 0]
    mean = terms.mean(axis=2) + (bias - bias[leader][:, None]) / 24
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = mean / np.sqrt(terms.var(axis=2, ddof=1) / 10)
    rivals = np.arange(9)[None] != leader[:, None]
    np.testing.assert_allclose(scores[rivals], expected[rivals], rtol=1e-3)
    assert np.isinf(scores[~rivals]).all()
