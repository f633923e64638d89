"""Latency of two models on the same inputs, in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.onnxruntime_errors import first_line, from_onnxruntime
from exprune_cli.sessions import REST, Feeds, open_session, packs_weights
from exprune_cli.weights import kept

#: Times that all inputs are run, at most, whenever a large model is open.
_ALONE_TURNS = 4

if TYPE_CHECKING:
    from exprune_cli.progress import Progress


@dataclass
class Latency:
    """Times of two models on the same inputs, in turn, in one process.

    Attributes:
        dense_ms: Median time of the baseline per run; None without a baseline.
        ms: Median time of the model per run.
        speedup: Median over the pairs of baseline time by model time; None without a baseline.
        runs: Timed runs of each model.
        threads: Threads inside an operator.
        batch: First size of the first input.
        binding: ``iobinding`` (inputs bound before the clock starts) or ``run``.
        times_ms: ``[runs]`` times of the model, in the order they were taken.
        dense_times_ms: The same for the baseline, in pairs with ``times_ms``.
    """

    dense_ms: float | None
    ms: float
    speedup: float | None
    runs: int
    threads: int
    batch: int | None
    binding: str
    times_ms: np.ndarray = field(default_factory=lambda: np.empty(0))
    dense_times_ms: np.ndarray | None = None


def latency(
    baseline: onnx.ModelProto | None,
    optimized: onnx.ModelProto,
    feeds: Sequence[Feeds],
    threads: int = 1,
    *,
    rounds: int = 7,
    min_runs: int = 60,
    warm_up: int = 3,
    max_seconds: float = 20.0,
    use_runtime: bool = True,
    progress: Progress | None = None,
    stage: str = "timing",
) -> Latency:
    """Times two models in turn: A B, then B A, on every input, for several rounds.

    Both sides of a pair see the same input within one run's time of each other, so that a
    machine that changes its speed changes both. Plain medians follow for reading, the
    speed-up is the median of the paired ratios.

    Args:
        baseline: The dense model; None times ``optimized`` alone.
        optimized: The model.
        feeds: Inputs of one run each; all are used in every round.
        threads: Threads inside an operator, for both.
        rounds: Least number of rounds.
        min_runs: Least number of pairs; rounds are added until it is reached.
        warm_up: Untimed runs of each model on the first input.
        max_seconds: Stops after the round in which this time is over.
        use_runtime: Whether staged sites run natively, if the runtime is there.
        progress: Where progress is shown.
        stage: What it is called there.

    Raises:
        ExpruneError: A model fails on an input, or there is none.
    """
    if not feeds:
        raise ExpruneError("there is no sample to time")
    binding = all(
        isinstance(v, np.ndarray) and v.dtype.kind in "fiub" for feed in feeds for v in feed.values()
    )
    models = [optimized] if baseline is None else [baseline, optimized]

    def open_timer(index: int) -> _Timer:
        timer = _Timer(models[index], threads, binding, use_runtime)
        timer.bind(feeds[0])
        for _ in range(warm_up):
            timer.time()
        return timer

    if len(models) > 1 and any(isinstance(model, onnx.ModelProto) and kept(model) for model in models):
        times = _alone(open_timer, feeds, progress, stage, max_seconds)
    else:
        total = max(rounds, -(-min_runs // len(feeds)))
        sides = [open_timer(index) for index in range(len(models))]
        times = _in_turn(sides, feeds, progress, stage, total, max_seconds, threads)
    ours = np.array(times[-1])
    dense = np.array(times[0]) if baseline is not None else None
    first = next((value for value in feeds[0].values() if value.ndim), None)
    return Latency(
        dense_ms=None if dense is None else float(np.median(dense)) * 1e3,
        ms=float(np.median(ours)) * 1e3,
        speedup=None if dense is None else float(np.median(dense / ours)),
        runs=len(ours),
        threads=threads,
        batch=None if first is None else int(first.shape[0]),
        binding="iobinding" if binding else "run",
        times_ms=ours * 1e3,
        dense_times_ms=None if dense is None else dense * 1e3,
    )


def _in_turn(
    sides: Sequence[_Timer],
    feeds: Sequence[Feeds],
    progress: Progress | None,
    stage: str,
    total: int,
    max_seconds: float,
    threads: int,
) -> list[list[float]]:
    """Seconds of each side, in pairs."""
    if progress is not None:
        progress.stage(stage, total)
    times: list[list[float]] = [[] for _ in sides]
    start = time.perf_counter()
    for turn in range(total):
        for feed in feeds:
            for index in range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides))):
                sides[index].bind(feed)
                if threads != 1 and len(sides) > 1:
                    # The other session's threads have to sleep, and this one's to be awake.
                    time.sleep(REST)
                    sides[index].time()
                times[index].append(sides[index].time())
        if progress is not None:
            progress.advance()
        if time.perf_counter() - start > max_seconds:
            break
    return times


def _alone(
    open_timer: Callable[[int], _Timer],
    feeds: Sequence[Feeds],
    progress: Progress | None,
    stage: str,
    max_seconds: float,
) -> list[list[float]]:
    """As :func:`_in_turn`, for models of which only one fits into memory: A, B, B, A, opened anew each time."""
    order = (0, 1, 1, 0)
    if progress is not None:
        progress.stage(stage, len(order))
    times: list[list[float]] = [[], []]
    repeats: int | None = None
    timer, opened = None, -1
    for index in order:
        if opened != index:
            timer = None  # before the next is opened
            timer, opened = open_timer(index), index
        assert timer is not None
        start = time.perf_counter()
        turns = 0
        while turns < (repeats or 1) or (repeats is None and turns < _ALONE_TURNS):
            for feed in feeds:
                timer.bind(feed)
                times[index].append(timer.time())
            turns += 1
            if repeats is None and time.perf_counter() - start > max_seconds / len(order):
                break
        repeats = repeats or turns
        if progress is not None:
            progress.advance()
    return times


def layout_notes(proto: onnx.ModelProto) -> list[str]:
    """A sentence for a report that measured a model in another layout than it will run in; none for most."""
    note = (
        "measured without the second layout that ONNX Runtime makes of weights, which would take this model's "
        "memory twice (session.disable_prepacking): dense layers are faster with it"
    )
    return [] if packs_weights(proto) else [note]


class _Timer:
    """One model, ready to be timed on a bound input."""

    def __init__(self, proto: onnx.ModelProto, threads: int, binding: bool, use_runtime: bool) -> None:
        self._session = open_session(proto, threads=threads, use_runtime=use_runtime)
        self._outputs = [value.name for value in proto.graph.output]
        self._binding = self._session.io_binding() if binding else None
        self._feeds: Feeds = {}

    def bind(self, feeds: Feeds) -> None:
        self._feeds = feeds
        if self._binding is None:
            return
        self._feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for name, value in self._feeds.items():
            self._binding.bind_cpu_input(name, value)
        for name in self._outputs:
            self._binding.bind_output(name)

    def time(self) -> float:
        """Seconds of one run."""
        try:
            start = time.perf_counter()
            if self._binding is not None:
                self._session.run_with_iobinding(self._binding)
            else:
                self._session.run(None, dict(self._feeds))
            return time.perf_counter() - start
        except Exception as error:
            if not from_onnxruntime(error):
                raise
            raise ExpruneError(f"the model fails while it is timed: {first_line(error)}") from error
