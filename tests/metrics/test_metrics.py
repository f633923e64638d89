"""Scores of samples: each metric by hand, and every misuse by its message."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exprune_cli.data import open_data
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.metrics import Scorer, drop, metric_for
from tests import models
from tests.models import build


def one_hot(classes, size=4) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[np.asarray(classes)]


def scores(name, y, *, label=None, baseline=None, count=None):
    y = np.asarray(y)
    return (
        metric_for(name, label is not None)
        .scores(
            {"y": y},
            count=len(y) if count is None else count,
            label=None if label is None else np.asarray(label),
            baseline=None if baseline is None else {"y": np.asarray(baseline)},
        )
        .tolist()
    )


# --- accuracy ------------------------------------------------------------------------------------


def test_defaults():
    assert metric_for(None, True).name == "accuracy"
    assert metric_for(None, False).name == "agreement"


@pytest.mark.parametrize(
    ("y", "label", "expected"),
    [
        ([3, 1], [3, 2], [1, 0]),
        ([[3], [1]], [3, 2], [1, 0]),
        ([3, 1], [[3], [2]], [1, 0]),
        ([3, 1], [3.0, 2.0], [1, 0]),
        ([[1, 2], [3, 4]], [[1, 9], [3, 4]], [0.5, 1]),
        (one_hot([3, 1]), [3, 2], [1, 0]),
        (one_hot([[3, 1], [0, 0]]), [[3, 2], [0, 0]], [0.5, 1]),
        (np.moveaxis(one_hot([[[3, 1]], [[0, 0]]]), -1, 1), [[[3, 2]], [[0, 0]]], [0.5, 1]),
    ],
    ids=["index", "kept-axis", "column", "float-label", "tokens", "scores", "token-scores", "channels"],
)
def test_accuracy(y, label, expected):
    assert scores("accuracy", y, label=label) == expected


def test_accuracy_of_a_sample_is_the_mean_of_its_positions():
    assert scores("accuracy", one_hot([1, 2, 3, 0]), label=[1, 2, 0, 0], count=2) == [1, 0.5]
    assert scores("accuracy", one_hot([1]), label=1, count=1) == [1]


def test_accuracy_prefers_the_last_axis():
    square = np.array([[[0, 9], [0, 9]]], np.float32)
    assert scores("accuracy", square, label=[[1, 1]]) == [1]


def test_accuracy_uses_the_first_output_that_fits():
    metric = metric_for("accuracy", True)
    outputs = {"features": np.zeros((2, 8, 8), np.float32), "y": one_hot([1, 2])}
    assert metric.scores(outputs, count=2, label=np.array([1, 0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "label"),
    [
        (one_hot([3, 1]), [[1, 2, 3], [4, 5, 6]]),
        (np.zeros((2, 1), np.float32), [0, 1]),
        (np.zeros(2, np.float32), [0, 1]),
        (np.zeros((2, 3), np.int64), [0, 1]),
    ],
    ids=["too-many", "one-column", "no-classes", "integers"],
)
def test_labels_that_fit_no_output(y, label):
    with pytest.raises(
        ExpruneError, match=r"the label has shape .* fits none of the outputs \('y' .*FILE.py:FUNC"
    ):
        scores("accuracy", y, label=label)


def test_labels_that_are_missing_or_empty():
    with pytest.raises(UsageError, match="metric accuracy needs labels: store them under 'label'"):
        metric_for("accuracy", False)
    with pytest.raises(UsageError, match="needs labels"):
        metric_for("accuracy", True).scores({"y": one_hot([1])})
    with pytest.raises(ExpruneError, match="the label is empty"):
        scores("accuracy", np.zeros((1, 0), np.int64), label=np.zeros((1, 0)), count=1)


def test_batches_that_do_not_divide():
    with pytest.raises(ExpruneError, match=r"'y' has shape \(3,\), which does not divide into 2 samples"):
        scores("accuracy", [1, 2, 3], label=[1, 2], count=2)


# --- agreement, mse, cosine ----------------------------------------------------------------------


def test_agreement():
    assert scores("agreement", one_hot([1, 2]) * 0.5, baseline=one_hot([1, 3])) == [1, 0]
    assert scores("agreement", [[1, 2], [3, 4]], baseline=[[1, 2], [3, 5]]) == [1, 0.5]
    assert scores("agreement", np.array([[1.0], [2.0]]), baseline=np.array([[1.001], [2.1]])) == [1, 0]
    assert scores("agreement", np.array([1.0, np.nan]), baseline=np.array([1.0, np.nan])) == [1, 1]
    assert scores("agreement", [1, 2, 3], baseline=[1, 2], count=1) == [0]


def test_agreement_takes_the_outputs_with_classes():
    ours = {"y": one_hot([1]), "z": np.array([2]), "size": np.array([1.0])}
    theirs = {"y": one_hot([1]), "z": np.array([3]), "size": np.array([9.0])}
    assert metric_for("agreement", False).scores(ours, baseline=theirs).tolist() == [0.5]


def test_mse_and_cosine():
    ours, theirs = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [3.0, 4.0]])
    assert scores("mse", ours, baseline=theirs) == [-2, 0]
    np.testing.assert_allclose(scores("cosine", ours, baseline=theirs), [1 / np.sqrt(5), 1])
    assert scores("cosine", np.zeros((2, 2)), baseline=np.array([[0.0, 0.0], [1.0, 0.0]])) == [1, 0]


@pytest.mark.parametrize("name", ["agreement", "mse", "cosine"])
def test_the_original_is_needed(name):
    with pytest.raises(UsageError, match=f"metric {name} compares with the original model"):
        scores(name, one_hot([1]))


@pytest.mark.parametrize("name", ["mse", "cosine"])
def test_outputs_without_a_distance(name):
    with pytest.raises(ExpruneError, match="needs a float output"):
        scores(name, [1], baseline=[1])
    with pytest.raises(ExpruneError, match="NaN or infinite"):
        scores(name, [np.nan], baseline=[1.0])
    with pytest.raises(ExpruneError, match=r"an output has shape \(2,\), the original model's has \(1,\)"):
        scores(name, [1.0, 2.0], baseline=[1.0], count=1)
    with pytest.raises(ExpruneError, match="outputs are empty"):
        scores(name, np.zeros((1, 0)), baseline=np.zeros((1, 0)))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["accuracy", "agreement", "mse", "cosine"]), st.integers(1, 6), st.integers(0, 99))
def test_scores_do_not_depend_on_the_batch(name, count, seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(size=(2, count, 5, 3)).astype(np.float32)
    label = rng.integers(0, 3, (count, 5))
    together = scores(name, ours, label=label, baseline=theirs)
    alone = [
        scores(name, ours[i : i + 1], label=label[i : i + 1], baseline=theirs[i : i + 1])[0]
        for i in range(count)
    ]
    assert together == alone
    best = scores(name, theirs, label=label, baseline=theirs)
    if name != "accuracy":
        np.testing.assert_allclose(best, 0 if name == "mse" else 1, atol=1e-12)
        assert drop(np.array(best), np.array(together)) >= -1e-12


# --- the user's own ------------------------------------------------------------------------------


def test_own_metric(tmp_path):
    file = tmp_path / "my.py"
    file.write_text(
        "def f(outputs, label, baseline):\n"
        "    assert outputs['y'].shape == (1, 4) and label.shape == (1,)\n"
        "    return float(outputs['y'][0, label[0]]) - (baseline['y'][0, label[0]] if baseline else 0)\n"
        "def g(outputs, label, baseline):\n    return outputs['y'] * 2\n"
    )
    assert scores(f"{file}:f", one_hot([1, 2]), label=[1, 1]) == [1, 0]
    assert scores(f"{file}:f", one_hot([1, 2]), label=[1, 1], baseline=one_hot([1, 1])) == [0, -1]
    assert scores(f"{file}:g", one_hot([1, 2])) == [0.5, 0.5]


def test_own_metrics_that_fail(tmp_path):
    file = tmp_path / "my.py"
    for name, message in [
        ("f1", "no such metric: give one of accuracy, agreement, mse, cosine, or FILE.py:FUNC"),
        (f"{tmp_path}/none.py:f", "there is no file"),
        (f"{tmp_path}/none.txt:f", "no such metric"),
    ]:
        with pytest.raises(UsageError, match=message):
            metric_for(name, False)
    for content, message in [
        ("def f(:", "cannot be imported: SyntaxError"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError: No module"),
        ("f = 3", "has no function 'f'"),
    ]:
        file.write_text(content)
        with pytest.raises(UsageError, match=message):
            metric_for(f"{file}:f", False)
    for body, message in [
        ("raise ValueError('one\\ntwo')", "the sample: metric .*my.py:f fails: ValueError: one$"),
        ("return 'many'", "fails: ValueError"),
        ("return None", "returned nan: it must return finite numbers"),
        ("return float('inf')", "returned inf"),
        ("return []", "must return finite numbers"),
    ]:
        file.write_text(f"def f(outputs, label, baseline):\n    {body}\n")
        with pytest.raises(ExpruneError, match=message) as error:
            scores(f"{file}:f", one_hot([1]))
        assert "\n" not in str(error.value)


# --- a whole data set ----------------------------------------------------------------------------


def run_scorer(folder, proto, metric, baseline_change=0.0, baseline=True, labels=True):
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    (dense,) = models.run(proto, x=x)
    label = {"label": dense if dense.dtype == np.int64 else dense.argmax(-1)} if labels else {}
    np.savez(folder / "a.npz", x=x, **label)
    data = open_data(folder, proto)
    scorer = Scorer(proto, data, metric, baseline=baseline)
    for batch in data.batches(4):
        values = models.run(proto, **batch.feeds)
        ours = [values[0] + np.asarray(baseline_change).astype(values[0].dtype)]
        scorer.add(batch, ours, values if baseline else None)
    return scorer


def test_scorer_on_a_real_model(tmp_path):
    scorer = run_scorer(tmp_path / "a", models.mlp(), None, baseline_change=1)
    assert scorer.metric == "accuracy" and scorer.agreement == 0
    np.testing.assert_array_equal(scorer.scores, np.zeros(9))
    np.testing.assert_array_equal(scorer.baseline_scores, np.ones(9))
    assert drop(scorer.baseline_scores, scorer.scores) == 1
    same = run_scorer(tmp_path / "b", models.mlp(), None, labels=False)
    assert (same.metric, same.agreement) == ("agreement", 1) and same.scores.tolist() == [1] * 9
    alone = run_scorer(tmp_path / "c", models.mlp(), None, baseline=False)
    assert alone.metric == "accuracy" and alone.baseline_scores is None and alone.agreement is None
    neither = run_scorer(tmp_path / "d", models.mlp(), None, baseline=False, labels=False)
    assert (neither.metric, neither.scores, neither.agreement) == (None, None, None)


def test_scorer_without_what_its_metric_needs(tmp_path):
    with pytest.raises(UsageError, match="compares with the original model: give it with baseline"):
        run_scorer(tmp_path / "a", models.mlp(), "mse", baseline=False)
    with pytest.raises(UsageError, match="needs labels"):
        run_scorer(tmp_path / "b", models.mlp(), "accuracy", labels=False)


def test_drop_of_mse_is_what_was_added(tmp_path):
    proto = build("g (float[N, 64] x) => (float[N, 8] y) { y = MatMul (x, w) }", {"w": (64, 8)})
    scorer = run_scorer(tmp_path / "a", proto, "mse", baseline_change=0.5)
    assert drop(scorer.baseline_scores, scorer.scores) == pytest.approx(0.25, rel=1e-5)
    assert scorer.agreement == 1
