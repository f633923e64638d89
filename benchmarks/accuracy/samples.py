"""Data sets whose samples may be views of the same original, split so that no original is on two sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exprune_cli.data import DataSet


@dataclass(frozen=True)
class Samples:
    """Some samples, and which of them belong together.

    Attributes:
        data: The samples.
        groups: ``[n]`` int: the original that each comes from; only samples of different groups are
            independent of each other.
    """

    data: DataSet
    groups: np.ndarray

    def __len__(self) -> int:
        """Samples in the set."""
        return len(self.data)

    @property
    def draws(self) -> int:
        """How many groups there are."""
        return len(np.unique(self.groups))

    def split(self, fraction: float, seed: int) -> tuple[Samples, Samples]:
        """Two sets without a common group; ``fraction`` of the groups go to the first."""
        every = np.unique(self.groups)
        first = np.random.default_rng(seed).permutation(every)[: round(fraction * len(every))]
        inside = np.isin(self.groups, first)
        return self._at(np.flatnonzero(inside)), self._at(np.flatnonzero(~inside))

    def take(self, count: int, seed: int) -> Samples:
        """``count`` random samples, all if there are fewer."""
        return self._at(np.random.default_rng(seed).permutation(len(self))[:count])

    def standard_error(self, losses: np.ndarray, unit: float) -> float:
        """Of the mean of ``losses``, which are paired with the samples: groups vary, not samples.

        Args:
            losses: ``[n]``.
            unit: The smallest change of a sample's score. Samples without any change say that changes are
                rare, not that there are none: one further group is held to have half a change, as
                :func:`exprune_cli.certify.judge` does for samples.
        """
        _, at = np.unique(self.groups, return_inverse=True)
        sums = np.bincount(at, losses - np.mean(losses))
        count, many = len(losses), len(sums)
        variance = np.square(sums).sum() * many / max(many - 1, 1) / count**2
        return float(np.sqrt(variance + 0.25 * unit / (count * many**2)))

    def ahead(self, other: Samples) -> float:
        """How much less a mean here says of a mean over ``other`` samples than of the expected value.

        Returns:
            The factor on the standard error: ``other`` has one too, larger the fewer groups there are.
        """
        return float(np.sqrt(1 + self.draws / other.draws))

    def _at(self, positions: np.ndarray) -> Samples:
        positions = np.sort(positions)
        return Samples(self.data.at(positions), self.groups[positions])


def samples(data: DataSet) -> Samples:
    """A whole folder's samples, in their groups; those without are each a draw of its own.

    Means are over samples, as the other methods' papers have them; groups count in splits and standard errors.
    """
    if data.groups is None:
        return Samples(data, np.arange(len(data)))
    _, first, at = np.unique(data.groups, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))  # a group's number is its place, whatever it is called
    return Samples(data.alone(), in_order[at.reshape(-1)])
