"""How much data there is, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """How many samples there are, and of how many groups.

    Attributes:
        samples: Samples.
        groups: Groups; None where samples are in none, and each is a draw of its own.
    """

    samples: int
    groups: int | None = None

    @property
    def units(self) -> int:
        """Independent draws."""
        return self.samples if self.groups is None else self.groups

    @property
    def text(self) -> str:
        """Both numbers in words: ``300 groups (4000 samples)``."""
        return " ".join(self._parts[:1] + [f"({part})" for part in self._parts[1:]])

    @property
    def in_brackets(self) -> str:
        """The same where it stands in brackets: ``300 groups, 4000 samples``."""
        return ", ".join(self._parts)

    @property
    def unit(self) -> str:
        """What a draw is called."""
        return "sample" if self.groups is None else "group"

    @property
    def _parts(self) -> list[str]:
        counts = [(self.groups, "group"), (self.samples, "sample")]
        return [
            f"{count} {noun}" if count == 1 else f"{count} {noun}s"
            for count, noun in counts
            if count is not None
        ]
