"""Which checks a site gets, and at what price an output's expected loss is accepted.

One price decides for a whole site: an output is pruned at a check when the energy that this is
expected to lose, per saved FLOP, is at most the price. What has to be found is the set of checks and
the price that save most while the energy really lost on the calibration rows stays in the budget.

Prices lie on a geometric grid. Every output and check has a first price at which it is pruned; with
several checks it is the smallest of theirs. So all prices of a set of checks, and with them all
budgets, are read off one histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

#: Earlier checks pay a lower price: what they leave, a later check can still decide.
EARLIER = 0.4
_STEPS = 4  # grid steps per factor of EARLIER, so that the lower price is on the grid too
_RATIO = EARLIER ** (-1 / _STEPS)
_LOWEST = 1e-8  # of the mean energy of an output
_GRID = 104  # up to about 200 times the mean energy
#: Checks of a site, at most.
MOST_CHECKS = 3
#: A set of more checks must save this share of the site's FLOPs more.
WORTH = 0.003
#: Elements (rows x outputs) that the choice looks at.
_ELEMENTS = 2**19


@dataclass(frozen=True)
class Choice:
    """A set of checks and a price.

    Attributes:
        checks: Indices into the candidate ends.
        price: Expected energy lost per share of saved work.
        saved: Share of the site's FLOPs that is saved, tests paid.
        pruned: Share of outputs decided at or before each check.
        lost: Share of the site's energy that is lost.
    """

    checks: tuple[int, ...]
    price: float
    saved: float
    pruned: tuple[float, ...]
    lost: float


def prices(price: float, ends: Sequence[int], groups: int) -> list[float]:
    """What each check may lose per output: the price of the work that is left after it."""
    last = len(ends) - 1
    return [price * (1 - end / groups) * (1 if i == last else EARLIER) for i, end in enumerate(ends)]


def elements(outputs: int) -> slice:
    """Rows that :func:`choose` looks at, of a site with so many outputs."""
    return slice(0, max(64, _ELEMENTS // outputs))


def choose(
    losses: Sequence[np.ndarray],
    energy: np.ndarray,
    ends: Sequence[int],
    groups: int,
    budgets: Sequence[float],
    saved: Callable[[Sequence[int], Sequence[float]], float],
    most_checks: int = MOST_CHECKS,
) -> list[Choice | None]:
    """The best checks and price for every budget.

    Args:
        losses: Expected loss ``[R, N]`` of pruning at each candidate, infinity where never.
        energy: ``[R, N]`` energy that pruning an output really loses.
        ends: Candidate positions in units of work: groups, or multiply-accumulates.
        groups: The whole work in that unit.
        budgets: Shares of the energy that may be lost.
        saved: Share of the site's FLOPs that is saved, of indices of checks and the shares of outputs that are
            decided at or before each.
        most_checks: At most so many.

    Returns:
        For each budget the choice that saves most, None if none saves anything.
    """
    rows = elements(energy.shape[1])
    energy = energy[rows].ravel()
    total = float(energy.sum())
    lowest = _LOWEST * (total / max(energy.size, 1) + 1e-30)
    first = [
        _first_price(loss[rows].ravel() / (1 - end / groups), lowest)
        for loss, end in zip(losses, ends, strict=True)
    ]
    best: list[Choice | None] = [None] * len(budgets)
    for size in range(1, most_checks + 1):
        found = [
            _Curve(checks, [first[i] for i in checks], energy, saved)
            for checks in combinations(range(len(ends)), size)
        ]
        for i, budget in enumerate(budgets):
            for curve in found:
                choice = curve.at(budget * total, total, lowest)
                held = best[i]
                worth = WORTH if held is None or len(held.checks) < size else 0.0
                if choice is not None and choice.saved > (held.saved if held else 0.0) + worth:
                    best[i] = choice
    return best


def _first_price(loss: np.ndarray, lowest: float) -> np.ndarray:
    """Index of the first price on the grid at which each output is pruned; past its end if never."""
    with np.errstate(divide="ignore"):
        index = np.ceil(np.log(loss / lowest) / np.log(_RATIO) - 1e-6)
    index = np.nan_to_num(index, nan=_GRID, posinf=_GRID, neginf=0)
    first: np.ndarray = np.clip(index, 0, _GRID).astype(np.uint8)
    return first


class _Curve:
    """What a set of checks prunes, loses and saves, at every price of the grid."""

    def __init__(
        self,
        checks: tuple[int, ...],
        first: Sequence[np.ndarray],
        energy: np.ndarray,
        saved: Callable[[Sequence[int], Sequence[float]], float],
    ) -> None:
        self.checks, self.saved = checks, saved
        shares, earliest = [], np.full(energy.size, _GRID + _STEPS, np.uint8)
        for i, index in enumerate(first):
            later = np.minimum(index, _GRID) + np.uint8(0 if i == len(first) - 1 else _STEPS)
            earliest = np.minimum(earliest, np.where(index >= _GRID, np.uint8(_GRID + _STEPS), later))
            counts = np.bincount(earliest, minlength=_GRID + _STEPS + 1)[:_GRID]
            shares.append(np.cumsum(counts) / max(energy.size, 1))
        self.shares = np.array(shares)
        lost = np.bincount(earliest, weights=energy, minlength=_GRID + _STEPS + 1)[:_GRID]
        self.lost = np.cumsum(lost)

    def at(self, allowed: float, total: float, lowest: float) -> Choice | None:
        """The highest price that loses no more than ``allowed``; None if even the lowest does."""
        step = int(np.searchsorted(self.lost, allowed, side="right")) - 1
        if step < 0:
            return None
        pruned = tuple(float(share) for share in self.shares[:, step])
        lost = float(self.lost[step]) / (total + 1e-30)
        return Choice(self.checks, lowest * _RATIO**step, self.saved(self.checks, pruned), pruned, lost)
