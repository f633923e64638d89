"""The p-value is valid, has the power that was promised, and the walk stops where it must."""

from __future__ import annotations

import numpy as np
import pytest

from exprune_cli.certify import betting_p_value, boldest, furthest, judge, samples_needed


def _losses(rng: np.random.Generator, worse: float, better: float, count: int) -> np.ndarray:
    return rng.choice([1.0, -1.0, 0.0], count, p=[worse, better, 1 - worse - better])


def test_p_value_is_valid_at_the_edge_of_the_hypothesis() -> None:
    rng = np.random.default_rng(0)
    p = np.array([betting_p_value(_losses(rng, 0.03, 0.02, 1000), 0.01) for _ in range(2000)])
    # 2000 draws: 0.05 + three standard errors.
    assert np.mean(p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_p_value_has_power() -> None:
    # 1.2 % of samples turned wrong and 1.0 % turned right: a drop of 0.2 %.
    rng = np.random.default_rng(1)
    p = np.array([betting_p_value(_losses(rng, 0.012, 0.010, 10_000), 0.01) for _ in range(200)])
    assert np.mean(p <= 0.05) >= 0.97


def test_losses_outside_the_range_are_refused() -> None:
    with pytest.raises(ValueError):
        betting_p_value(np.array([0.0, 1.5]), 0.01)
    with pytest.raises(ValueError):
        betting_p_value(np.array([0.0, np.nan]), 0.01)


@pytest.mark.parametrize("max_drop", [0.001, 0.01, 0.1])
def test_samples_needed_is_the_least_that_can_pass(max_drop: float) -> None:
    needed = samples_needed(max_drop, 0.95)
    assert betting_p_value(np.zeros(needed), max_drop) <= 0.05
    assert betting_p_value(np.zeros(needed - 1), max_drop) > 0.05


def test_few_or_unchanged_samples_do_not_prove_a_zero_drop() -> None:
    assert judge(np.zeros(1), 0.01).upper == np.inf
    assert judge(np.zeros(10), 0.01).upper > 0.01
    assert judge(np.zeros(5000), 0.01).upper < 0.001


def test_walk_stops_at_the_first_failure() -> None:
    asked: list[int] = []

    def holds(step: int) -> bool:
        asked.append(step)
        return step != 2

    assert furthest(range(5), holds) == 1
    assert asked == [0, 1, 2]
    assert furthest(range(5), lambda step: False) is None


@pytest.mark.parametrize("last", [-1, 0, 3, 6])
def test_bisection_finds_the_last_that_holds_in_few_trials(last: int) -> None:
    asked: list[int] = []

    def holds(step: int) -> bool:
        asked.append(step)
        return step <= last

    assert boldest(range(7), holds) == (None if last < 0 else last)
    assert len(asked) <= 3


def test_the_upper_limit_holds_for_few_groups() -> None:
    """One limit in twenty may be exceeded, of eight draws as of many: a normal quantile has one in thirteen."""
    losses = np.random.default_rng(2).normal(0.01, 0.02, (4000, 8))
    missed = np.mean([judge(x, 0.01, bounded=False, unit=1e-6).upper < 0.01 for x in losses])
    assert missed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
