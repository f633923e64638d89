"""Weights that static pruning set to zero: no work in the dense model, no work in the staged one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exprune_cli import api
from exprune_cli.data import open_data
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.planning import chunks
from exprune_cli.planning.planner import plan
from tests.models import mlp

COUNT = 400


def _pruned(share: float) -> onnx.ModelProto:
    """The MLP with its smallest weights set to zero, matrix by matrix."""
    proto = mlp()
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim == 2 and tensor.name != "w3":
            cut = np.quantile(np.abs(value), share)
            tensor.CopyFrom(numpy_helper.from_array(np.where(np.abs(value) < cut, 0, value), tensor.name))
    return proto


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(_pruned(0.8), tmp_path / "m.onnx")
    (tmp_path / "d").mkdir()
    rng = np.random.default_rng(1)
    x = rng.standard_normal((COUNT, 4)) @ rng.standard_normal((4, 64)) + 0.1 * rng.standard_normal(
        (COUNT, 64)
    )
    np.savez(tmp_path / "d" / "x.npz", x=x.astype(np.float32))
    return tmp_path


def test_dense_flops_count_weights_that_are_not_zero(folder: Path) -> None:
    proto = onnx.load(folder / "m.onnx")
    whole = sum(
        np.count_nonzero(numpy_helper.to_array(t)) for t in proto.graph.initializer if len(t.dims) == 2
    )
    for data in (None, folder / "d"):
        report = api.report(folder / "m.onnx", None, data)
        assert report.totals.flops_dense == pytest.approx(2 * whole, abs=2)
    assert 2 * whole < 0.5 * 2 * (64 * 96 + 96 * 96 + 96 * 10)


def test_staged_flops_are_those_of_the_chunks(folder: Path) -> None:
    api.optimize(
        folder / "m.onnx",
        folder / "s.onnx",
        data=folder / "d",
        objective="flops",
        max_drop=0.2,
        test="threshold",
    )
    report = api.report(folder / "s.onnx", folder / "m.onnx", folder / "d")
    assert report.staged
    assert report.totals.flops_dense == pytest.approx(api.report(folder / "m.onnx").totals.flops_dense, abs=4)
    assert 0 < report.totals.flops_reduction < 0.5


def test_chunks_add_up_and_cheap_groups_come_first(folder: Path) -> None:
    model = load(folder / "m.onnx")
    sites = [site for site in match(model).sites if site.kind == "relu"]
    calibration = observe(model, sites, open_data(folder / "d", model.proto))
    for step in plan(sites, calibration, "calibrated", [0.01, 0.05]):
        for site in sites:
            made, weight = step[site.name], site.load_weight()
            if not made.staged:
                continue
            widths = np.diff([0, *(made.ends or (site.groups,))])
            counted = float(np.dot(widths, made.nonzero)) * site.outputs
            assert counted == pytest.approx(np.count_nonzero(weight))
            work = chunks.cumulative_work(weight, made.order, made.ends[:-1])
            assert work[-1] == np.count_nonzero(weight) and sorted(work) == work
    weight = np.zeros((4, 3, 1), np.float32)
    weight[0, 0], weight[:, 1], weight[:2, 2] = 2.0, 1.2, 0.5
    # Energies 4, 5.76 and 0.5 with 1, 4 and 2 weights.
    assert chunks.energy_order(weight, None).tolist() == [0, 1, 2]
    assert chunks.energy_order(np.where(weight == 0, 1e-3, weight), None).tolist() == [1, 0, 2]
