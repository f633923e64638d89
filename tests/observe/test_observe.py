"""Statistics of sites: against NumPy, and independent of how the samples are batched."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exprune_cli import sampling
from exprune_cli.calibration import save_calibration
from exprune_cli.data import DataSet, open_data
from exprune_cli.data.keys import position_keys, stream_keys
from exprune_cli.errors import ExpruneError
from exprune_cli.match import match
from exprune_cli.model import Model, load
from exprune_cli.observe import observe
from exprune_cli.sites import Calibration, Site, SiteStatistics
from tests import models
from tests.models import build


def gemm_site(name: str, x: str, groups: int, outputs: int, **more) -> Site:
    return Site(
        name=name,
        op="Gemm",
        rule="test",
        kind="relu",
        input=x,
        output=name,
        outputs=outputs,
        groups=groups,
        bias=np.zeros(outputs, np.float32),
        load_weight=lambda: np.zeros((outputs, groups, 1), np.float32),
        **more,
    )


def store(folder: Path, x: np.ndarray, files: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(np.array_split(x, files)):
        np.savez(folder / f"{i:03}.npz", x=part)
    return folder


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def equal(a: Calibration, b: Calibration) -> None:
    """Equal in every bit."""
    assert (a.model_sha256, a.data_digest, a.seed, a.samples) == (
        b.model_sha256,
        b.data_digest,
        b.seed,
        b.samples,
    )
    assert a.sites.keys() == b.sites.keys()
    for name, first in a.sites.items():
        for field, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(b.sites[name], field), err_msg=f"{name}.{field}")


def keys_of(data: DataSet, site: Site, seed: int, positions: int) -> np.ndarray:
    return position_keys(stream_keys(seed, site.name, data.ids), positions).reshape(-1)


# --- against NumPy -------------------------------------------------------------------------------


def test_rows_times_weight_is_what_the_model_computes(tmp_path):
    """Real models, real sites: sampled rows, bias and offset give the ReLU's output at that row."""
    for number, proto in enumerate([models.mlp(), models.cnn()]):
        model = load(proto)
        sites = match(model).sites
        shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
        data = open_data(store(tmp_path / str(number), normal(6, *shape), 2), proto)
        calibration = observe(model, sites, data, seed=4)
        assert len(calibration.sites) == len(sites) >= 3
        outputs = [s for s in sites if s.kind == "relu"]
        assert any(s.offset for s in outputs)
        probe = onnx.ModelProto()
        probe.CopyFrom(proto)
        del probe.graph.output[:]
        for site in outputs:
            probe.graph.output.add(name=site.output).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        (batch,) = data.batches(6)
        for site, dense in zip(outputs, models.run(probe, **batch.feeds), strict=True):
            found = calibration.sites[site.name]
            dense = np.moveaxis(dense, 1, -1) if site.conv else dense
            dense = dense.reshape(-1, site.outputs)
            assert found.count == len(dense)
            order = np.argsort(keys_of(data, site, 4, len(dense) // 6))[: len(found.keys)]
            value = np.einsum("rgt,ngt->rn", found.rows, site.load_weight()) + site.bias
            value += 0 if found.offsets is None else found.offsets
            assert (found.offsets is None) == (site.offset is None)
            np.testing.assert_allclose(np.clip(value, 0, site.max), dense[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_sums_and_sample_of_a_gemm(tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(sampling, "_MIN_ROWS", 8)
    monkeypatch.setattr(sampling, "_SAMPLE_BYTES", 0)
    model = load(
        build(
            "g (float[N, 5, 6] x) => (float[N, 5, 4] y) { r = Relu (x) m = MatMul (r, w) y = Relu (m) }",
            {"w": (6, 4)},
        )
    )
    x = normal(7, 5, 6)
    data = open_data(store(tmp_path / "d", x, 3), model.proto)
    site = gemm_site("m", "r", 6, 4)
    found = observe(model, [site], data, batch_size=batch_size).sites["m"]
    flat = np.maximum(x, 0).reshape(-1, 6)
    np.testing.assert_allclose(found.energy, np.square(flat, dtype=np.float64).sum(0), rtol=1e-12)
    np.testing.assert_array_equal(found.input_zeros, (flat == 0).sum(0))
    assert (found.elements, found.count) == (35, 35)
    keys = keys_of(data, site, 0, 5)
    np.testing.assert_array_equal(found.keys, np.sort(keys)[:8])
    np.testing.assert_array_equal(found.rows[:, :, 0], flat[np.argsort(keys)[:8]])
    assert found.rows.flags.c_contiguous and found.rows.dtype == np.float32


def test_sums_of_a_conv(tmp_path):
    model = load(models.cnn())
    site = next(s for s in match(model).sites if s.conv and s.input == "x")
    x = np.round(normal(5, 3, 16, 16))
    data = open_data(store(tmp_path / "d", x), model.proto)
    found = observe(model, [site], data, batch_size=2).sites[site.name]
    np.testing.assert_allclose(found.energy, np.square(x, dtype=np.float64).sum((0, 2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(found.input_zeros, (x == 0).sum((0, 2, 3)))
    assert (found.elements, found.count) == (5 * 256, 5 * 256)


def test_transposed_input_with_an_offset(tmp_path):
    model = load(
        build(
            """g (float[N, 6] x) => (float[N, 6] y) {
              t = Transpose <perm: ints = [1, 0]> (x)
              s = Sigmoid (x)
              m = Gemm <transA: int = 1> (t, w)
              a = Add (m, s)
              y = Relu (a)
            }""",
            {"w": (6, 6)},
        )
    )
    x = normal(9, 6)
    data = open_data(store(tmp_path / "d", x, 2), model.proto)
    site = gemm_site("m", "t", 6, 6, transposed_input=True, offset="s")
    results = [observe(model, [site], data, batch_size=b) for b in (1, 4, 9)]
    found = results[0].sites["m"]
    order = np.argsort(keys_of(data, site, 0, 1))
    np.testing.assert_array_equal(found.rows[:, :, 0], x[order])
    np.testing.assert_allclose(found.offsets, 1 / (1 + np.exp(-x[order])), rtol=1e-5)
    np.testing.assert_allclose(found.energy, np.square(x, dtype=np.float64).sum(0), rtol=1e-12)
    for other in results[1:]:
        equal(results[0], other)


# --- whatever the batch --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return store(tmp_path_factory.mktemp("samples") / "x", np.round(normal(23, 64) * 8) / 8, 4)


def integer_mlp() -> Model:
    """Small integers and powers of two as weights: ONNX Runtime's sums are exact, in any order."""
    proto = models.mlp()
    for tensor in proto.graph.initializer:
        values = np.random.default_rng(len(tensor.name)).integers(-2, 3, tuple(tensor.dims)) / 64
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return load(proto)


@settings(max_examples=12, deadline=None)
@given(batch_size=st.integers(1, 30), seed=st.integers(0, 3), threads=st.integers(1, 2))
def test_batch_size_does_not_matter(folder, batch_size, seed, threads):
    model = integer_mlp()
    sites = match(model).sites
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_MIN_ROWS", 6)
        patch.setattr(sampling, "_SAMPLE_BYTES", 0)
        data = open_data(folder, model.proto)
        one = observe(model, sites, data, seed=seed, batch_size=1)
        many = observe(model, sites, data, seed=seed, batch_size=batch_size, threads=threads)
    equal(one, many)
    with tempfile.TemporaryDirectory() as place:
        for name, result in (("a", one), ("b", many)):
            save_calibration(result, f"{place}/{name}")
        assert Path(place, "a").read_bytes() == Path(place, "b").read_bytes()


@pytest.mark.parametrize("batch_size", [7, 400, None])
def test_sums_are_rounded_alike_whatever_the_batch(tmp_path, batch_size):
    """The input itself is observed, so ONNX Runtime's rounding has no part in it."""
    model = square_model()
    data = open_data(store(tmp_path / "d", normal(700, 4), 2), model.proto)
    site = gemm_site("m", "x", 4, 4)
    equal(observe(model, [site], data, batch_size=batch_size), observe(model, [site], data, batch_size=1))
    cnn = load(models.cnn())
    sites = [s for s in match(cnn).sites if s.input == "x"]
    data = open_data(store(tmp_path / "c", normal(20, 3, 16, 16), 3), cnn.proto)
    equal(observe(cnn, sites, data, batch_size=batch_size), observe(cnn, sites, data, batch_size=1))


def test_the_seed_matters(folder, monkeypatch):
    monkeypatch.setattr(sampling, "_MIN_ROWS", 6)
    monkeypatch.setattr(sampling, "_SAMPLE_BYTES", 0)
    model = integer_mlp()
    sites, data = match(model).sites, open_data(folder, model.proto)
    first, second = (observe(model, sites, data, seed=seed).sites for seed in (0, 1))
    for name in first:
        assert not np.array_equal(first[name].keys, second[name].keys)
        np.testing.assert_array_equal(first[name].energy, second[name].energy)
    assert len({tuple(site.keys.tolist()) for site in first.values()}) == len(first)


@pytest.mark.parametrize(
    "body",
    [
        # The samples are the second axis of the site's input.
        "t = Transpose <perm: ints = [1, 0, 2]> (x) m = MatMul (t, w) y = Relu (m)",
        # Samples mix: each minus the batch's mean.
        "c = ReduceMean <axes: ints = [0], keepdims: int = 1> (x) t = Sub (x, c) m = MatMul (t, w) y = Relu (m)",
        # Only single samples can be run: the reshape is for one.
        "t = Reshape (x, shape) m = MatMul (t, w) y = Relu (m)",
    ],
    ids=["second-axis", "mixing", "fixed-reshape"],
)
def test_models_whose_batches_do_not_divide_are_run_sample_by_sample(tmp_path, body):
    weights: dict[str, object] = {"w": (6, 4)}
    if "Reshape" in body:
        weights["shape"] = np.array([1, 6, 6], np.int64)
    model = load(build(f"g (float[N, 6, 6] x) => (float[A, B, C] y) {{ {body} }}", weights))
    data = open_data(store(tmp_path / "d", normal(6, 6, 6)), model.proto)
    site = gemm_site("m", "t", 6, 4)
    equal(observe(model, [site], data, batch_size=1), observe(model, [site], data, batch_size=6))


def test_sites_that_share_an_input(tmp_path):
    model = load(
        build(
            "g (float[N, 6] x) => (float[N, 4] y, float[N, 4] z) { y = MatMul (x, w) z = MatMul (x, v) }",
            {"w": (6, 4), "v": (6, 4)},
        )
    )
    data = open_data(store(tmp_path / "d", normal(4, 6)), model.proto)
    found = observe(model, [gemm_site("y", "x", 6, 4), gemm_site("z", "x", 6, 4)], data).sites
    np.testing.assert_array_equal(found["y"].energy, found["z"].energy)
    assert found["y"].elements == 4 and found["y"].energy is not found["z"].energy


def test_no_sites_still_says_which_samples_were_seen(folder):
    model = load(models.mlp())
    data = open_data(folder, model.proto)
    result = observe(model, [], data)
    assert result.sites == {} and result.samples == 23 and result.data_digest == data.digest


def test_the_model_and_its_own_outputs_stay(folder):
    proto = models.mlp()
    model = load(proto)
    before = proto.SerializeToString()
    observe(model, match(model).sites, open_data(folder, proto))
    assert proto.SerializeToString() == before


def test_models_beyond_one_message_go_through_a_temporary_folder(folder, tmp_path, monkeypatch):
    model = load(models.mlp())
    sites, data = match(model).sites, open_data(folder, model.proto)
    expected = observe(model, sites, data, threads=1)
    monkeypatch.setattr("exprune_cli.sessions._MESSAGE_LIMIT", 0)
    monkeypatch.setattr("exprune_cli.model._MESSAGE_LIMIT", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = [tensor.raw_data for tensor in model.proto.graph.initializer]
    equal(observe(model, sites, data, threads=1), expected)
    assert list(tmp_path.iterdir()) == []
    assert [tensor.raw_data for tensor in model.proto.graph.initializer] == before


# --- NaN, infinity and failures ------------------------------------------------------------------


def square_model() -> Model:
    return load(
        build("g (float[N, 4] x) => (float[N, 4] y) { m = MatMul (x, w) y = Relu (m) }", {"w": (4, 4)})
    )


@pytest.mark.parametrize("batch_size", [1, 8])
def test_rows_that_are_not_finite_are_left_out(tmp_path, caplog, batch_size):
    x = normal(8, 4)
    x[2, 1], x[5, 0] = np.nan, np.inf
    model = square_model()
    data = open_data(store(tmp_path / "d", x), model.proto)
    with caplog.at_level(logging.WARNING):
        found = observe(model, [gemm_site("m", "x", 4, 4)], data, batch_size=batch_size).sites["m"]
    good = np.delete(x, [2, 5], axis=0)
    np.testing.assert_allclose(found.energy, np.square(good, dtype=np.float64).sum(0), rtol=1e-12)
    assert (found.elements, found.count, len(found.rows)) == (6, 8, 6)
    assert "2 of 8 input positions are NaN or infinite" in caplog.text


def test_conv_patches_with_nan_are_left_out(tmp_path):
    model = load(models.cnn())
    site = next(s for s in match(model).sites if s.conv and s.input == "x")
    x = normal(3, 3, 16, 16)
    x[1, 2, 7, 7] = np.nan
    found = observe(model, [site], open_data(store(tmp_path / "d", x), model.proto)).sites[site.name]
    assert found.elements == 3 * 256 - 1 and found.count == 3 * 256 and len(found.rows) == 3 * 256 - 9
    mask = np.ones((3, 16, 16), bool)
    mask[1, 7, 7] = False
    expected = [np.square(x[:, g], dtype=np.float64)[mask].sum() for g in range(3)]
    np.testing.assert_allclose(found.energy, expected, rtol=1e-6)


def test_squares_beyond_single_precision(tmp_path):
    x = normal(4, 4) * np.float32(1e30)
    model = square_model()
    found = observe(
        model, [gemm_site("m", "x", 4, 4)], open_data(store(tmp_path / "d", x), model.proto)
    ).sites["m"]
    np.testing.assert_allclose(found.energy, np.square(x, dtype=np.float64).sum(0), rtol=1e-12)
    conv = load(models.cnn())
    site = next(s for s in match(conv).sites if s.conv and s.input == "x")
    x = normal(2, 3, 16, 16) * np.float32(1e30)
    found = observe(conv, [site], open_data(store(tmp_path / "c", x), conv.proto)).sites[site.name]
    np.testing.assert_allclose(found.energy, np.square(x, dtype=np.float64).sum((0, 2, 3)), rtol=1e-6)


def test_nothing_finite_at_all(tmp_path):
    model = square_model()
    data = open_data(store(tmp_path / "d", np.full((3, 4), np.nan, np.float32)), model.proto)
    with pytest.raises(ExpruneError, match="input of site 'm' is NaN or infinite wherever"):
        observe(model, [gemm_site("m", "x", 4, 4)], data)


def test_no_samples(folder):
    model = load(models.mlp())
    data = open_data(folder, model.proto)
    with pytest.raises(ExpruneError, match="no samples"):
        observe(model, [], data.without(data.ids))


def test_offset_of_another_shape(tmp_path):
    model = load(
        build(
            "g (float[N, 4] x) => (float[N, 4] y) { s = ReduceMax <axes: ints = [1]> (x) m = MatMul (x, w) a = Add (m, s) y = Relu (a) }",
            {"w": (4, 4)},
        )
    )
    data = open_data(store(tmp_path / "d", normal(3, 4)), model.proto)
    with pytest.raises(ExpruneError, match=r"'s' has shape \(\d, 1\).*leave the site out with exclude"):
        observe(model, [gemm_site("m", "x", 4, 4, offset="s")], data)


def test_a_sample_that_the_model_fails_on_is_named(tmp_path):
    model = load(
        build(
            "g (int64[N] x) => (float[N, 4] y) { e = Gather (table, x) m = MatMul (e, w) y = Relu (m) }",
            {"table": (5, 4), "w": (4, 4)},
        )
    )
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "a.npz", x=np.array([1, 2]))
    np.savez(tmp_path / "d" / "b.npz", x=np.array([99]))
    with pytest.raises(ExpruneError, match=r"b.npz: the model fails on it"):
        observe(model, [gemm_site("m", "e", 4, 4)], open_data(tmp_path / "d", model.proto), batch_size=1)


def test_progress_and_interruption(folder):
    model = load(models.mlp())
    sites, data = match(model).sites, open_data(folder, model.proto)
    seen: list[tuple[int, int]] = []
    observe(model, sites, data, batch_size=10, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 23), (20, 23), (23, 23)]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(model, sites, data, progress=interrupt)


def test_statistics_do_not_grow_with_the_data(tmp_path):
    model = square_model()
    data = open_data(store(tmp_path / "d", normal(5000, 4)), model.proto)
    found: SiteStatistics = observe(model, [gemm_site("m", "x", 4, 4)], data).sites["m"]
    assert (len(found.rows), found.count) == (2048, 5000)
