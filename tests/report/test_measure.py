"""Measuring on data: scores, agreement, and times taken in turn."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exprune_cli import latency as module
from exprune_cli.errors import ExpruneError
from exprune_cli.latency import latency
from exprune_cli.measure import check_interface, measure
from exprune_cli.sessions import open_session
from tests.models import build, cnn, mlp, run
from tests.report.staged import Samples, staged_model

RNG = np.random.default_rng(5)


def samples(count: int = 12, labels: np.ndarray | None = None) -> Samples:
    x = np.random.default_rng(1).standard_normal((count, 64)).astype(np.float32)
    return Samples(labels, x=x)


def test_lossless_agrees_and_is_scored_like_its_baseline() -> None:
    source = mlp()
    (truth,) = run(source, x=samples().arrays["x"])
    labels = truth.copy()
    labels[:3] += 1  # 3 of 12 are wrong
    staged = staged_model(source, limit=-100.0).proto  # prunes nothing
    result = measure(staged, samples(labels=labels), baseline=source)
    assert (result.metric, result.samples, result.agreement) == ("accuracy", 12, 1)
    assert result.scores_optimized is not None and result.scores_baseline is not None
    assert result.scores_optimized.tolist() == result.scores_baseline.tolist() == [0] * 3 + [1] * 9
    assert result.survivors["a"].tolist() == [12 * 96, 12 * 96]


def test_what_a_lossy_model_loses_is_measured() -> None:
    source = mlp()
    staged = staged_model(source, limit=1.0).proto  # prunes far too much
    (before,) = run(source, x=samples().arrays["x"])
    native = open_session(staged).run(["y"], samples().arrays)[0]
    result = measure(staged, samples(), baseline=source)
    assert result.metric == "agreement"
    assert result.agreement == np.mean(before == native) < 1
    assert result.flops is not None and result.flops_dense is not None and result.flops < result.flops_dense


@pytest.mark.parametrize("use_runtime", [True, False])
def test_native_runtime_and_functions_measure_the_same(use_runtime: bool) -> None:
    staged = staged_model(cnn()).proto
    x = np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype(np.float32)
    result = measure(staged, Samples(x=x), baseline=cnn(), batch_size=2, use_runtime=use_runtime)
    other = measure(staged, Samples(x=x), use_runtime=not use_runtime)
    for name, survivors in result.survivors.items():
        # Sums in another order may put an estimate on the other side of its limit.
        np.testing.assert_allclose(survivors, other.survivors[name], rtol=1e-3)
    assert result.flops == pytest.approx(other.flops, rel=1e-3)


def test_without_labels_or_baseline_there_is_no_metric() -> None:
    result = measure(mlp(), samples())
    assert (result.metric, result.scores_optimized, result.agreement) == (None, None, None)
    assert result.flops == result.flops_dense == 12 * 2 * (64 * 96 + 96 * 96 + 96 * 10)


def test_labels_that_fit_no_output() -> None:
    labels = np.zeros((12, 7), np.int64)
    with pytest.raises(ExpruneError, match="fits none of the outputs"):
        measure(mlp(), samples(labels=labels))
    alone = measure(mlp(), samples(labels=labels), any_metric=True)
    assert alone.metric is None and alone.samples == 12
    pair = measure(mlp(), samples(labels=labels), any_metric=True, baseline=mlp())
    assert (pair.metric, pair.agreement) == ("agreement", 1)
    assert pair.scores_optimized is not None and len(pair.scores_optimized) == 12


def test_a_failing_sample_is_named() -> None:
    with pytest.raises(ExpruneError, match="^sample 0: the model fails on it: "):
        measure(mlp(), Samples(x=np.zeros((2, 63), np.float32)))


def feeds(count: int, *shape: int) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((1, *shape)).astype(np.float32)} for _ in range(count)]


def test_latency_of_a_pair() -> None:
    times = latency(cnn(), staged_model(cnn()).proto, feeds(3, 3, 16, 16), rounds=3, min_runs=9)
    assert (times.runs, times.threads, times.batch, times.binding) == (9, 1, 1, "iobinding")
    assert times.dense_ms is not None and times.speedup is not None
    assert times.dense_ms > 0 and times.ms > 0
    assert 0.2 < times.speedup * times.ms / times.dense_ms < 5


def test_latency_of_one_model() -> None:
    times = latency(None, mlp(), feeds(2, 64), threads=2, rounds=1, min_runs=4)
    assert (times.dense_ms, times.speedup, times.runs, times.threads) == (None, None, 4, 2)
    assert times.ms > 0


def test_texts_are_timed_with_plain_runs() -> None:
    source = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (string[N] x) => (string[N] y) { y = Identity (x) }'
    )
    times = latency(source, source, [{"x": np.array(["a", "b"], object)}], rounds=1, min_runs=1)
    assert (times.binding, times.batch) == ("run", 2)


def test_the_pair_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Timer:
        def __init__(self, proto: str, *options: object) -> None:
            self.name = proto

        def bind(self, feed: object) -> None:
            self.feed = feed

        def time(self) -> float:
            order.append(self.name)
            return {"dense": 0.004, "ours": 0.002}[self.name]

    monkeypatch.setattr(module, "_Timer", Timer)
    inputs = feeds(2, 4)
    times = latency("dense", "ours", inputs, rounds=2, min_runs=1, warm_up=0)  # type: ignore[arg-type]
    assert order == ["dense", "ours"] * 2 + ["ours", "dense"] * 2
    assert (times.dense_ms, times.ms, times.speedup) == (4, 2, 2)


def test_nothing_to_time() -> None:
    with pytest.raises(ExpruneError, match="no sample"):
        latency(None, mlp(), [])


def test_interfaces_that_differ() -> None:
    base = build("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {})
    check_interface(base, base)
    renamed = build("g (float[N, 4] z) => (float[N, 4] y) { y = Relu (z) }", {})
    with pytest.raises(ExpruneError, match=r"other inputs \(z: float\) than the model \(x: float\)"):
        check_interface(base, renamed)
    retyped = build("g (float[N, 4] x) => (int64[N, 4] y) { y = Cast <to: int = 7> (x) }", {})
    with pytest.raises(ExpruneError, match="other outputs"):
        check_interface(base, retyped)
