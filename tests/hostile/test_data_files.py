"""Crafted sample data and calibration files: bounded memory, nothing unpickled, one clear line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import exprune_cli
from exprune_cli import available
from exprune_cli.calibration import load_calibration, save_calibration
from exprune_cli.data import open_data
from exprune_cli.errors import ExpruneError
from tests.hostile.conftest import Fails
from tests.models import build

MODEL = "g (float[N, 8] x) => (float[N, 4] y) { h = Gemm (x, w, b)\n r = Relu (h)\n y = MatMul (r, v) }"


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return build(MODEL, {"w": (8, 16), "b": (16,), "v": (16, 4)})


def _npy(kind: str, shape: str, content: bytes = b"", version: int = 1) -> bytes:
    """A ``.npy`` file whose header says what it is told to."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    header = header.ljust(117) + b"\n" if version == 1 else header + b"\n"
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + content


HEADERS = {
    "negative size": _npy("<f4", "(-1, 8)", bytes(32)),
    "two negative sizes": _npy("<f4", "(-1, -8)", bytes(32)),
    "huge size": _npy("<f4", "(4611686018427387904, 8)", bytes(32)),
    "product of 2**64": _npy("<f4", "(4611686018427387904, 16)", b""),
    "samples without elements": _npy("<f4", "(4611686018427387904, 0)", b""),
    "elements without size": _npy("<U0", "(4611686018427387904, 8)", b""),
    "objects": _npy("|O", "(1, 8)", bytes(64)),
    "record": _npy("f4,f4", "(1, 8)", bytes(64)),
    "no tuple": _npy("<f4", "8", bytes(32)),
    "open bracket": _npy("<f4", "((((", bytes(32)),
    "open text": _npy("<f4", "'''", bytes(32)),
    "calls": _npy("<f4", "(__import__('os').mkdir('called'),)", bytes(32)),
    "deep nesting": _npy("<f4", "(" * 5000 + ")" * 5000, bytes(32), version=2),
    "truncated": _npy("<f4", "(1, 8)", bytes(31)),
    "unknown version": b"\x93NUMPY\x09\x00" + bytes(128),
    "no array": b"",
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("name", HEADERS)
def test_array_headers_that_lie(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    if suffix == "npy":
        (folder / "a.npy").write_bytes(HEADERS[name])
    else:
        with zipfile.ZipFile(folder / "a.npz", "w") as archive:
            archive.writestr("x.npy", HEADERS[name])
    with pytest.raises(ExpruneError, match="a.np"):
        for _ in open_data(folder, proto).batches(4):
            pass
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("what", ["data", "calibration"])
def test_zip_bombs_are_refused_before_they_are_unpacked(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(available, "available_bytes", lambda: 2**20)
    size = 2**18
    if what == "data":
        (tmp_path / "data").mkdir()
        np.savez_compressed(tmp_path / "data" / "a.npz", x=np.zeros((size, 8), np.float32))
        assert (tmp_path / "data" / "a.npz").stat().st_size < 2**14
        with pytest.raises(ExpruneError, match=r"a\.npz: unpacked: takes 0\.0 GB of memory"):
            open_data(tmp_path / "data", proto)
    else:
        with zipfile.ZipFile(tmp_path / "a.calib", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", "{}")
            archive.writestr("sample_ids.npy", bytes(2**22))
        with pytest.raises(ExpruneError, match=r"a\.calib: unpacked: takes 0\.0 GB of memory"):
            load_calibration(tmp_path / "a.calib")


def test_an_archive_that_claims_terabytes(proto: onnx.ModelProto, refuses: Fails, tmp_path: Path) -> None:
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", _npy("<f4", "(1073741823, 8)"))
        archive.infolist()[0].file_size = 2**35 - 32 + 128
    (tmp_path / "data" / "a.npz").write_bytes(content.getvalue())
    assert "a.npz" in refuses("calibrate", "m.onnx", "--data", "data")


@pytest.mark.parametrize("change", ["more dims", "fewer dims", "negative", "outside", "unknown type", "cut"])
def test_tensor_files_that_lie(proto: onnx.ModelProto, tmp_path: Path, change: str) -> None:
    tensor = numpy_helper.from_array(np.ones((2, 8), np.float32), "x")
    if change == "more dims":
        tensor.dims[0] = 2**40
    elif change == "fewer dims":
        tensor.dims[0] = 1
    elif change == "negative":
        tensor.dims[0] = -1
    elif change == "outside":
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/hostname")
    elif change == "unknown type":
        tensor.data_type = 99
    else:
        tensor.raw_data = tensor.raw_data[:-2]
    folder = tmp_path / "data" / "test_data_set_0"
    folder.mkdir(parents=True)
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(ExpruneError, match=r"input_0\.pb"):
        open_data(tmp_path / "data", proto)


@pytest.mark.parametrize("name", HEADERS)
def test_calibration_arrays_that_lie(proto: onnx.ModelProto, tmp_path: Path, name: str) -> None:
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    save_calibration(exprune_cli.calibrate(proto, x), tmp_path / "good.calib")
    with zipfile.ZipFile(tmp_path / "good.calib") as archive:
        members = {key: archive.read(key) for key in archive.namelist()}
    for key in ("sample_ids.npy", "0/rows.npy"):
        with zipfile.ZipFile(tmp_path / "bad.calib", "w") as archive:
            for other, content in members.items():
                archive.writestr(other, HEADERS[name] if other == key else content)
        with pytest.raises(ExpruneError, match=r"bad\.calib: is"):
            load_calibration(tmp_path / "bad.calib")


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", 2**61), ("samples", -1), ("samples", 1e3), ("version", 2), ("sites", {}), ("sites", [[]])],
)
def test_calibration_headers_that_lie(
    proto: onnx.ModelProto, tmp_path: Path, key: str, value: object
) -> None:
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    save_calibration(exprune_cli.calibrate(proto, x), tmp_path / "good.calib")
    with zipfile.ZipFile(tmp_path / "good.calib") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = {**json.loads(members["header.json"]), key: value}
    members["header.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(tmp_path / "bad.calib", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ExpruneError, match=r"bad\.calib: (is damaged|has version)"):
        load_calibration(tmp_path / "bad.calib")


def test_a_name_too_long_for_any_file(refuses: Fails, proto: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(proto, tmp_path / "m.onnx")
    assert "cannot be read" in refuses("report", "m.onnx", "--data", "a" * 300)
    assert "cannot be read" in refuses("report", "a" * 300)
