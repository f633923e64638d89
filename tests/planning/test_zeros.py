"""Convs that leave out the zeros of their input: what is planned, what is counted, and that nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli import api
from exprune_cli.data import open_data
from exprune_cli.match import match
from exprune_cli.model import Model, load
from exprune_cli.observe import observe
from exprune_cli.planning.planner import plan
from exprune_cli.rewrite import rewrite
from exprune_cli.sessions import open_session
from exprune_cli.sites import Calibration
from tests.models import cnn

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zeros")
    onnx.save(cnn(), folder / "m.onnx")
    (folder / "d").mkdir()
    x = np.random.default_rng(0).standard_normal((COUNT, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "d" / "x.npz", x=x)
    return folder


@pytest.fixture(scope="module")
def observed(folder: Path) -> tuple[Model, Calibration]:
    model = load(folder / "m.onnx")
    return model, observe(model, match(model).sites, open_data(folder / "d", model.proto))


def _inner(folder: Path, *names: str) -> list[np.ndarray]:
    """Tensors of the original on all samples."""
    proto = onnx.load(folder / "m.onnx")
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    x = np.load(folder / "d" / "x.npz")["x"]
    return ort.InferenceSession(proto.SerializeToString()).run(list(names), {"x": x})


def test_only_convs_that_read_zeros_and_only_when_asked(observed: tuple[Model, Calibration]) -> None:
    model, calibration = observed
    sites = match(model).sites
    skipping = plan(sites, calibration, "bound", skip_zeros=True)[0]
    assert {name for name, p in skipping.items() if p.input_nonzero} == {
        site.name for site in sites if site.conv and site.nonnegative
    }
    assert not any(p.input_nonzero for p in plan(sites, calibration, "bound")[0].values())
    assert not any(p.input_nonzero for p in plan(sites, None, "bound", skip_zeros=True)[0].values())


def test_without_a_test_nothing_changes_and_every_input_is_counted(
    folder: Path, observed: tuple[Model, Calibration]
) -> None:
    model, calibration = observed
    sites = match(model).sites
    plans = plan(sites, calibration, "bound", skip_zeros=True)[0]
    proto, records = rewrite(model, sites, plans)
    staged = [record for record in records if record.input_nonzero]
    x = np.load(folder / "d" / "x.npz")["x"]
    (want,) = open_session(model.proto).run(None, {"x": x})
    for native in (True, False):
        (got,) = open_session(proto, use_runtime=native).run(None, {"x": x})
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    (work,) = _inner(folder, "r1")
    counted = _work(proto, staged[0].survivors or "", x)
    # 24 outputs look at every input that is not zero, from up to 9 places.
    padded = np.pad(work != 0, ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = sum(padded[:, :, i : i + 16, j : j + 16].sum() for i in range(3) for j in range(3))
    assert counted[1:].sum() == 24 * places


def _work(proto: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    addition = onnx.ModelProto()
    addition.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    (counts,) = open_session(proto, addition=addition).run([name], {"x": x})
    return counts


def test_flops_of_the_report_are_those_of_the_definition(folder: Path) -> None:
    api.optimize(folder / "m.onnx", folder / "s.onnx", data=folder / "d", objective="flops", max_drop=0.5)
    report = api.report(folder / "s.onnx", folder / "m.onnx", folder / "d")
    proto = onnx.load(folder / "s.onnx")
    x = np.load(folder / "d" / "x.npz")["x"]
    nodes = {n.name: n for n in proto.graph.node if n.op_type == "SparseConvThreshold"}
    assert nodes
    initializers = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    expected = api.report(folder / "s.onnx")
    for node in nodes.values():
        site = next(s for s in report.sites if node.name.startswith(s.name + "/"))
        ends, w = initializers[node.input[2]], initializers[node.input[3]]
        counts = _work(proto, node.output[1], x)
        checks = len(ends) - 1
        rows = site.flops_dense / (2 * w.size)
        tested = np.array([rows * w.shape[-1] * COUNT, *counts[: checks - 1]])
        spent = 2 * counts[checks:].sum() + 2 * tested.sum() + rows * COUNT * w[..., 0].size
        assert site.flops == pytest.approx(spent / COUNT)
        assert site.pruned == pytest.approx(1 - counts[checks - 1] / (rows * COUNT * w.shape[-1]))
        planned = next(s for s in expected.sites if s.name == site.name)
        # Padding, and what was pruned before, are zeros that the plan does not know of.
        assert site.flops < planned.flops < site.flops_dense


def test_plans_for_latency_multiply_zeros(folder: Path) -> None:
    done = api.optimize(folder / "m.onnx", data=folder / "d", max_drop=0.5, measure=False)
    assert not any(n.op_type == "SparseConvThreshold" for n in done.model.graph.node)
