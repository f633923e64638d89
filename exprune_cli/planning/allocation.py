"""One price for the whole model: every site is as bold as its FLOPs are worth.

Each site offers plans along its own budget. At a price ``p`` per saved FLOP it takes the plan with the
largest ``p * saved - weight * lost``: marginal loss per saved FLOP is then equal across sites (the
Lagrangian of "save most at a given total loss"). The weights say what a site's lost energy does to
the model's output; :mod:`exprune_cli.sensitivity` measures them.

As the price rises, one site after the other takes its next plan, and these moves in their order are the
knob: a step of it differs from the one before by one site's plan. Between two plans that some price
chooses lie others, that none does because they are above the line from one to the other (the lower
convex hull of loss over saving); a site passes through them on its way.

Errors of ReLU sites add up as mean squares of the output, those of an ArgMax head are changed rows.
Both are counted in changed predictions: for margins that have the density ``d`` at zero, an error of
mean square ``S`` on the margin changes ``d sqrt(S / (2 pi))`` of them (half of the normal error's mean
absolute value, to first order).

With labels a changed prediction is not a lost one. At a tie a label names the winner as often as the second, so
that swaps there lose nothing; the difference grows with the margin ``m`` as ``k m``, and the same error loses an
accuracy of ``d k S / 4``, the integral over ``m`` of ``d k m`` times the normal error's tail. A head that drops the
winner does so whatever its margin, also where it is right for sure: it loses the difference over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from exprune_cli.planning.chunks import plan_saving
from exprune_cli.sites import Calibration, Site, SitePlan

#: Budgets of the plans that a site offers: shares of its energy (or of a head's rows).
OFFERS = tuple(float(value) for value in np.geomspace(2e-5, 0.5, 39))
#: Steps of a walk that certifies: each is a pass over all held-out samples. Their predicted losses start an
#: order of magnitude below the drop, or at the last of these two, and rise by this factor in all.
_WALK, _SPAN, _LOWEST, _HIGHEST = 18, 220.0, 2.4e-5, 2e-3
#: Steps of the knob, at most, so that a search takes at most ten passes; with more moves several are one step.
_MOST_STEPS = 1000
#: A mean square that a head's rows are weighed at, at least: where nothing else is lost the root has no finite slope.
_LEAST_SQUARE = 1e-8


@dataclass(frozen=True)
class Sensitivity:
    """What errors of sites do to the model's output.

    Attributes:
        errors: By site: lost energy shares, rising, and the mean squares of the output's error that they
            were measured to make. In between they follow a power of the share; they start linearly.
        density: Of the margins at zero, where predictions are compared; None where values are: a loss
            is then the root of the mean square, relative to the values'.
        swap: Accuracy lost per swapped prediction and margin, near ties (``k``), where predictions are compared
            with labels; else None.
        row: Accuracy lost on new data per row of a head whose winner is dropped on its own; 1 without labels.
    """

    errors: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    density: float | None
    swap: float | None = None
    row: float = 1.0

    def square(self, site: str, lost: np.ndarray) -> np.ndarray:
        """Mean square of the output's error at these lost shares; 0 for a site that was not measured."""
        if site not in self.errors:
            return np.zeros_like(lost)
        shares, squares = (np.log(np.asarray(values)) for values in self.errors[site])
        with np.errstate(divide="ignore"):
            at = np.log(lost)
        # Beyond the largest share it goes on as steeply as measured last, at least linearly.
        end = 1.0 if len(shares) < 2 else max(1.0, (squares[-1] - squares[-2]) / (shares[-1] - shares[-2]))
        inside = np.interp(at, shares, squares)
        inside = np.where(at < shares[0], squares[0] + at - shares[0], inside)
        drops: np.ndarray = np.exp(np.where(at > shares[-1], squares[-1] + end * (at - shares[-1]), inside))
        return drops

    def loss(self, square: float) -> float:
        """Predicted loss of an output error of this mean square."""
        if self.swap is not None:
            return self._scale * square
        return self._scale * float(np.sqrt(square))

    def slope(self, square: float) -> float:
        """Derivative of :meth:`loss`."""
        if self.swap is not None:
            return self._scale
        return self._scale / (2 * float(np.sqrt(square)) + 1e-30)

    @property
    def _scale(self) -> float:
        if self.density is None:
            return 1.0
        return self.density / float(np.sqrt(2 * np.pi)) if self.swap is None else self.density * self.swap / 4


def saved_flops(site: Site, plan: SitePlan, rows: float) -> float:
    """FLOPs per sample that a plan is expected to save, its tests and estimate paid."""
    if not plan.staged or plan.pruned is None:
        return 0.0
    groups = float(site.groups)
    if plan.nonzero:
        groups = float(np.dot(np.diff([0, *(plan.ends or [site.groups])]), plan.nonzero))
    dense = 2.0 * rows * site.outputs * groups * site.taps
    if site.kind == "sparse":
        return dense * plan.pruned[0] - rows * site.groups
    return dense * plan_saving(site, plan)


def rows_per_sample(site: Site, calibration: Calibration) -> float:
    """Rows that a site has per sample, on average."""
    statistics = calibration.sites.get(site.name)
    return statistics.count / max(calibration.samples, 1) if statistics is not None else 1.0


@dataclass(frozen=True)
class _Offer:
    """What a site offers: plans, with the FLOPs that each saves and what it loses; entry 0 is dense.

    ``lost`` is a mean square of the model's output, or a head's share of changed rows.
    """

    plans: list[SitePlan]
    saved: np.ndarray
    lost: np.ndarray

    @property
    def free(self) -> int:
        """The plan that saves most of those that lose nothing."""
        return int(np.argmax(np.where(self.lost <= 0, self.saved, -np.inf)))


@dataclass(frozen=True)
class _Move:
    """A site's next plan: what it costs per saved FLOP, and where that leaves the model."""

    site: str
    index: int
    price: float
    lost: float


class Knob(Sequence[dict[str, SitePlan]]):
    """Plans of all sites along the knob, from the safest to the boldest.

    Attributes:
        losses: What each step is predicted to lose, rising: accuracy where labels are compared, else a share of
            changed predictions, or the relative error of the outputs. Predictions can be too low by an order of magnitude.
    """

    def __init__(
        self, start: Mapping[str, SitePlan], moves: Sequence[tuple[str, SitePlan]], losses: Sequence[float]
    ) -> None:
        """Steps after 0, 1, 2, ... of the moves; ``losses`` has one more than there are moves."""
        self._start, self._moves = dict(start), list(moves)
        group = -(-len(moves) // _MOST_STEPS) or 1
        self._after = [*range(0, len(moves), group), len(moves)] if moves else [0]
        self.losses = tuple(losses[after] for after in self._after)

    def __len__(self) -> int:
        """Steps: at least one."""
        return len(self._after)

    @overload
    def __getitem__(self, step: int) -> dict[str, SitePlan]: ...

    @overload
    def __getitem__(self, step: slice) -> list[dict[str, SitePlan]]: ...

    def __getitem__(self, step: int | slice) -> dict[str, SitePlan] | list[dict[str, SitePlan]]:
        """Plans by site name; a knob of many sites holds only what changes from step to step."""
        if isinstance(step, slice):
            return [self[at] for at in range(*step.indices(len(self)))]
        return {**self._start, **dict(self._moves[: self._after[step]])}

    def __iter__(self) -> Iterator[dict[str, SitePlan]]:
        """From the safest on."""
        return (self[step] for step in range(len(self)))

    def within(self, loss: float) -> int:
        """The boldest step that is predicted to lose at most this; 0 if none is."""
        return max(int(np.searchsorted(self.losses, loss, side="right")) - 1, 0)

    def walk(self, max_drop: float) -> list[dict[str, SitePlan]]:
        """The few steps that a walk for this drop takes, chosen before any sample is seen."""
        lowest = min(max(max_drop / 10, _LOWEST), _HIGHEST)
        levels = lowest * _SPAN ** (np.arange(_WALK) / (_WALK - 1))
        return [self[step] for step in sorted({self.within(float(level)) for level in levels})]


def allocate(
    sites: Sequence[Site],
    calibration: Calibration,
    plans: Sequence[Mapping[str, SitePlan]],
    sensitivity: Sensitivity,
    worth: Mapping[str, float] | None = None,
) -> Knob:
    """Orders the sites' plans by what they lose per saved FLOP.

    Args:
        sites: From ``match``.
        calibration: From ``observe``; says how many rows a site has per sample.
        plans: Plans of all sites, once per budget that they may lose, rising.
        sensitivity: Weights of the ReLU sites.
        worth: By site, what a saved FLOP is worth, e.g. the microseconds that it was measured to save;
            None: the same everywhere. A site that is not named is worth nothing.

    Returns:
        The knob; its first step loses nothing.
    """
    offers = {}
    for site in sites:
        value = 1.0 if worth is None else worth.get(site.name, 0.0)
        offers[site.name] = _offer(site, calibration, [step[site.name] for step in plans], sensitivity, value)
    start = {name: offer.plans[offer.free] for name, offer in offers.items()}
    heads = {site.name for site in sites if site.kind == "argmax"}
    squares, rows = (
        sorted(
            (
                move
                for name, offer in offers.items()
                if (name in heads) is head
                for move in _moves(name, offer)
            ),
            key=lambda move: move.price,  # stable: moves of one site stay in their order
        )
        for head in (False, True)
    )
    moves, losses = _merge(squares, rows, sensitivity)
    return Knob(start, [(move.site, offers[move.site].plans[move.index]) for move in moves], losses)


def _offer(
    site: Site, calibration: Calibration, plans: Sequence[SitePlan], sensitivity: Sensitivity, value: float
) -> _Offer:
    rows = rows_per_sample(site, calibration)
    # Budgets that a site cannot use give the same plan again.
    staged = list({id(plan): plan for plan in plans if plan.staged}.values())
    dense = next((plan for plan in plans if not plan.staged), None)
    if dense is None:
        dense = SitePlan(
            site.name, False, "it costs more quality than it saves work, at the model's one price"
        )
    saved = [0.0, *(value * saved_flops(site, plan, rows) for plan in staged)]
    lost = np.array([0.0, *(plan.lost_energy for plan in staged)])
    if site.kind != "argmax":
        lost = sensitivity.square(site.name, lost)
    return _Offer([dense, *staged], np.array(saved), lost)


def _moves(name: str, offer: _Offer) -> list[_Move]:
    """From what loses nothing to the largest saving, through all plans that no other beats in both."""
    front = [offer.free]
    for index in np.lexsort((-offer.saved, offer.lost)):
        if offer.lost[index] > 0 and offer.saved[index] > offer.saved[front[-1]]:
            front.append(int(index))
    saved, lost = offer.saved[front], offer.lost[front]
    moves, at = [], 0
    while at < len(front) - 1:
        prices = (lost[at + 1 :] - lost[at]) / (saved[at + 1 :] - saved[at])
        # The next corner of the hull, the furthest of equals; what lies between has its price.
        corner = at + len(prices) - int(np.argmin(prices[::-1]))
        price = float(prices.min())
        moves += [
            _Move(name, front[i], price, float(lost[i] - lost[i - 1])) for i in range(at + 1, corner + 1)
        ]
        at = corner
    return moves


def _merge(
    squares: Sequence[_Move], rows: Sequence[_Move], sensitivity: Sensitivity
) -> tuple[list[_Move], list[float]]:
    """Moves of ReLU sites and of heads in one order, and the predicted loss before and after each.

    Prices are mean squares per FLOP here and rows per FLOP there: the loss has a slope for the one, and a cost of a
    row for the other.
    """
    moves: list[_Move] = []
    losses = [0.0]
    square = changed = 0.0
    first = second = 0
    while first < len(squares) or second < len(rows):
        slope = sensitivity.slope(max(square, _LEAST_SQUARE))
        if first == len(squares) or (
            second < len(rows) and rows[second].price * sensitivity.row <= squares[first].price * slope
        ):
            moves.append(rows[second])
            changed += rows[second].lost * sensitivity.row
            second += 1
        else:
            moves.append(squares[first])
            square += squares[first].lost
            first += 1
        losses.append(sensitivity.loss(square) + changed)
    return moves, losses
