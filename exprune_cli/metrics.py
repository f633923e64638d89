"""What a model's outputs are worth: one score per sample, higher is better.

A sample's score is the mean over its positions (and over the outputs that a metric looks at). Where samples
are in groups, a group's score is the mean over its samples, and a mean score is one over groups.

``accuracy``
    1 where the prediction equals the label, else 0. The first output that fits the labels is
    used: an integer output as it is, or the argmax of a float output with one more axis than the
    label: the last, or axis 1 for ``[N, C, ...]``.
``agreement``
    1 where the prediction equals the original model's, else 0; 0 for an output of another shape.
    Integer outputs are compared as they are, float outputs with two or more entries on the last
    axis by their argmax. Other float outputs count only if there is no such output: they agree
    where they differ by less than 1 %.
``mse``
    Minus the mean squared difference to the original model's float outputs: negated, so that
    higher is better; the original's own score is 0.
``cosine``
    The cosine between an output of a sample and the original model's.
``FILE.py:FUNC``
    ``FUNC(outputs, label, baseline)`` is called once per sample, with the outputs by name (they
    keep their first axis), the sample's label or None, and the original model's outputs (empty
    if it is not run). It returns a number, or an array that is averaged.

A drop is the baseline's mean score minus the optimised model's, so it has the metric's own unit.
Without a name: ``accuracy`` if there are labels, else ``agreement``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from exprune_cli.data.groups import means_by_group
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.record import read_record
from exprune_cli.top_k import as_scores

if TYPE_CHECKING:
    import onnx

    from exprune_cli.data import Batch, DataSet

Outputs = Mapping[str, np.ndarray]
#: Score of a sample from its outputs, its label, the original model's outputs, and its name.
ScoreSample = Callable[[Outputs, "np.ndarray | None", "Outputs | None", str], float]

#: Scores a sample from its outputs by name, its label or None, and the original model's outputs.
MetricFunction = Callable[["dict[str, np.ndarray]", "np.ndarray | None", "dict[str, np.ndarray]"], ArrayLike]

_CLOSE = 1e-2


@dataclass(frozen=True)
class Metric:
    """A way to score samples.

    Attributes:
        name: As on the command line.
        needs_labels: Whether it compares with labels.
        needs_baseline: Whether it compares with the original model's outputs.
        score_sample: Scores one sample.
    """

    name: str
    needs_labels: bool
    needs_baseline: bool
    score_sample: ScoreSample

    def scores(
        self,
        outputs: Outputs,
        *,
        count: int = 1,
        label: np.ndarray | None = None,
        baseline: Outputs | None = None,
        where: str = "the sample",
    ) -> np.ndarray:
        """Scores the samples of a batch, ``[count]`` float64, higher is better.

        Args:
            outputs: The model's outputs by name, in the model's order.
            count: Samples in the batch; each is an equal share of every array's first axis.
            label: Their labels.
            baseline: The original model's outputs.
            where: The batch's name in messages.

        Raises:
            ExpruneError: The metric does not fit the outputs or labels, or fails.
        """
        if self.needs_labels and label is None:
            raise UsageError(f"--metric {self.name} needs labels: store them under 'label' in *.npz files")
        if self.needs_baseline and baseline is None:
            raise UsageError(
                f"--metric {self.name} compares with the original model: give it with --baseline"
            )
        result = np.empty(count)
        for index in range(count):
            one = {name: _share(value, index, count, name, where) for name, value in outputs.items()}
            own = None if label is None else _share(label, index, count, "label", where)
            original = None
            if baseline is not None:
                original = {n: _share(value, index, count, n, where) for n, value in baseline.items()}
            result[index] = self.score_sample(one, own, original, where)
        return result


def drop(baseline: np.ndarray, optimized: np.ndarray) -> float:
    """How much worse the optimised model is on average, in the metric's unit."""
    return float(np.mean(baseline) - np.mean(optimized))


def metric_name(metric: str | MetricFunction) -> str:
    """How a metric is called in reports: a function by its module and name."""
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "__qualname__", type(metric).__name__)
    return f"{getattr(metric, '__module__', '?')}:{name}"


def metric_for(name: str | MetricFunction | None, has_labels: bool) -> Metric:
    """The metric of that name, that function as a metric, or the one that fits the data.

    Raises:
        UsageError: There is no such metric, or it needs labels and there are none.
    """
    if callable(name):
        label = metric_name(name)
        return Metric(label, False, False, _from_function(label, name))
    name = name or ("accuracy" if has_labels else "agreement")
    if name in _BUILT_IN:
        metric = _BUILT_IN[name]
        if metric.needs_labels and not has_labels:
            raise UsageError(f"--metric {name} needs labels: store them under 'label' in *.npz files")
        return metric
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        return Metric(name, False, False, _from_file(name, Path(file), function))
    known = ", ".join(_BUILT_IN)
    raise UsageError(f"--metric {name}: no such metric: give one of {known}, or FILE.py:FUNC")


class Scorer:
    """Scores a model, and the original beside it, batch by batch.

    Attributes:
        metric: The metric's name; None if there are neither labels nor an original to compare with.
    """

    def __init__(
        self, proto: onnx.ModelProto, data: DataSet, metric: str | MetricFunction | None, baseline: bool
    ) -> None:
        """Args:
        proto: The model; says how its outputs are called.
        data: The samples.
        metric: The metric's name or function, None for what fits.
        baseline: Whether the original is run too.

        Raises:
            UsageError: There is no such metric, or it lacks labels or an original.
        """
        self._names = [value.name for value in proto.graph.output]
        record = read_record(proto)
        self._top_k = record.top_k if record else {}
        self._metric: Metric | None = None
        if metric is not None or data.has_labels or baseline:
            self._metric = metric_for(metric, data.has_labels)
        self.metric = self._metric.name if self._metric else None
        if self._metric and self._metric.needs_baseline and not baseline:
            raise UsageError(
                f"--metric {self.metric} compares with the original model: give it with --baseline"
            )
        self._baseline = baseline
        self._groups = data.groups
        self._scores: list[np.ndarray] = []
        self._baseline_scores: list[np.ndarray] = []
        self._agreement: list[np.ndarray] = []

    def add(self, batch: Batch, outputs: Sequence[np.ndarray], baseline: Sequence[np.ndarray] | None) -> None:
        """Adds a batch's outputs and the original's, both in the model's order."""
        if self._metric is None:
            return
        ours = as_scores(_arrays(self._names, outputs), self._top_k)
        theirs = None if baseline is None else as_scores(_arrays(self._names, baseline), self._top_k)
        count, label, where = batch.count, batch.label, batch.where

        def score(metric: Metric, values: Outputs) -> np.ndarray:
            return metric.scores(values, count=count, label=label, baseline=theirs, where=where)

        self._scores.append(score(self._metric, ours))
        if theirs is not None:
            agreement = _BUILT_IN["agreement"]
            self._baseline_scores.append(score(self._metric, theirs))
            self._agreement.append(self._scores[-1] if self._metric is agreement else score(agreement, ours))

    @property
    def scores(self) -> np.ndarray | None:
        """``[samples]`` float64; None without a metric."""
        return np.concatenate([np.empty(0), *self._scores]) if self._metric else None

    @property
    def baseline_scores(self) -> np.ndarray | None:
        """``[samples]`` float64: the original's; None if it was not run."""
        return np.concatenate([np.empty(0), *self._baseline_scores]) if self._baseline else None

    @property
    def agreement(self) -> float | None:
        """Mean agreement with the original; None if it was not run."""
        if not self._agreement:
            return None
        return float(means_by_group(np.concatenate(self._agreement), self._groups).mean())


def _arrays(names: Sequence[str], values: Sequence[object]) -> dict[str, np.ndarray]:
    """The outputs that are tensors; sequences and maps cannot be scored."""
    return {n: value for n, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def _share(value: np.ndarray, index: int, count: int, name: str, where: str) -> np.ndarray:
    """A sample's part of a batch's array."""
    if count == 1:
        return value
    if not value.ndim or value.shape[0] % count:
        raise ExpruneError(
            f"{where}: '{name}' has shape {value.shape}, which does not divide into {count} samples: "
            "use a batch size of 1"
        )
    size = value.shape[0] // count
    return value[index * size : (index + 1) * size]


# --- the built-in ones -----------------------------------------------------------------------------


def _accuracy(outputs: Outputs, label: np.ndarray | None, baseline: Outputs | None, where: str) -> float:
    assert label is not None
    if not label.size:
        raise ExpruneError(f"{where}: the label is empty (shape {label.shape}): there is nothing to compare")
    wanted = label.reshape(1) if not label.ndim else label
    for value in outputs.values():
        found = _predictions(value, wanted.shape)
        if found is not None:
            return float(np.mean(found.reshape(-1) == wanted.reshape(-1)))
    shapes = ", ".join(f"'{name}' {value.dtype} {value.shape}" for name, value in outputs.items())
    raise ExpruneError(
        f"{where}: the label has shape {label.shape}, which fits none of the outputs ({shapes}): accuracy "
        "needs one class index per position; for anything else give --metric FILE.py:FUNC"
    )


def _predictions(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Class indices in the order of a label of this shape; None if the output does not fit it."""
    if value.dtype.kind in "iub":
        return value if _same_positions(value.shape, shape) else None
    if value.dtype.kind != "f" or value.ndim < 1:
        return None
    for axis in (value.ndim - 1, 1):
        if axis < value.ndim and value.shape[axis] > 1:
            found: np.ndarray = value.argmax(axis=axis)
            if _same_positions(found.shape, shape):
                return found
    return None


def _same_positions(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether shapes are equal but for axes of size 1 (a kept axis, a column of labels)."""
    return [size for size in first if size != 1] == [size for size in second if size != 1]


def _agreement(outputs: Outputs, label: np.ndarray | None, baseline: Outputs | None, where: str) -> float:
    exact, close = [], []
    for ours, theirs in _pairs(outputs, baseline, where):
        if ours.shape != theirs.shape:
            exact.append(0.0)
        elif ours.dtype.kind != "f":
            exact.append(np.mean(ours == theirs))
        elif ours.ndim and ours.shape[-1] > 1:
            exact.append(np.mean(ours.argmax(axis=-1) == theirs.argmax(axis=-1)))
        else:
            close.append(np.mean(np.isclose(ours, theirs, rtol=_CLOSE, atol=1e-6, equal_nan=True)))
    return float(np.mean(exact or close))


def _mse(outputs: Outputs, label: np.ndarray | None, baseline: Outputs | None, where: str) -> float:
    pairs = _float_pairs(outputs, baseline, "mse", where)
    squares = [np.square(ours - theirs).reshape(-1) for ours, theirs in pairs]
    return -float(np.mean(np.concatenate(squares)))


def _cosine(outputs: Outputs, label: np.ndarray | None, baseline: Outputs | None, where: str) -> float:
    values = []
    for ours, theirs in _float_pairs(outputs, baseline, "cosine", where):
        lengths = np.linalg.norm(ours.reshape(-1)) * np.linalg.norm(theirs.reshape(-1))
        # Two zero vectors are the same, a zero vector and another are as unlike as can be told.
        same = 1.0 if np.array_equal(ours, theirs) else 0.0
        values.append(float(np.vdot(ours, theirs) / lengths) if lengths > 0 else same)
    return float(np.mean(values))


def _pairs(outputs: Outputs, baseline: Outputs | None, where: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """A sample's outputs and the original model's, without those that are empty in both."""
    assert baseline is not None
    pairs = [(ours, baseline[name]) for name, ours in outputs.items() if ours.size or baseline[name].size]
    if not pairs:
        raise ExpruneError(f"{where}: the model's outputs are empty: there is nothing to compare")
    return pairs


def _float_pairs(
    outputs: Outputs, baseline: Outputs | None, metric: str, where: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(a, b) for a, b in _pairs(outputs, baseline, where) if a.dtype.kind == "f"]
    if not pairs:
        raise ExpruneError(f"--metric {metric} needs a float output, the model has none: use agreement")
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise ExpruneError(
                f"{where}: an output has shape {ours.shape}, the original model's has {theirs.shape}: "
                f"--metric {metric} has no value there"
            )
    if not all(np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs):
        raise ExpruneError(f"{where}: an output is NaN or infinite: --metric {metric} has no value there")
    return [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]


_BUILT_IN = {
    "accuracy": Metric("accuracy", True, False, _accuracy),
    "agreement": Metric("agreement", False, True, _agreement),
    "mse": Metric("mse", False, True, _mse),
    "cosine": Metric("cosine", False, True, _cosine),
}


# --- the user's own --------------------------------------------------------------------------------


def _from_file(name: str, path: Path, function: str) -> ScoreSample:
    if not os.path.isfile(path):  # unlike Path.is_file also for names that no file can have
        raise UsageError(f"--metric {name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"exprune_metric_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--metric {name}: {path} cannot be imported: {_describe(error)}") from error
    call = getattr(module, function, None)
    if not callable(call):
        raise UsageError(f"--metric {name}: {path} has no function '{function}'")
    return _from_function(name, call)


def _from_function(name: str, call: MetricFunction) -> ScoreSample:
    def score(outputs: Outputs, label: np.ndarray | None, baseline: Outputs | None, where: str) -> float:
        try:
            result = np.asarray(call(dict(outputs), label, dict(baseline or {})), np.float64)
        except Exception as error:
            raise ExpruneError(f"{where}: --metric {name} fails: {_describe(error)}") from error
        if not result.size or not np.isfinite(result).all():
            raise ExpruneError(
                f"{where}: --metric {name} returned {result!s:.60}: it must return finite numbers"
            )
        return float(result.mean())

    return score


def _describe(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
