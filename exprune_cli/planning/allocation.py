"""One price for the whole model: every site is as bold as its FLOPs are worth.

Each site offers plans along its own budget. At a price ``p`` per saved FLOP it takes the plan with the
largest ``p * saved - weight * lost``: marginal loss per saved FLOP is then equal across sites (the
Lagrangian of "save most at a given total loss"). The weights say what a site's lost energy does to
the model's output; :mod:`exprune_cli.sensitivity` measures them.

Errors of ReLU sites add up as mean squares of the output, those of an ArgMax head are changed rows.
Both are counted in changed predictions: for margins that have the density ``d`` at zero, an error of
mean square ``S`` on the margin changes ``d sqrt(S / (2 pi))`` of them (half of the normal error's mean
absolute value, to first order).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exprune_cli.planning.chunks import plan_saving
from exprune_cli.sites import Calibration, Site, SitePlan

#: Budgets of the plans that a site offers: shares of its energy (or of a head's rows).
OFFERS = tuple(float(value) for value in np.geomspace(2e-5, 0.5, 26))
#: The knob: predicted loss of the whole model, as a share of changed predictions, or as the
#: relative error of its outputs. Predictions can be too low by an order of magnitude, so it starts far down.
LEVELS = tuple(float(value) for value in 3e-4 * 1500 ** (np.arange(-16, 47) / 46))
#: Steps of a walk that certifies: each is a pass over all held-out samples, so it takes every second level.
_WALK, _EVERY = 18, 2


@dataclass(frozen=True)
class Sensitivity:
    """What errors of sites do to the model's output.

    Attributes:
        errors: By site: lost energy shares, rising, and the mean squares of the output's error that they
            were measured to make. In between they follow a power of the share; they start linearly.
        density: Of the margins at zero, where predictions are compared; None where values are: a loss
            is then the root of the mean square, relative to the values'.
    """

    errors: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    density: float | None

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
        return self._scale * float(np.sqrt(square))

    def slope(self, square: float) -> float:
        """Derivative of :meth:`loss`."""
        return self._scale / (2 * float(np.sqrt(square)) + 1e-30)

    @property
    def _scale(self) -> float:
        return 1.0 if self.density is None else self.density / float(np.sqrt(2 * np.pi))


def walk_levels(max_drop: float) -> slice:
    """The part of :data:`LEVELS` that a walk for this drop takes, chosen before any sample is seen.

    It starts an order of magnitude below the drop: predictions are rough.
    """
    levels = LEVELS[::_EVERY]
    first = min(int(np.searchsorted(levels, max_drop / 10)), len(levels) - _WALK)
    return slice(_EVERY * first, _EVERY * (first + _WALK), _EVERY)


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


def allocate(
    sites: Sequence[Site],
    calibration: Calibration,
    plans: Sequence[Mapping[str, SitePlan]],
    sensitivity: Sensitivity,
    levels: Sequence[float] = LEVELS,
    worth: Mapping[str, float] | None = None,
) -> list[dict[str, SitePlan]]:
    """Chooses among each site's plans by one price, once per level of predicted loss.

    Args:
        sites: From ``match``.
        calibration: From ``observe``; says how many rows a site has per sample.
        plans: Plans of all sites, once per budget that they may lose, rising.
        sensitivity: Weights of the ReLU sites.
        levels: Predicted losses that must not be exceeded, rising.
        worth: By site, what a saved FLOP is worth, e.g. the microseconds that it was measured to save;
            None: the same everywhere. A site that is not named is worth nothing.

    Returns:
        For each level, plans by site name.
    """
    offers = {}
    for site in sites:
        value = 1.0 if worth is None else worth.get(site.name, 0.0)
        offers[site.name] = _offer(site, calibration, [step[site.name] for step in plans], sensitivity, value)
    kinds = {site.name: site.kind for site in sites}
    return [_at_level(offers, kinds, sensitivity, level) for level in levels]


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


def _at_level(
    offers: Mapping[str, _Offer], kinds: Mapping[str, str], sensitivity: Sensitivity, level: float
) -> dict[str, SitePlan]:
    """The boldest choice of one price whose predicted loss is within ``level``."""
    low, high = 1e-30, 1e30
    chosen = _at_price(offers, kinds, sensitivity, low)[0]
    for _ in range(160):
        middle = float(np.sqrt(low * high))
        trial, loss = _at_price(offers, kinds, sensitivity, middle)
        if loss <= level:
            low, chosen = middle, trial
        else:
            high = middle
        if high / low < 1.0001:
            break
    return {name: offers[name].plans[index] for name, index in chosen.items()}


def _at_price(
    offers: Mapping[str, _Offer], kinds: Mapping[str, str], sensitivity: Sensitivity, price: float
) -> tuple[dict[str, int], float]:
    """What every site takes, and the predicted loss; ``price`` is in mean squares per FLOP."""
    chosen: dict[str, int] = {}
    square = 0.0
    for name, offer in offers.items():
        if kinds[name] != "argmax":
            chosen[name] = int(np.argmax(price * offer.saved - offer.lost))
            square += float(offer.lost[chosen[name]])
    loss = sensitivity.loss(square)
    # Where nothing else is lost the root has no finite slope; a head is then as dear as at a small loss.
    slope = sensitivity.slope(max(square, 1e-8))
    for name, offer in offers.items():
        if kinds[name] == "argmax":
            chosen[name] = int(np.argmax(price * slope * offer.saved - offer.lost))
            loss += float(offer.lost[chosen[name]])
    return chosen, loss
