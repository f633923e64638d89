"""The histogram of first prices says what trying every price would say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from exprune_cli.planning.chunks import saved_share
from exprune_cli.planning.prices import choose, prices

ENDS, GROUPS, COST = (2, 4, 8), 16, 0.001


def _case(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((300, 12)) - 0.3
    energy = np.square(np.maximum(z, 0))
    losses = []
    for noise in (1.0, 0.6, 0.3):
        seen = z + noise * rng.standard_normal(z.shape)
        losses.append(np.where(seen < 0, np.exp(3 * seen), np.inf).astype(np.float32))
    return losses, energy


def _saved(ends: Sequence[int], checks: Sequence[int], pruned: Sequence[float]) -> float:
    return saved_share([ends[i] for i in checks], GROUPS, pruned, COST)


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_is_what_its_prices_do(seed: int) -> None:
    losses, energy = _case(seed)
    for budget, choice in zip(
        (0.001, 0.01, 0.1),
        choose(losses, energy, ENDS, GROUPS, (0.001, 0.01, 0.1), partial(_saved, ENDS)),
        strict=True,
    ):
        assert choice is not None
        at = [ENDS[i] for i in choice.checks]
        decided, shares = np.zeros(energy.shape, bool), []
        for check, price in zip(choice.checks, prices(choice.price * (1 + 1e-5), at, GROUPS), strict=True):
            decided |= losses[check] <= price
            shares.append(decided.mean())
        np.testing.assert_allclose(shares, choice.pruned, atol=1e-9)
        assert energy[decided].sum() / energy.sum() == pytest.approx(choice.lost, abs=1e-12)
        assert choice.lost <= budget
        assert saved_share(at, GROUPS, shares, COST) == pytest.approx(choice.saved)


def test_more_budget_saves_more_and_never_less_than_any_single_check() -> None:
    losses, energy = _case(9)
    budgets = (0.0003, 0.003, 0.03, 0.3)
    together = choose(losses, energy, ENDS, GROUPS, budgets, partial(_saved, ENDS))
    saved = [choice.saved for choice in together if choice]
    assert saved == sorted(saved) and len(saved) == 4
    for i, end in enumerate(ENDS):
        alone = choose([losses[i]], energy, (end,), GROUPS, budgets, partial(_saved, (end,)))
        assert all(one is None or one.saved <= best + 1e-12 for one, best in zip(alone, saved, strict=True))


def test_nothing_is_chosen_where_nothing_can_be_saved() -> None:
    never = [np.full((50, 4), np.inf, np.float32)] * 3
    assert choose(never, np.ones((50, 4)), ENDS, GROUPS, (0.1,), partial(_saved, ENDS)) == [None]
