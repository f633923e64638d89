"""What is fuzzed: small functions that take a source of chance and a folder, and must raise nothing.

Each makes one hostile input and does with it what a command would do. Bad input may end in an
:class:`ExpruneError` and nothing else; input that is taken must give a valid model with the same results.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import threading
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import exprune_cli
from exprune_cli.calibration import load_calibration
from exprune_cli.cli import main
from exprune_cli.data import open_data
from exprune_cli.errors import ExpruneError
from exprune_cli.model import load
from exprune_cli.page import to_html
from exprune_cli.random_feeds import random_feeds
from exprune_cli.record import KEY
from exprune_cli.render import to_json, to_table
from tests.fuzz.mutation import TEXTS, mutate_bytes, mutate_json, mutate_message
from tests.fuzz.seeds import models, samples, staged

Target = Callable[[random.Random, Path], None]
#: Seconds after which a mutated model that loops is told to end.
_RUN_SECONDS = 5.0


def fuzz_model(rng: random.Random, folder: Path) -> None:
    """Load, match, plan without measuring, rewrite, verify; then the report and the results."""
    name = rng.choice(sorted(models()))
    content = models()[name]
    if rng.random() < 0.15:
        content = mutate_bytes(content, rng)
    else:
        proto = onnx.ModelProto.FromString(content)
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            mutate_message(proto, rng)
        content = proto.SerializeToString()
    test = rng.choice(("bound", "stats"))
    with contextlib.suppress(ExpruneError):
        report = exprune_cli.report(content)
        to_table(report), to_json(report), to_html(report)
    with contextlib.suppress(ExpruneError):
        done = exprune_cli.optimize(content, objective="flops", test=test, measure=False)
        assert isinstance(done.model, onnx.ModelProto)
        if done.staged and test == "bound":
            _same_results(content, done.model)


def _same_results(original: bytes, proto: onnx.ModelProto) -> None:
    try:
        before = _session(original)
    except Exception:  # noqa: BLE001  ONNX Runtime does not take it: nothing to compare with
        return
    after = _session(proto.SerializeToString())
    feeds = random_feeds(load(original), 2, 0, 1)
    if feeds is None:
        return
    try:
        wanted = _run(before, feeds[0])
    except Exception:  # noqa: BLE001  the mutated model fails on these inputs
        return
    for a, b in zip(wanted, _run(after, feeds[0]), strict=True):
        scale = float(np.nanmax(np.abs(a), initial=1e-30, where=np.isfinite(a))) if a.dtype.kind == "f" else 0
        if a.dtype.kind == "f" and not (np.isfinite(a).all() and scale < 1e30):
            continue  # sums near the ends of float32 overflow in one order and not in another
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * scale)


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return exprune_cli.session(content, options)


def _run(session: onnxruntime.InferenceSession, feeds: Any) -> list[np.ndarray]:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(_RUN_SECONDS, lambda: setattr(options, "terminate", True))
    timer.start()
    try:
        result: list[np.ndarray] = session.run(None, feeds, options)
        return result
    finally:
        timer.cancel()


# --- calibration files ---------------------------------------------------------------------------


@cache
def _calibration() -> bytes:
    calibration = exprune_cli.calibrate(models()["gemm"], samples())
    from exprune_cli.calibration import _serialise

    return _serialise(calibration)


def fuzz_calibration(rng: random.Random, folder: Path) -> None:
    """Loads a calibration file, and plans with it."""
    path = folder / "a.calib"
    path.write_bytes(_mutate_archive(_calibration(), rng))
    with contextlib.suppress(ExpruneError):
        loaded = load_calibration(path)
        exprune_cli.optimize(
            models()["gemm"],
            calibration=loaded,
            objective="flops",
            measure=False,
            test=rng.choice(("calibrated", "threshold", "bound")),
        )


def _mutate_archive(content: bytes, rng: random.Random) -> bytes:
    """An archive with mutated bytes, or one with mutated members that is sound as an archive."""
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    choice = rng.random()
    if name.endswith(".json"):
        members[name] = json.dumps(mutate_json(json.loads(members[name]), rng)).encode()
    elif choice < 0.4:
        members[name] = _mutate_array(members[name], rng)
    elif choice < 0.6:
        members[name] = mutate_bytes(members[name], rng)
    elif choice < 0.8:
        members[name] = members[rng.choice(sorted(members))]
    else:
        del members[name]
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return result.getvalue()


def _mutate_array(member: bytes, rng: random.Random) -> bytes:
    """A ``.npy`` file with other values, or with a header that lies."""
    array = np.load(io.BytesIO(member), allow_pickle=False)
    if array.size and rng.random() < 0.5:
        values = np.array(array)
        odd = rng.choice((0, -1, 1, 2**31, np.nan, np.inf, -np.inf, 3e38, 1e-40))
        with np.errstate(all="ignore"):
            values.reshape(-1)[rng.randrange(values.size)] = np.asarray(odd).astype(values.dtype)
        array = values
    result = io.BytesIO()
    np.lib.format.write_array(result, array, (1, 0), allow_pickle=False)
    content = result.getvalue()
    if rng.random() < 0.6:
        size = rng.choice(
            ("-1", "0", "9223372036854775807", "4611686018427387904", "1e3", "True", "None", "(1,)")
        )
        shape = str(array.shape)
        lie = rng.choice((f"({size},)", f"({size}, {size})", f"({size}, 0)", shape[:-1] + f", {size})"))
        kind = rng.choice(("<f4", "|O", "<U0", "<U99999999", "|V8", "<M8[s]", "f4,f4", ">f4", "<c16", "|b1"))
        header = (
            f"{{'descr': '{kind}', 'fortran_order': {rng.choice(('False', 'True', '1'))}, 'shape': {lie}}}"
        )
        header = header.ljust(118 - 1) + "\n"
        content = content[:8] + len(header).to_bytes(2, "little") + header.encode() + content[128:]
    return content


# --- sample data ---------------------------------------------------------------------------------


@cache
def _data_files() -> dict[str, bytes]:
    values = samples(6)
    archive, grouped, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(archive, x=values, label=np.arange(6))
    np.savez_compressed(grouped, x=values, group=np.array(["a", "b", "c"] * 2))
    np.save(array, values)
    tensor = onnx.numpy_helper.from_array(values, "x").SerializeToString()
    archives = {"a.npz": archive.getvalue(), "grouped.npz": grouped.getvalue()}
    return {**archives, "a.npy": array.getvalue(), "test_data_set_0/input_0.pb": tensor}


def fuzz_data(rng: random.Random, folder: Path) -> None:
    """Opens a folder of samples, reads all of it, and splits it."""
    name = rng.choice(sorted(_data_files()))
    content = _data_files()[name]
    if name.endswith(".npz"):
        content = _mutate_archive(content, rng)
    elif name.endswith(".npy"):
        content = (mutate_bytes if rng.random() < 0.4 else _mutate_array)(content, rng)
    elif rng.random() < 0.3:
        content = mutate_bytes(content, rng)
    else:
        tensor = onnx.TensorProto.FromString(content)
        for _ in range(rng.choice((1, 2, 3))):
            mutate_message(tensor, rng)
        content = tensor.SerializeToString()
    path = folder / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with contextlib.suppress(ExpruneError):
        data = open_data(folder / "data", onnx.ModelProto.FromString(models()["gemm"]))
        for batch in data.batches(4):
            assert batch.feeds["x"].shape[1:] == (12,)
        data.split(0.5, 0)
        assert len(data.digest) == 64


# --- the record ----------------------------------------------------------------------------------


def fuzz_record(rng: random.Random, folder: Path) -> None:
    """Reports on a staged model whose metadata were changed."""
    proto = onnx.ModelProto.FromString(staged()[rng.choice(sorted(staged()))])
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    if rng.random() < 0.1:
        entry.value = mutate_bytes(entry.value.encode(), rng).decode(errors="replace")
    else:
        data = json.loads(entry.value)
        if rng.random() < 0.5:
            odd = {
                "metric": "accuracy",
                "baseline": 0.5,
                "optimized": 0.4,
                "drop": 0.1,
                "samples": 3,
                "groups": 2,
            }
            data["quality"] = {**odd, "agreement": 0.5}
            data["certificate"] = {
                "max_drop": 0.1,
                "confidence": 0.9,
                "holds": True,
                "samples": 3,
                "groups": 2,
            }
            data["tried"] = [{"drop": 0.1, "flops_reduction": 0.2, "holds": True}]
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = mutate_json(data, rng)
        entry.value = json.dumps(data)
    with contextlib.suppress(ExpruneError):
        report = exprune_cli.report(proto)
        assert "\x1b" not in to_table(report)
        json.loads(to_json(report))
        assert "<q onmouseover" not in to_html(report)


# --- options -------------------------------------------------------------------------------------


def fuzz_options(rng: random.Random, folder: Path) -> None:
    """Runs commands with odd options: the exit code is one of the contract's, a failure is one line."""
    (folder / "m.onnx").write_bytes(models()["gemm"])
    odd = [
        *(text for text in TEXTS if "\0" not in text),
        "y=1",
        "y=0",
        "y=99",
        "=1",
        "y==",
        "y=\u0663",
        "nan",
        "inf",
        "-1",
        "0.5",
        "1e999",
        "accuracy",
    ]
    odd += ["mse", "x.py:f", ":", ".py:", "[", "*", "**", "[!", "h", "m.onnx", ".", "\udcff"]
    words = [
        "--test",
        "--objective",
        "--max-drop",
        "--confidence",
        "--metric",
        "--exclude",
        "--top-k",
        "--batch",
    ]
    words += ["--format", "--calibration", "--data", "--seed", "--threads", "--max-samples", "-o", "--merge"]
    command = rng.choice(
        (["report", "m.onnx"], ["optimize", "m.onnx", "o.onnx", "--no-measure"], ["calibrate", "m.onnx"])
    )
    for _ in range(rng.choice((1, 1, 2, 3))):
        command += rng.choice(([rng.choice(words), rng.choice(odd)], [rng.choice(odd)]))
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _chdir(folder):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(command)
    assert code in (0, 1, 2, 3), (command, code)
    text = err.getvalue()
    assert "internal error" not in text and "Traceback" not in text, (command, text)
    assert not code or text.count("exprune: error: ") == 1 and text.endswith("\n"), (command, text)


@contextlib.contextmanager
def _chdir(folder: Path):  # type: ignore[no-untyped-def]  # Python 3.10 has none
    import os

    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


TARGETS: dict[str, Target] = {
    "model": fuzz_model,
    "calibration": fuzz_calibration,
    "data": fuzz_data,
    "record": fuzz_record,
    "options": fuzz_options,
}


def run_one(target: str, seed: int, folder: Path) -> None:
    """Runs one input, which ``target`` and ``seed`` determine, in an empty folder.

    Raises:
        Exception: What a user would have seen as an internal error.
    """
    TARGETS[target](random.Random(f"{target} {seed}"), folder)
