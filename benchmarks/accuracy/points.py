"""What all methods have in common: scored candidates, the choice among them, and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.accuracy.cases import CHOSEN_AT
from benchmarks.accuracy.simulated import Simulated
from exprune_cli.counting import FlopsCounter
from exprune_cli.data import Batch, DataSet
from exprune_cli.measure import Baseline
from exprune_cli.metrics import Scorer
from exprune_cli.model import Model


@dataclass
class Score:
    """Share of the whole model's FLOPs that is cut, the drop of the metric, share of changed predictions."""

    cut: float
    drop: float
    changed: float


@dataclass
class Point:
    """A candidate: its numbers, and how it scores on validation and on test data."""

    setting: Any
    validation: Score
    test: Score | None = None


@dataclass
class Result:
    """What a method came to on a model.

    Attributes:
        method: As in the tables.
        points: Candidates; those that are chosen for some drop are scored on test data.
        seconds: Wall time of everything that was done before the test data were read.
        note: What was tried, e.g. the trial budget.
    """

    method: str
    points: list[Point]
    seconds: float
    note: str = ""
    chosen: dict[float, Point | None] = field(default_factory=dict)


def choose(points: Sequence[Point], target: float) -> Point | None:
    """The largest cut whose validation drop is within the target."""
    within = [p for p in points if p.validation.drop <= target and p.validation.cut > 0]
    return max(within, key=lambda p: p.validation.cut, default=None)


def chosen(points: Sequence[Point]) -> list[Point]:
    """The candidates that are run on test data: the choice for each of a few drops."""
    found = [choose(points, target) for target in CHOSEN_AT]
    return list({id(point): point for point in found if point is not None}.values())


class SimulatedScorer:
    """Scores settings of a simulated model on one data set, whose batches and dense outputs are kept."""

    def __init__(self, model: Model, data: DataSet, baseline: Baseline, batch: int = 20) -> None:
        self._model, self._data = model, data
        self._batches: list[tuple[Batch, list[np.ndarray]]] = []
        self._names = [value.name for value in model.proto.graph.output]
        counter = FlopsCounter(model.proto)
        for item in data.batches(batch):
            counter.add(item.feeds, [], item.count, item.where)
            self._batches.append((item, baseline.outputs(item, self._names)))
        self.dense = float(counter.sums.flops_dense or 0)

    def score(self, simulated: Simulated, cuts: Mapping[str, np.ndarray]) -> Score:
        """Runs all samples."""
        scorer = Scorer(self._model.proto, self._data, None, baseline=True)
        saved = 0.0
        for batch, dense in self._batches:
            values, less = simulated.run(batch.feeds, cuts)
            saved += less
            scorer.add(batch, values, dense)
        assert (
            scorer.scores is not None and scorer.baseline_scores is not None and scorer.agreement is not None
        )
        drop = float(np.mean(scorer.baseline_scores - scorer.scores))
        return Score(saved / self.dense, drop, 1 - scorer.agreement)
