"""Weights that stay in files, with limits so low that small models have them: the same results as in memory."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo, convert_model_to_external_data

from exprune_cli import api, weights
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.model import load, save
from exprune_cli.sessions import open_session, packs_weights
from exprune_cli.weights import in_memory, kept, model_bytes
from tests.corpus.checks import check_valid
from tests.models import cnn, mlp

_X = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Low limits, and a temporary folder of our own to look into."""
    monkeypatch.setattr(weights, "LARGE_BYTES", 1000)
    monkeypatch.setattr(weights, "KEPT_BYTES", 1000)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def outside(tmp_path: Path, temporary: Path) -> Path:
    """An MLP with its weights in ``weights.bin``."""
    proto = mlp()
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=100)
    (tmp_path / "in").mkdir()
    onnx.save(proto, tmp_path / "in" / "model.onnx")
    return tmp_path / "in" / "model.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "x.npz", x=_X)
    return tmp_path / "data"


def test_large_weights_are_not_read(outside: Path) -> None:
    model = load(outside)
    assert {tensor.name for tensor in kept(model.proto)} == {"w1", "w2", "w3"}
    assert all(not tensor.raw_data for tensor in kept(model.proto))
    assert model.proto.ByteSize() < 5000 < model_bytes(model.proto)
    whole = {tensor.name: tensor for tensor in mlp().graph.initializer}
    for tensor in model.proto.graph.initializer:
        assert in_memory(tensor).raw_data == whole[tensor.name].raw_data


def test_only_large_staged_models_are_opened_without_a_second_layout(outside: Path, tmp_path: Path) -> None:
    """Beside a staged site a dense layer would have the weights in memory once more."""
    api.optimize(outside, tmp_path / "out.onnx", test="bound", objective="flops")
    assert packs_weights(load(outside).proto)
    assert packs_weights(api.optimize(mlp(), test="bound", objective="flops").model)
    assert not packs_weights(load(tmp_path / "out.onnx").proto)


@pytest.mark.parametrize(
    "options",
    [
        {"test": "bound", "objective": "flops"},
        {"test": "stats", "objective": "flops"},
        {"objective": "flops", "exclude": ["*"]},
        {},
    ],
    ids=["bound", "stats", "nothing staged", "timed"],
)
def test_the_output_is_that_of_the_model_in_memory(
    options: dict, outside: Path, temporary: Path, tmp_path: Path
) -> None:
    proto = mlp()
    out, before = tmp_path / "out.onnx", (outside.parent / "weights.bin").read_bytes()
    done = api.optimize(outside, out, **options)
    check_valid(proto, out)
    (y,) = open_session(load(out).proto).run(None, {"x": _X})
    (wanted,) = open_session(proto).run(None, {"x": _X})
    if options.get("test") == "stats":
        assert y.shape == wanted.shape
    else:
        np.testing.assert_array_equal(y, wanted)
    if "objective" in options and "exclude" not in options:
        assert done.staged == 3
        same = api.optimize(proto, **options)
        a = {tensor.name: in_memory(tensor).raw_data for tensor in load(out).proto.graph.initializer}
        assert a == {tensor.name: tensor.raw_data for tensor in same.model.graph.initializer}
    assert (outside.parent / "weights.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.onnx", "out.onnx.data"]
    locations = {
        ExternalDataInfo(t).location for t in onnx.load(out, load_external_data=False).graph.initializer
    }
    assert locations <= {"", "out.onnx.data"}
    np.testing.assert_array_equal(
        done.session().run(None, {"x": _X})[0], y
    )  # its spilled weights are there still
    del done
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_calibrate_and_report(outside: Path, data: Path, tmp_path: Path) -> None:
    calibration = api.calibrate(outside, data, tmp_path / "m.calib")
    same = api.calibrate(mlp(), data)
    for name, site in calibration.sites.items():
        np.testing.assert_array_equal(site.rows, same.sites[name].rows)
    out = tmp_path / "out.onnx"
    done = api.optimize(outside, out, calibration=tmp_path / "m.calib", objective="flops", test="calibrated")
    assert done.staged
    measured = api.report(out, outside, data)
    small = tmp_path / "small.onnx"
    onnx.save(onnx.load(out), small)
    expected = api.report(small, mlp(), data)
    assert measured.totals.flops == expected.totals.flops
    assert measured.fidelity is not None and measured.fidelity.agreement == expected.fidelity.agreement
    assert measured.totals.speedup is not None
    assert any("session.disable_prepacking" in note for note in measured.notes)
    assert not any("second layout" in note for note in expected.notes)
    assert api.report(outside).totals.flops_dense == api.report(mlp()).totals.flops_dense


def test_a_pad_before_a_conv_is_timed_in_the_models_own_form(temporary: Path, tmp_path: Path) -> None:
    proto = cnn()
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=100)
    onnx.save(proto, tmp_path / "in.onnx")
    done = api.optimize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(
        done.session().run(None, {"x": x})[0],
        open_session(cnn()).run(None, {"x": x})[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_weights_that_changed_after_loading_are_not_run_past(outside: Path) -> None:
    model = load(outside)
    (outside.parent / "weights.bin").write_bytes(b"short")
    with pytest.raises(ExpruneError, match="weights.bin"):
        in_memory(kept(model.proto)[0])


def test_the_outputs_weights_may_not_be_the_inputs(outside: Path, tmp_path: Path) -> None:
    proto = mlp()
    convert_model_to_external_data(proto, location="out.onnx.data", size_threshold=100)
    onnx.save(proto, tmp_path / "in.onnx")
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(UsageError, match="external data"):
        api.optimize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == before


def test_a_failure_leaves_the_older_output(outside: Path, tmp_path: Path) -> None:
    """A disk that is full while the weights are written."""
    out = tmp_path / "out.onnx"
    api.optimize(outside, out, test="bound", objective="flops")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*out.onnx*")}
    model = load(outside)
    with (outside.parent / "weights.bin").open("r+b") as file:
        file.truncate(2000)
    from exprune_cli.model import save

    with pytest.raises(ExpruneError):
        save(model.proto, out)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*out.onnx*")} == before


def test_bytes_are_counted_while_weights_are_read_and_written(outside: Path, tmp_path: Path) -> None:
    read: list[tuple[int, int]] = []
    written: list[tuple[int, int]] = []
    model = load(outside, lambda done, total: read.append((done, total)))
    save(model.proto, tmp_path / "copy.onnx", lambda done, total: written.append((done, total)))
    for seen in (read, written):
        size = seen[-1][1]
        assert size > 1000 and seen[-1] == (size, size) and len(seen) > 1
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert written[-1][1] <= (tmp_path / "copy.onnx.data").stat().st_size
