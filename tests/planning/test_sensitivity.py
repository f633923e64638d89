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
from tests.models import cnn, mlp


def _measured(tmp_path: Path, proto: onnx.ModelProto, shape: tuple[int, ...]):
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    (tmp_path / "d").mkdir()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(tmp_path / "d" / "x.npz", x=x)
    data = open_data(tmp_path / "d", model.proto)
    sites = match(model).sites
    steps = plan(sites, observe(model, sites, data), "calibrated", OFFERS)
    return sites, measure_sensitivity(model, sites, steps, data)


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
