"""Calibration files: what one pass over the data said, for later use with the same model.

A file is a ZIP archive (``numpy.load`` opens it too) of these members, in this order:

==========================  ===================================================================
``header.json``             ``format``, ``version``, ``model_sha256``, ``data_digest``, ``seed``,
                            ``samples``, and ``sites``: a list of objects with ``name``,
                            ``rows`` (R), ``groups`` (G), ``taps`` (T), ``outputs`` (N; null
                            without offsets), ``elements``, ``count``; ``groups``, where samples
                            are in groups
``sample_ids.npy``          ``[samples]`` uint64
``group_ids.npy``           ``[groups]`` uint64, ascending, only if the header has ``groups``
``<i>/rows.npy``            ``[R, G, T]`` float32, of the i-th site
``<i>/keys.npy``            ``[R]`` uint64, ascending
``<i>/offsets.npy``         ``[R, N]`` float32, only if ``outputs`` is not null
``<i>/energy.npy``          ``[G]`` float64
``<i>/input_zeros.npy``     ``[G]`` int64
==========================  ===================================================================

Nothing in it depends on the time or the machine: equal statistics give equal bytes.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exprune_cli.available import check_fits
from exprune_cli.data.dataset import digest_of
from exprune_cli.errors import ExpruneError
from exprune_cli.model import write_bytes
from exprune_cli.sampling import row_limit
from exprune_cli.sites import Calibration, Site, SiteStatistics

if TYPE_CHECKING:
    from exprune_cli.model import Model

FORMAT = "exprune-calibration"
VERSION = 1
#: The earliest time a ZIP archive can tell.
_TIME = (1980, 1, 1, 0, 0, 0)
#: Rows are mostly incompressible digits between a ReLU's zeros: a higher level only takes longer.
_LEVEL = 1
#: No file may claim more than this, nor more than deflate can expand its bytes to.
_MAX_BYTES = 16 * 2**30
_MAX_HEADER_BYTES = 64 * 2**20
_MAX_EXPANSION = 1100
_MAX_COUNT = 2**62
#: What zipfile, NumPy and zlib raise on files that are cut short or made up.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_HEX = set("0123456789abcdef")


# --- writing -----------------------------------------------------------------------------------


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Writes a calibration file whole or not at all.

    Raises:
        ExpruneError: The folder or the file cannot be written. Nothing is left behind.
    """
    path = Path(path)
    content = _serialise(calibration)
    try:
        write_bytes(content, path)
    except OSError as error:
        raise ExpruneError(f"{path}: cannot be written ({error.strerror or error})") from None


def _serialise(calibration: Calibration) -> bytes:
    header: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "model_sha256": calibration.model_sha256,
        "data_digest": calibration.data_digest,
        "seed": calibration.seed,
        "samples": calibration.samples,
        "sites": [
            {
                "name": name,
                "rows": site.rows.shape[0],
                "groups": site.rows.shape[1],
                "taps": site.rows.shape[2],
                "outputs": None if site.offsets is None else site.offsets.shape[1],
                "elements": site.elements,
                "count": site.count,
            }
            for name, site in calibration.sites.items()
        ],
    }
    if calibration.random:
        header["random"] = True
    arrays = {"sample_ids": np.asarray(calibration.sample_ids, np.uint64)}
    if calibration.group_ids is not None:
        header["groups"] = len(calibration.group_ids)
        arrays["group_ids"] = np.asarray(calibration.group_ids, np.uint64)
    for index, site in enumerate(calibration.sites.values()):
        arrays |= _arrays(site, index)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        _add(archive, "header.json", json.dumps(header, indent=1).encode())
        for name, array in arrays.items():
            member = io.BytesIO()
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            np.lib.format.write_array(member, little, version=(1, 0), allow_pickle=False)
            _add(archive, f"{name}.npy", member.getbuffer())
    return content.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system = 3
    info.external_attr = 0o644 << 16
    archive.writestr(info, content, zipfile.ZIP_DEFLATED, _LEVEL)


def _arrays(site: SiteStatistics, index: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        f"{index}/rows": np.asarray(site.rows, np.float32),
        f"{index}/keys": np.asarray(site.keys, np.uint64),
    }
    if site.offsets is not None:
        arrays[f"{index}/offsets"] = np.asarray(site.offsets, np.float32)
    arrays[f"{index}/energy"] = np.asarray(site.energy, np.float64)
    arrays[f"{index}/input_zeros"] = np.asarray(site.input_zeros, np.int64)
    return arrays


# --- reading -----------------------------------------------------------------------------------


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Reads a calibration file and checks every field of it.

    Raises:
        ExpruneError: It cannot be read, or is no sound calibration file.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, path.stat().st_size).calibration()
    except _Unsound as error:
        raise ExpruneError(f"{path}: {error}: write it again with `exprune calibrate`") from None
    except FileNotFoundError:
        raise ExpruneError(f"{path}: no such file: make it with `exprune calibrate`") from None
    except OSError as error:
        raise ExpruneError(f"{path}: cannot be read ({error.strerror or error})") from None
    except _BROKEN:
        raise ExpruneError(
            f"{path}: is no calibration file, or damaged: write it again with `exprune calibrate`"
        ) from None


class _Unsound(Exception):
    """What is wrong with a file's content."""


def _demand(holds: bool, text: str) -> None:
    if not holds:
        raise _Unsound(text)


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        infos = archive.infolist()
        self._infos = {info.filename: info for info in infos}
        _demand(len(infos) == len(self._infos), "is damaged: members occur twice")
        total = sum(info.file_size for info in infos)
        _demand(total <= min(_MAX_BYTES, _MAX_EXPANSION * size), "is damaged: impossible sizes")
        check_fits(total, f"{archive.filename}: unpacked")

    def calibration(self) -> Calibration:
        header = self._header()
        count = _whole(header, "samples")
        ids = self._array("sample_ids", np.uint64, (count,))
        model = _text(header, "model_sha256")
        digest = _text(header, "data_digest")
        _demand(len(model) == 64 and not set(model) - _HEX, "is damaged: model_sha256 is no digest")
        _demand(digest == digest_of(ids), "is damaged: data_digest does not fit the samples")
        seed = header.get("seed")
        if type(seed) is not int or abs(seed) >= 2**64:
            raise _Unsound("is damaged: seed is no number")
        random = header.get("random", False)
        if not isinstance(random, bool):
            raise _Unsound("is damaged: random is no truth value")
        groups = None
        if "groups" in header:
            groups = self._array("group_ids", np.uint64, (_whole(header, "groups"),))
            _demand(bool((groups[1:] > groups[:-1]).all()), "is damaged: group_ids are out of order")
        entries = header.get("sites")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise _Unsound("is damaged: sites is no list of objects")
        sites: dict[str, SiteStatistics] = {}
        for index, entry in enumerate(entries):
            name = _text(entry, "name")
            _demand(name not in sites, f"is damaged: site {index} has the name of another")
            sites[name] = self._site(entry, index)
        _demand(not self._infos, "is damaged: it has members that do not belong there")
        return Calibration(model, digest, seed, count, ids, sites, random, groups)

    def _header(self) -> dict[str, Any]:
        info = self._infos.pop("header.json", None)
        if info is None or info.file_size > _MAX_HEADER_BYTES:
            raise _Unsound("is no calibration file")
        try:
            header = json.loads(self._archive.read(info))
        except (ValueError, RecursionError):
            raise _Unsound("is no calibration file: its header cannot be read") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise _Unsound("is no calibration file")
        version = header.get("version")
        _demand(version == VERSION, f"has version {version!s:.20}, this exprune reads version {VERSION}")
        return header

    def _site(self, entry: dict[str, Any], index: int) -> SiteStatistics:
        rows, groups, taps = (_whole(entry, key) for key in ("rows", "groups", "taps"))
        elements, count = (_whole(entry, key) for key in ("elements", "count"))
        where = f"is damaged: site {index}"
        _demand(groups > 0 and taps > 0, f"{where} has no groups or taps")
        _demand(rows <= min(count, row_limit(groups, taps)), f"{where} has too many rows")
        offsets = None
        if entry.get("outputs") is not None:
            offsets = self._array(f"{index}/offsets", np.float32, (rows, _whole(entry, "outputs")))
            _demand(bool(np.isfinite(offsets).all()), f"{where} has offsets that are not finite")
        site = SiteStatistics(
            rows=self._array(f"{index}/rows", np.float32, (rows, groups, taps)),
            keys=self._array(f"{index}/keys", np.uint64, (rows,)),
            offsets=offsets,
            energy=self._array(f"{index}/energy", np.float64, (groups,)),
            input_zeros=self._array(f"{index}/input_zeros", np.int64, (groups,)),
            elements=elements,
            count=count,
        )
        _demand(bool(np.isfinite(site.rows).all()), f"{where} has rows that are not finite")
        _demand(bool((site.keys[1:] >= site.keys[:-1]).all()), f"{where} has keys out of order")
        _demand(bool((np.isfinite(site.energy) & (site.energy >= 0)).all()), f"{where} has odd energies")
        zeros = site.input_zeros
        _demand(bool(((zeros >= 0) & (zeros <= elements)).all()), f"{where} has odd counts of zeros")
        return site

    def _array(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        info = self._infos.pop(f"{name}.npy", None)
        if info is None:
            raise _Unsound(f"is damaged: '{name}' is missing")
        with self._archive.open(info) as member:
            _demand(np.lib.format.read_magic(member) == (1, 0), f"is damaged: '{name}' has an odd header")
            found, fortran, kind = np.lib.format.read_array_header_1_0(member)
            sound = found == shape and not fortran and kind == np.dtype(dtype).newbyteorder("<")
            _demand(sound, f"is damaged: '{name}' has a wrong type or shape")
            size = math.prod(shape) * kind.itemsize
            _demand(info.file_size == member.tell() + size, f"is damaged: '{name}' has a wrong size")
            # bytearray, so that the array may be written to.
            content = bytearray(member.read())
        return np.frombuffer(content, kind).astype(dtype, copy=False).reshape(shape)


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise _Unsound(f"is damaged: {key} is no count")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise _Unsound(f"is damaged: {key} is no text")
    return value


# --- use -----------------------------------------------------------------------------------------


def check_belongs(
    calibration: Calibration,
    model: Model | str,
    path: str | os.PathLike[str],
    sites: Sequence[Site] = (),
) -> None:
    """Checks that a calibration was made with this model, and knows these sites.

    Args:
        calibration: What was loaded.
        model: The model, or its SHA-256.
        path: The calibration's file, for messages.
        sites: Sites whose statistics will be used.

    Raises:
        ExpruneError: It was made with another model, or a site is missing or has another shape.
    """
    sha256 = model if isinstance(model, str) else model.sha256
    if calibration.model_sha256 != sha256:
        raise ExpruneError(
            f"{os.fspath(path)}: was made with another model (SHA-256 {calibration.model_sha256[:12]}..., "
            f"this one is {sha256[:12]}...): calibrate this model"
        )
    for site in sites:
        found = calibration.sites.get(site.name)
        if found is None:
            raise ExpruneError(f"{os.fspath(path)}: knows no site '{site.name}': calibrate again")
        outputs = None if found.offsets is None else found.offsets.shape[1]
        expected = None if site.offset is None else site.outputs
        if found.rows.shape[1:] != (site.groups, site.taps) or outputs != expected:
            raise ExpruneError(f"{os.fspath(path)}: site '{site.name}' has another shape: calibrate again")


def merge(a: Calibration, b: Calibration) -> Calibration:
    """What one pass over both data sets, first ``a``'s and then ``b``'s, would have given.

    The sampled rows are the same; sums are the same up to the rounding of one addition.

    Raises:
        ExpruneError: They are of different models, seeds or sites, or have samples in common.
    """
    for what, first, second in (
        ("models", a.model_sha256, b.model_sha256),
        ("seeds", a.seed, b.seed),
        ("sites", _shapes(a), _shapes(b)),
    ):
        if first != second:
            raise ExpruneError(f"calibrations of different {what} cannot be merged: calibrate with the same")
    common = len(np.intersect1d(a.sample_ids, b.sample_ids))
    if common:
        raise ExpruneError(f"the calibrations have {common} samples in common: merge disjoint data")
    ids = np.concatenate([a.sample_ids, b.sample_ids])
    groups = [part.group_ids for part in (a, b) if part.group_ids is not None]
    return Calibration(
        model_sha256=a.model_sha256,
        data_digest=digest_of(ids),
        seed=a.seed,
        samples=len(ids),
        sample_ids=ids,
        sites={name: _merge_site(site, b.sites[name]) for name, site in a.sites.items()},
        random=a.random or b.random,
        group_ids=np.unique(np.concatenate(groups)) if groups else None,
    )


def _shapes(calibration: Calibration) -> dict[str, tuple[tuple[int, ...], int | None]]:
    return {
        name: (site.rows.shape[1:], None if site.offsets is None else site.offsets.shape[1])
        for name, site in calibration.sites.items()
    }


def _merge_site(a: SiteStatistics, b: SiteStatistics) -> SiteStatistics:
    keys = np.concatenate([a.keys, b.keys])
    chosen = np.argsort(keys, kind="stable")[: row_limit(*a.rows.shape[1:])]
    offsets = None
    if a.offsets is not None and b.offsets is not None:
        offsets = np.concatenate([a.offsets, b.offsets])[chosen]
    return SiteStatistics(
        rows=np.concatenate([a.rows, b.rows])[chosen],
        keys=keys[chosen],
        offsets=offsets,
        energy=a.energy + b.energy,
        input_zeros=a.input_zeros + b.input_zeros,
        elements=a.elements + b.elements,
        count=a.count + b.count,
    )
