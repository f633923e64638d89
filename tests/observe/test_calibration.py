"""Calibration files: the same bytes always, whole or not at all, and nothing unsound gets in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exprune_cli import sampling
from exprune_cli.calibration import check_belongs, load_calibration, merge, save_calibration
from exprune_cli.data import digest_of, open_data
from exprune_cli.errors import ExpruneError
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.sites import Calibration, SiteStatistics
from tests import models
from tests.observe.test_observe import equal, gemm_site, integer_mlp, normal, store

MODEL = "0123456789abcdef" * 4


def example() -> Calibration:
    """Two sites, one with offsets."""

    def site(groups: int, taps: int, outputs: int | None) -> SiteStatistics:
        rows = np.maximum(np.arange(5 * groups * taps, dtype=np.float32).reshape(5, groups, taps) - 9, 0)
        return SiteStatistics(
            rows=rows,
            keys=np.arange(5, dtype=np.uint64) * np.uint64(2**60),
            offsets=None if outputs is None else np.arange(5 * outputs, dtype=np.float32).reshape(5, outputs),
            energy=np.arange(groups) / 3,
            input_zeros=np.arange(groups),
            elements=40,
            count=50,
        )

    ids = np.array([3, 2**63, 1], np.uint64)
    return Calibration(MODEL, digest_of(ids), 7, 3, ids, {"fc/1": site(4, 1, None), "conv ü": site(3, 9, 2)})


def rewritten(path: Path, change) -> Path:
    """The file with its members changed: ``change(members: dict[str, bytes])``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


# --- round trip ----------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    save_calibration(example(), tmp_path / "c.cal")
    found = load_calibration(tmp_path / "c.cal")
    equal(found, example())
    for site in found.sites.values():
        assert site.rows.dtype == np.float32 and site.keys.dtype == np.uint64
        site.rows[0] = 1  # arrays can be written to


def test_equal_content_is_equal_bytes(tmp_path):
    """Golden: what the members unpack to. The packed bytes depend on zlib and are compared below."""
    save_calibration(example(), tmp_path / "a.cal")
    os.utime(tmp_path / "a.cal", (0, 0))
    save_calibration(example(), tmp_path / "b.cal")
    assert (tmp_path / "a.cal").read_bytes() == (tmp_path / "b.cal").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.cal") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        digest = hashlib.sha256()
        for name in archive.namelist():
            digest.update(name.encode() + b"\0" + archive.read(name))
    assert digest.hexdigest() == "7473be0435a649fec81e6fdba1fb16edb69883f19cd7c5cf6b4b23f3946898c4"


def test_numpy_can_read_it(tmp_path):
    save_calibration(example(), tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["1/rows"], example().sites["conv ü"].rows)
        header = json.loads(archive["header.json"])
    assert header["format"] == "exprune-calibration" and header["sites"][1]["name"] == "conv ü"


def test_of_a_real_model(tmp_path):
    model = load(models.cnn())
    data = open_data(store(tmp_path / "d", normal(4, 3, 16, 16)), model.proto)
    calibration = observe(model, match(model).sites, data)
    save_calibration(calibration, tmp_path / "c.cal")
    equal(load_calibration(tmp_path / "c.cal"), calibration)
    check_belongs(calibration, model, "c.cal", match(model).sites)


def test_zeros_take_no_space(tmp_path):
    calibration = example()
    site = calibration.sites["fc/1"]
    site.rows = np.zeros((1024, 1024, 1), np.float32)
    site.keys = np.zeros(1024, np.uint64)
    site.energy, site.input_zeros = np.zeros(1024), np.zeros(1024, np.int64)
    site.count = 2000
    save_calibration(calibration, tmp_path / "c.cal")
    assert (tmp_path / "c.cal").stat().st_size < 50_000
    equal(load_calibration(tmp_path / "c.cal"), calibration)


# --- whole or not at all -------------------------------------------------------------------------


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "c.cal"
    path.write_bytes(b"before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExpruneError, match="c.cal: cannot be written .*No space left"):
        save_calibration(example(), path)
    assert os.listdir(tmp_path) == ["c.cal"] and path.read_bytes() == b"before"
    with pytest.raises(ExpruneError, match="cannot be written"):
        save_calibration(example(), tmp_path / "none" / "c.cal")


# --- unsound files -------------------------------------------------------------------------------


def header(**changes):
    """A change of the header, or with the key ``site`` of the first site's entry."""

    def change(members: dict[str, bytes]) -> None:
        content = json.loads(members["header.json"])
        site = changes.pop("site", {})
        content.update(changes)
        if site:
            content["sites"][0].update(site)
        members["header.json"] = json.dumps(content).encode()

    return change


def member(name: str, array: np.ndarray | bytes | None):
    """Another array in the place of a member; None removes it."""

    def change(members: dict[str, bytes]) -> None:
        if array is None:
            del members[name]
        else:
            members[name] = array if isinstance(array, bytes) else npy(array)

    return change


ROWS = np.zeros((5, 4, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (member("header.json", None), "is no calibration file"),
        (member("header.json", b"{"), "its header cannot be read"),
        (member("header.json", b"[" * 100_000), "its header cannot be read"),
        (member("header.json", b"[]"), "is no calibration file"),
        (header(format="other"), "is no calibration file"),
        (header(version=2), "has version 2, this exprune reads version 1"),
        (header(model_sha256="abc"), "model_sha256 is no digest"),
        (header(model_sha256=None), "model_sha256 is no text"),
        (header(data_digest="0" * 64), "data_digest does not fit"),
        (header(seed="1"), "seed is no number"),
        (header(seed=True), "seed is no number"),
        (header(samples=-1), "samples is no count"),
        (header(samples=2), "'sample_ids' has a wrong type or shape"),
        (header(samples=10**30), "samples is no count"),
        (header(sites={}), "sites is no list of objects"),
        (header(sites=[1]), "sites is no list of objects"),
        (header(site={"name": "conv ü"}), "site 1 has the name of another"),
        (header(site={"name": 5}), "name is no text"),
        (header(site={"groups": 0}), "has no groups or taps"),
        (header(site={"rows": 51}), "has too many rows"),
        (header(site={"rows": 10**9, "count": 10**9}), "has too many rows"),
        (header(site={"rows": 1.5}), "rows is no count"),
        (header(site={"outputs": "n"}), "outputs is no count"),
        (header(site={"outputs": 3}), "'0/offsets' is missing"),
        (header(site={"elements": 2}), "odd counts of zeros"),
        (member("0/rows.npy", None), "'0/rows' is missing"),
        (member("0/rows.npy", ROWS.astype("f8")), "'0/rows' has a wrong type or shape"),
        (member("0/rows.npy", ROWS[:4]), "'0/rows' has a wrong type or shape"),
        (member("0/rows.npy", np.asfortranarray(np.zeros((5, 4, 1), ">f4"))), "'0/rows' has a wrong type"),
        (member("0/rows.npy", npy(ROWS)[:-4]), "'0/rows' has a wrong size"),
        (member("0/rows.npy", npy(ROWS) + b"more"), "'0/rows' has a wrong size"),
        (member("0/rows.npy", np.full_like(ROWS, np.nan)), "rows that are not finite"),
        (member("0/rows.npy", npy(np.array([[[Path("x")]]], object))), "'0/rows' has a wrong type"),
        (member("0/keys.npy", np.arange(5, dtype=np.uint64)[::-1].copy()), "keys out of order"),
        (member("0/energy.npy", np.array([0, 1, np.inf, 0])), "odd energies"),
        (member("0/energy.npy", np.array([0, -1.0, 0, 0])), "odd energies"),
        (member("0/input_zeros.npy", np.array([0, 0, -1, 0])), "odd counts of zeros"),
        (member("1/offsets.npy", np.full((5, 2), np.nan, np.float32)), "offsets that are not finite"),
        (member("9/rows.npy", ROWS), "members that do not belong there"),
        (member("../evil", b""), "members that do not belong there"),
    ],
)
def test_unsound_files_are_refused(tmp_path, change, message):
    save_calibration(example(), tmp_path / "c.cal")
    with pytest.raises(ExpruneError, match=message) as error:
        load_calibration(rewritten(tmp_path / "c.cal", change))
    text = str(error.value)
    assert text.startswith(str(tmp_path / "c.cal")) and "\n" not in text and "exprune calibrate" in text


def test_sizes_are_bounded_before_anything_is_read(tmp_path):
    """A bomb: a megabyte of file that would unpack to a gigabyte, if the header is believed."""
    change = header(site={"rows": 512, "groups": 2**19, "count": 10**9, "elements": 10**9})
    save_calibration(example(), tmp_path / "c.cal")
    with pytest.raises(ExpruneError, match="'0/rows' has a wrong type or shape"):
        load_calibration(rewritten(tmp_path / "c.cal", change))
    content = (tmp_path / "c.cal").read_bytes()
    with zipfile.ZipFile(tmp_path / "c.cal") as archive:
        info = archive.getinfo("0/rows.npy")
    # The central directory's entry: the uncompressed size stands 24 bytes into it.
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(b"0/rows.npy"))
    assert content[place + 24 : place + 28] == info.file_size.to_bytes(4, "little")
    (tmp_path / "c.cal").write_bytes(content[: place + 24] + b"\xf0\xff\xff\xff" + content[place + 28 :])
    with pytest.raises(ExpruneError, match="impossible sizes"):
        load_calibration(tmp_path / "c.cal")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ExpruneError, match="no such file: make it with `exprune calibrate`"):
        load_calibration(tmp_path / "none")
    with pytest.raises(ExpruneError, match="cannot be read"):
        load_calibration(tmp_path)
    (tmp_path / "c.cal").write_bytes(b"hello")
    with pytest.raises(ExpruneError, match="is no calibration file"):
        load_calibration(tmp_path / "c.cal")
    np.savez(tmp_path / "c.npz", x=ROWS)
    with pytest.raises(ExpruneError, match="is no calibration file"):
        load_calibration(tmp_path / "c.npz")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_one_line(tmp_path, data):
    path = tmp_path / "c.cal"
    save_calibration(example(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        load_calibration(path)
    except ExpruneError as error:
        assert "\n" not in str(error)


# --- use -----------------------------------------------------------------------------------------


def test_check_belongs():
    site = gemm_site("fc/1", "x", 4, 8)
    check_belongs(example(), MODEL, "c.cal", [site])
    for sites, model, message in [
        (
            [],
            "f" * 64,
            r"c.cal: was made with another model \(SHA-256 0123456789ab..., this one is ffffffffffff",
        ),
        ([replace(site, name="other")], MODEL, "knows no site 'other'"),
        ([replace(site, groups=5)], MODEL, "'fc/1' has another shape"),
        ([replace(site, offset="o")], MODEL, "'fc/1' has another shape"),
        ([replace(site, name="conv ü", groups=3, outputs=2)], MODEL, "has another shape"),
    ]:
        with pytest.raises(ExpruneError, match=message):
            check_belongs(example(), model, "c.cal", sites)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 19), limit=st.integers(1, 60), seed=st.integers(0, 9))
def test_merge_is_one_pass_over_both(tmp_path_factory, cut, limit, seed):
    """Multiples of 1/8 keep all sums exact, so the merged file is equal in every bit."""
    x = np.round(normal(20, 64, seed=seed) * 8) / 8
    folder = tmp_path_factory.mktemp("merge")
    model = integer_mlp()
    sites = match(model).sites
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_MIN_ROWS", limit)
        patch.setattr(sampling, "_SAMPLE_BYTES", 0)
        parts = [
            observe(model, sites, open_data(store(folder / name, part), model.proto), seed=seed)
            for name, part in (("all", x), ("a", x[:cut]), ("b", x[cut:]))
        ]
        merged = merge(parts[1], parts[2])
    equal(merged, parts[0])
    assert any(site.offsets is not None for site in merged.sites.values())


def test_what_cannot_be_merged():
    a = example()
    b = example()
    b.sample_ids = np.array([9, 10, 11], np.uint64)
    assert merge(a, b).samples == 6
    for change, message in [
        ({"model_sha256": "f" * 64}, "different models"),
        ({"seed": 8}, "different seeds"),
        ({"sites": {}}, "different sites"),
        ({"sample_ids": np.array([5, 3, 6], np.uint64)}, "have 1 samples in common"),
    ]:
        with pytest.raises(ExpruneError, match=message):
            merge(a, replace(b, **change))
