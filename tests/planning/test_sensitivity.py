"""Sensitivities on real models: where the error is looked at, and that it grows with what is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from exprune_cli.data import open_data
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.planning.allocation import OFFERS
from exprune_cli.planning.planner import plan
from exprune_cli.planning.relu import output_weights
from exprune_cli.sensitivity import decisive_outputs, measure_sensitivity
from tests.models import cnn, mlp, run


def _measured(tmp_path: Path, proto: onnx.ModelProto, shape: tuple[int, ...], label=None):
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    (tmp_path / "d").mkdir()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    labels = {} if label is None else {"label": label(x)}
    np.savez(tmp_path / "d" / "x.npz", x=x, **labels)
    data = open_data(tmp_path / "d", model.proto)
    sites = match(model).sites
    steps = plan(sites, observe(model, sites, data), "calibrated", OFFERS)
    return sites, measure_sensitivity(model, sites, steps, data, labelled=label is not None)


def test_what_labels_lose_where_the_second_wins(tmp_path: Path) -> None:
    proto = mlp()
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.add(name="p", type=onnx.helper.make_tensor_type_proto(1, None))

    def best_two(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = run(shown, x=x)[1]
        margins = np.diff(np.sort(scores, axis=1)[:, -2:], axis=1)[:, 0]
        return scores.argsort(axis=1)[:, -2:].T, margins

    def always_right(x: np.ndarray) -> np.ndarray:
        return best_two(x)[0][1]

    def second_near_ties(x: np.ndarray) -> np.ndarray:
        (second, first), margins = best_two(x)
        near = margins <= np.quantile(margins, 0.2)
        return np.where(near & (np.arange(len(x)) % 2 == 0), second, first)

    found = []
    for at, label in enumerate((always_right, second_near_ties)):
        folder = tmp_path / str(at)
        folder.mkdir()
        _, sensitivity = _measured(folder, proto, (2000, 64), label)
        assert sensitivity is not None and sensitivity.swap is not None
        found.append(sensitivity)
    right, chance = found
    assert right.row == 10.0  # ten times as many rows of new data
    assert 6.0 < chance.row < 9.5  # right on 90 %, second on 10 %
    # By chance near ties: what is lost there is no more than the standard error tells.
    assert 0 < chance.swap < right.swap * 0.8


def test_without_labels_predictions_are_compared_with_the_model_s_own(tmp_path: Path) -> None:
    _, found = _measured(tmp_path, mlp(), (200, 64))
    assert found is not None and found.swap is None and found.row == 1.0


def test_scores_before_an_argmax(tmp_path: Path) -> None:
    proto = mlp()
    assert [(o.name, o.axis) for o in decisive_outputs(proto)] == [("p", 1)]
    sites, found = _measured(tmp_path, proto, (200, 64))
    assert found is not None and found.density is not None and found.density > 0
    assert set(found.errors) == {site.name for site in sites if site.kind == "relu"}
    for lost, squares in found.errors.values():
        assert list(lost) == sorted(lost) and list(squares) == sorted(squares) and squares[0] > 0


def test_values_where_there_is_no_argmax(tmp_path: Path) -> None:
    proto = cnn()
    assert [(o.name, o.axis) for o in decisive_outputs(proto)] == [("y", None)]
    _, found = _measured(tmp_path, proto, (64, 3, 16, 16))
    assert found is not None and found.density is None
    first, second = found.square("c1", np.array([0.001, 0.1]))
    assert 0 < first < second


def test_output_weights_are_those_of_the_readers(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    sites = {site.output: site for site in match(load(tmp_path / "m.onnx")).sites}
    weights = output_weights(list(sites.values()))
    reader = sites["e"].load_weight()
    np.testing.assert_allclose(weights[sites["r"].name], np.square(reader).sum(axis=(0, 2)), rtol=1e-5)
