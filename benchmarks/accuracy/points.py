"""What all methods have in common: scored candidates, the choice among them, and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from benchmarks.accuracy.cases import CHOSEN_AT
from benchmarks.accuracy.samples import Samples
from benchmarks.accuracy.simulated import Simulated
from exprune_cli.certify import score_unit
from exprune_cli.counting import FlopsCounter
from exprune_cli.data import Batch
from exprune_cli.measure import Baseline
from exprune_cli.metrics import Scorer
from exprune_cli.model import Model

#: Level of a choice, one-sided. At 95 %, as ``optimize`` has, one choice in twenty loses more on the test data
#: than it may, and there are dozens: of models, methods and drops.
LEVEL = 0.975


@dataclass
class Score:
    """How a setting does on a set of samples.

    Attributes:
        cut: Share of the whole model's FLOPs that is cut.
        drop: Mean drop of the metric.
        changed: Share of changed predictions.
        error: Standard error of ``drop``, originals being independent of each other.
        draws: How many originals ``error`` is from; 0 for any number.
    """

    cut: float
    drop: float
    changed: float
    error: float = 0.0
    draws: int = 0

    def limit(self, ahead: float) -> float:
        """The drop that choices are made by: an upper limit, at :data:`LEVEL`, of a drop elsewhere.

        Where pruning gains on these samples it is held to lose nothing: of many candidates some are lucky.
        Of few originals the standard error is itself uncertain: Student's quantile stands for the normal one.

        Args:
            ahead: Standard error of a drop that is foretold by this one, in terms of this one's: 1 for the
                expected drop, more for that on other samples, see :meth:`Samples.ahead`.
        """
        quantile = float(stdtrit(self.draws - 1, LEVEL) if self.draws > 1 else ndtri(LEVEL))
        return max(self.drop, 0.0) + quantile * ahead * self.error


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
        seconds: Processor time of everything that was done before the test data were read, on one thread.
        note: What was tried, e.g. the trial budget.
    """

    method: str
    points: list[Point]
    seconds: float
    note: str = ""
    chosen: dict[float, Point | None] = field(default_factory=dict)


def choose(points: Sequence[Point], target: float, ahead: float) -> Point | None:
    """The largest cut for which the drop that validation foretells is within the target."""
    within = [p for p in points if p.validation.limit(ahead) <= target and p.validation.cut > 0]
    return max(within, key=lambda p: p.validation.cut, default=None)


def chosen(points: Sequence[Point], ahead: float) -> list[Point]:
    """The candidates that are run on test data: the choice for each of a few drops."""
    found = [choose(points, target, ahead) for target in CHOSEN_AT]
    return list({id(point): point for point in found if point is not None}.values())


class SimulatedScorer:
    """Scores settings of a simulated model on one data set, whose batches and dense outputs are kept.

    Attributes:
        dense: FLOPs of the model as it is, on all samples.
        unit: The smallest change of a sample's score.
    """

    def __init__(
        self, model: Model, samples: Samples, baseline: Baseline, metric: str | None = None, batch: int = 4
    ) -> None:
        self._model, self._samples, self._metric = model, samples, metric
        self._batches: list[tuple[Batch, list[np.ndarray]]] = []
        self._names = [value.name for value in model.proto.graph.output]
        counter = FlopsCounter(model.proto, threads=1)
        scorer = Scorer(model.proto, samples.data, metric, baseline=True)
        for item in samples.data.batches(batch):
            counter.add(item.feeds, [], item.count, item.where)
            outputs = baseline.outputs(item, self._names)
            self._batches.append((item, outputs))
            scorer.add(item, outputs, outputs)
        self.dense = float(counter.sums.flops_dense or 0)
        assert scorer.baseline_scores is not None
        self.unit = score_unit(scorer.baseline_scores)

    def score(self, simulated: Simulated, cuts: Mapping[str, np.ndarray]) -> Score:
        """Runs all samples."""
        scorer = Scorer(self._model.proto, self._samples.data, self._metric, baseline=True)
        saved = 0.0
        for batch, dense in self._batches:
            values, less = simulated.run(batch.feeds, cuts)
            saved += less
            scorer.add(batch, values, dense)
        assert (
            scorer.scores is not None and scorer.baseline_scores is not None and scorer.agreement is not None
        )
        losses = scorer.baseline_scores - scorer.scores
        error = self._samples.standard_error(losses, self.unit)
        return Score(
            saved / self.dense, float(np.mean(losses)), 1 - scorer.agreement, error, self._samples.draws
        )
