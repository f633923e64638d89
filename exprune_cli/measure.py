"""Measuring a model on data: FLOPs really spent, and what the results are worth.

Data is streamed. What grows with its size are a few numbers per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.counting import FlopsCounter, FlopsSums
from exprune_cli.distribution import spread
from exprune_cli.errors import ExpruneError
from exprune_cli.instrument import with_outputs
from exprune_cli.model import model_inputs
from exprune_cli.sessions import open_session, run
from exprune_cli.weights import kept

if TYPE_CHECKING:
    import onnxruntime

    from exprune_cli.data import Batch, DataSet
    from exprune_cli.metrics import MetricFunction
    from exprune_cli.progress import Progress
    from exprune_cli.report_data import Spread


@dataclass
class Measurement(FlopsSums):
    """Sums over all samples of a data set, and a few numbers per sample.

    Attributes:
        metric: Name of the metric; None if no metric could be applied.
        scores_optimized: ``[samples]`` float64: the metric per sample.
        scores_baseline: The same for the baseline.
        agreement: Share of samples with the baseline's prediction, a group counting once; None without a baseline.
        groups: ``[samples]`` uint64: which samples belong together; None where each is on its own.
        pruned_spread: Of the share that was pruned, over single runs, by staged site.
        reduction_spread: Of the share of the model's FLOPs that was saved, over single runs.
    """

    metric: str | None = None
    scores_optimized: np.ndarray | None = None
    scores_baseline: np.ndarray | None = None
    agreement: float | None = None
    groups: np.ndarray | None = None
    pruned_spread: dict[str, Spread] = field(default_factory=dict)
    reduction_spread: Spread | None = None


def measure(
    proto: onnx.ModelProto,
    data: DataSet,
    *,
    batch_size: int | None = None,
    baseline: onnx.ModelProto | Baseline | None = None,
    metric: str | MetricFunction | None = None,
    progress: Progress | None = None,
    use_runtime: bool = True,
    any_metric: bool = False,
    spread_over: int = 0,
    stage: str = "measuring",
    threads: int = 0,
) -> Measurement:
    """Runs a model, and its baseline if there is one, over a data set.

    The predictions come from the model as it is; only the survivor counts are exposed. The
    FLOPs come from the shapes of every batch, so they are exact also where sizes vary.

    Args:
        proto: The model, optimised or not. For one that is not, spent equals dense.
        data: Its samples.
        batch_size: Samples per run, for models with a dynamic batch; None for as many as make up
            4 MiB of input, at most 32.
        baseline: The model to compare with; a :class:`Baseline` to compare several with it.
        metric: See :mod:`exprune_cli.metrics`; None for what fits the model and the data.
        progress: Where progress is shown.
        use_runtime: Whether staged sites run natively, if the runtime is there.
        any_metric: Where labels fit no output and no ``metric`` is given, measure the agreement
            instead of failing, or nothing without a baseline.
        spread_over: Samples, at most, that are run once more, one at a time, for how pruning is spread.
        stage: What progress is called.
        threads: Threads inside an operator; 0 for ONNX Runtime's default. A :class:`Baseline` has its own.

    Raises:
        ExpruneError: The models' interfaces differ, or a model fails on a sample.
    """
    reference = Baseline(baseline, threads) if isinstance(baseline, onnx.ModelProto) else baseline
    if reference is not None:
        check_interface(proto, reference.proto)
    counter = FlopsCounter(proto, use_runtime=use_runtime, threads=threads)
    size = batch_size or _fitting_batch(data)
    outputs = [value.name for value in proto.graph.output]
    if kept(proto):  # one session at a time: each has the weights in memory
        counter.prepare(data, {size, 1} if spread_over else {size})
        if reference is not None:
            reference.prepare(data, size, outputs)
    session = open_session(
        proto,
        addition=with_outputs(proto, counter.survivor_names),
        threads=threads,
        use_runtime=use_runtime,
    )
    from exprune_cli.metrics import Scorer

    scorer: Scorer | None = Scorer(proto, data, metric, baseline=baseline is not None)
    if progress is not None:
        progress.stage(stage, len(data))
    for batch in data.batches(size):
        values = run(session, batch.feeds, batch.where, [*outputs, *counter.survivor_names])
        counter.add(batch.feeds, values[len(outputs) :], batch.count, batch.where)
        dense = reference.outputs(batch, outputs) if reference is not None else None
        if scorer is not None:
            try:
                scorer.add(batch, values[: len(outputs)], dense)
            except ExpruneError:
                if not any_metric or metric is not None or counter.sums.samples > batch.count:
                    raise
                scorer = Scorer(proto, data, "agreement", baseline=True) if dense is not None else None
                if scorer is not None:
                    scorer.add(batch, values[: len(outputs)], dense)
        if progress is not None:
            progress.advance(batch.count)
    result = Measurement(**vars(counter.sums))
    if scorer is not None:
        result.metric, result.groups = scorer.metric, data.groups
        result.scores_optimized = scorer.scores
        result.scores_baseline = scorer.baseline_scores
        result.agreement = scorer.agreement
    if spread_over and counter.survivor_names:
        some = data.take(spread_over, 0) if len(data) > spread_over else data
        _add_spread(result, counter, session, some, progress)
    return result


def _add_spread(
    result: Measurement,
    counter: FlopsCounter,
    session: onnxruntime.InferenceSession,
    data: DataSet,
    progress: Progress | None,
) -> None:
    """Runs samples one at a time. The sums of ``counter`` are of no use after it."""
    pruned: dict[str, list[float]] = {}
    reductions: list[float | None] = []
    counter.sums = FlopsSums()
    if progress is not None:
        progress.stage("measuring single samples", len(data))
    for batch in data.batches(1):
        counter.add(
            batch.feeds,
            run(session, batch.feeds, batch.where, counter.survivor_names),
            batch.count,
            batch.where,
        )
        for name, share in counter.pruned.items():
            pruned.setdefault(name, []).append(share)
        reductions.append(counter.reduction)
        if progress is not None:
            progress.advance(batch.count)
    for name, shares in pruned.items():
        found = spread(shares)
        if found is not None:
            result.pruned_spread[name] = found
    known = [value for value in reductions if value is not None]
    result.reduction_spread = spread(known) if len(known) == len(reductions) else None


def _fitting_batch(data: DataSet) -> int:
    first = next(iter(data.batches(1)), None)
    size = sum(value.nbytes for value in first.feeds.values()) if first else 0
    return max(1, min(32, 2**22 // max(size, 1)))


class Baseline:
    """The original model on one data set, for several comparisons.

    Its outputs are kept as long as all of them are small (classes, not feature maps); then it is run
    only once for every batch.
    """

    _KEPT_BYTES = 2**27

    def __init__(self, proto: onnx.ModelProto, threads: int = 0) -> None:
        self.proto = proto
        self._threads = threads
        self._session: onnxruntime.InferenceSession | None = None
        self._kept: dict[bytes, list[np.ndarray]] = {}
        self._bytes = 0

    def prepare(self, data: DataSet, batch_size: int, names: Sequence[str]) -> None:
        """Runs all batches, as far as their outputs can be kept, and gives the session's memory back."""
        for batch in data.batches(batch_size):
            if self._bytes > self._KEPT_BYTES:
                break
            self.outputs(batch, names)
        self._session = None

    def outputs(self, batch: Batch, names: Sequence[str]) -> list[np.ndarray]:
        """The outputs ``names`` for a batch.

        Raises:
            ExpruneError: The model fails on it.
        """
        key = batch.ids.tobytes()
        if key in self._kept:
            return self._kept[key]
        if self._session is None:
            self._session = open_session(self.proto, threads=self._threads, where="the baseline")
        values = run(self._session, batch.feeds, batch.where, names)
        self._bytes += sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        if self._bytes <= self._KEPT_BYTES:
            self._kept[key] = values
        return values


def check_interface(proto: onnx.ModelProto, baseline: onnx.ModelProto) -> None:
    """Checks that two models can be compared on the same data.

    Raises:
        ExpruneError: They have other inputs or outputs.
    """
    for what, ours, theirs in (
        ("inputs", model_inputs(proto), model_inputs(baseline)),
        ("outputs", list(proto.graph.output), list(baseline.graph.output)),
    ):
        first, second = (
            [(v.name, v.type.tensor_type.elem_type) for v in values] for values in (ours, theirs)
        )
        if sorted(first) != sorted(second):
            raise ExpruneError(
                f"the baseline has other {what} ({_describe(theirs)}) than the model ({_describe(ours)}): "
                "give the model that it was made from"
            )


def _describe(values: Sequence[onnx.ValueInfoProto]) -> str:
    parts = []
    for value in values[:4]:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        parts.append(f"{value.name}: {kind}")
    return ", ".join(parts) + (", ..." if len(values) > 4 else "")
