"""Whatever is wrong with files or options: one line, the right exit code, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run, content, write_samples


@pytest.fixture
def fails(run: Run, folder: Path) -> Callable[..., str]:
    """Runs a command that has to fail; returns its only line."""

    def check(code: int, *arguments: str) -> str:
        before = content(folder)
        outcome = run(*arguments)
        assert (outcome.code, outcome.out) == (code, ""), outcome.err
        # click ends the terminal's line with ^C before it hands an interrupt on.
        error = outcome.err.removeprefix("\n") if code == 130 else outcome.err
        assert error.startswith("exprune: error: ")
        assert error.count("\n") == 1 and error.endswith("\n")
        assert "internal" not in error
        assert content(folder) == before
        return error.removeprefix("exprune: error: ").rstrip("\n")

    return check


Fails = Callable[..., str]

# Every command that reads a model, with the model's place marked.
READERS = [
    ("report", "MODEL"),
    ("report", "mlp.onnx", "--baseline", "MODEL"),
    ("optimize", "MODEL", "out.onnx"),
    ("calibrate", "MODEL", "--data", "data"),
]


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize("kind", ["missing", "text", "cut short", "empty", "folder"])
def test_bad_model(fails: Fails, folder: Path, command: tuple[str, ...], kind: str) -> None:
    path = folder / "bad.onnx"
    if kind == "text":
        path.write_text("this is no model\n" * 20)
    elif kind == "cut short":
        path.write_bytes((folder / "mlp.onnx").read_bytes()[:-1000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    message = fails(3, *("bad.onnx" if word == "MODEL" else word for word in command))
    expected = {"missing": "bad.onnx: no such file", "folder": "bad.onnx: cannot be read"}
    assert message.startswith(expected.get(kind, "bad.onnx: not an ONNX model"))


DATA_USERS = [
    ("report", "mlp.onnx", "--data", "bad"),
    ("optimize", "mlp.onnx", "out.onnx", "--data", "bad"),
    ("calibrate", "mlp.onnx", "--data", "bad"),
]


class Planted:
    """Leaves a trace if it is ever unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


GOOD = np.zeros((1, 64), np.float32)
BAD_DATA: dict[str, dict[str, np.ndarray]] = {
    "name": {"z": GOOD},
    "type": {"x": np.array([["a"] * 64])},
    "shape": {"x": np.zeros((1, 63), np.float32)},
    "rank": {"x": np.zeros((1, 64, 1), np.float32)},
    "pickle": {"x": np.array([Planted()], object)},
}


@pytest.mark.parametrize("command", DATA_USERS, ids=lambda command: command[0])
@pytest.mark.parametrize("kind", ["missing", "empty", "no archive", *BAD_DATA])
def test_bad_data(fails: Fails, folder: Path, command: tuple[str, ...], kind: str) -> None:
    bad = folder / "bad"
    if kind != "missing":
        bad.mkdir()
    if kind == "no archive":
        (bad / "a.npz").write_text("text")
    elif kind in BAD_DATA:
        np.savez(bad / "a.npz", **BAD_DATA[kind])
    message = fails(3, *command)
    assert message.startswith("bad" if kind in ("missing", "empty") else "bad/a.npz")
    assert not (folder / "unpickled").exists()


@pytest.mark.parametrize("out", ["missing/out.onnx", "data", "mlp.onnx/out.onnx", os.devnull])
def test_out_that_cannot_be_written(fails: Fails, out: str) -> None:
    # The model does not exist: OUT is looked at first.
    assert f"{out}: cannot be written" in fails(3, "optimize", "none.onnx", out)


@pytest.mark.parametrize(
    "command", [("optimize", "none.onnx", "locked/o"), ("report", "none.onnx", "-o", "locked/o")]
)
def test_folder_that_is_not_writable(
    fails: Fails, folder: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "locked").mkdir()

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    assert "locked/o: cannot be written: the folder is not writable (Permission denied)" in fails(3, *command)


@pytest.mark.parametrize("way", ["same", "dot", "symbolic link", "hard link", "not there"])
def test_out_is_in(fails: Fails, folder: Path, way: str) -> None:
    source, out = "mlp.onnx", "other.onnx"
    if way == "same":
        out = source
    elif way == "dot":
        out = "./data/../mlp.onnx"
    elif way == "symbolic link":
        (folder / out).symlink_to("mlp.onnx")
    elif way == "hard link":
        os.link(folder / source, folder / out)
    else:
        source = out = "none.onnx"
    assert "is the input" in fails(2, "optimize", source, out)


def test_other_outputs_that_are_inputs(fails: Fails) -> None:
    assert "is the model" in fails(2, "calibrate", "mlp.onnx", "--data", "data", "-o", "mlp.onnx")
    assert "is the model" in fails(2, "report", "mlp.onnx", "-o", "./mlp.onnx")
    assert "is the baseline" in fails(2, "report", "mlp.onnx", "--baseline", "cnn.onnx", "-o", "cnn.onnx")
    assert "is the calibration" in fails(2, "optimize", "mlp.onnx", "a", "--calibration", "a")


def test_baseline_with_another_interface(fails: Fails) -> None:
    message = fails(3, "report", "mlp.onnx", "--baseline", "cnn.onnx")
    assert "the baseline has other" in message


def test_calibration_of_another_model(fails: Fails, run: Run, folder: Path) -> None:
    assert run("calibrate", "mlp.onnx", "--data", "data").code == 0
    message = fails(3, "optimize", "cnn.onnx", "out.onnx", "--calibration", "mlp.calib")
    assert "mlp.calib" in message


@pytest.mark.parametrize("kind", ["missing", "text", "cut short"])
def test_bad_calibration(fails: Fails, run: Run, folder: Path, kind: str) -> None:
    path = folder / "mlp.calib"
    if kind == "text":
        path.write_text("text")
    elif kind == "cut short":
        assert run("calibrate", "mlp.onnx", "--data", "data").code == 0
        path.write_bytes(path.read_bytes()[:-200])
    assert fails(3, "optimize", "mlp.onnx", "out.onnx", "--calibration", "mlp.calib").startswith("mlp.calib")


def test_calibration_that_has_seen_all_samples(fails: Fails, run: Run) -> None:
    assert run("calibrate", "mlp.onnx", "--data", "data").code == 0
    message = fails(3, "optimize", "mlp.onnx", "out.onnx", "--calibration", "mlp.calib", "--data", "data")
    assert "has seen all of its 8 samples" in message


def test_optimised_twice(fails: Fails, run: Run) -> None:
    assert run("optimize", "mlp.onnx", "once.onnx", "--objective", "flops").code == 0
    assert "once.onnx" in fails(3, "optimize", "once.onnx", "twice.onnx")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-drop", "0.01"], "--max-drop needs --data"),
        (["--max-drop", "-1", "--data", "data"], "--max-drop must be 0 or more"),
        (["--max-drop", "nan", "--data", "data"], "--max-drop must be 0 or more"),
        (["--confidence", "0.9", "--data", "data"], "--confidence needs --max-drop"),
        (["--max-drop", "0", "--confidence", "0.9", "--data", "data"], "needs a --max-drop above 0"),
        (
            ["--max-drop", "0.01", "--confidence", "95", "--data", "data"],
            "--confidence must be between 0 and 1",
        ),
        (["--metric", "accuracy"], "--metric needs --data"),
        (["--test", "calibrated"], "--test calibrated needs --calibration or --data"),
        (["--test", "other"], "Invalid value for '--test'"),
        (["--batch", "0"], "Invalid value for '--batch'"),
        (["--format", "html"], "Invalid value for '--format'"),
        (["--frobnicate"], "No such option"),
        (["--exclude", "aa"], "did you mean 'a'?"),
        (["third"], "unexpected extra argument"),
    ],
)
def test_usage(fails: Fails, options: list[str], expected: str) -> None:
    assert expected in fails(2, "optimize", "mlp.onnx", "out.onnx", *options)


def test_usage_of_the_others(fails: Fails) -> None:
    assert "Missing option '--data'" in fails(2, "calibrate", "mlp.onnx")
    assert "Invalid value for '--threads'" in fails(2, "report", "mlp.onnx", "--threads", "0")
    assert "No such command 'oprimize'" in fails(2, "oprimize")


def test_interrupted(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exprune_cli.model.load", interrupt)
    assert fails(130, "optimize", "mlp.onnx", "out.onnx") == "interrupted"


def test_interrupted_while_writing(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    assert fails(130, "optimize", "mlp.onnx", "out.onnx") == "interrupted"


def test_unexpected_error_is_one_line(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("exprune_cli.model.load", fail)
    outcome = run("report", "mlp.onnx")
    hint = "(run with EXPRUNE_DEBUG=1 for the traceback)"
    assert outcome.err == f"exprune: error: internal error: RuntimeError: first second {hint}\n"
    assert (outcome.code, outcome.out) == (3, "")
    monkeypatch.setenv("EXPRUNE_DEBUG", "1")
    assert "Traceback" in run("report", "mlp.onnx").err


def test_closed_pipe(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "exprune_cli", "report", "mlp.onnx", "--format", "json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # long before anything is printed
    assert process.stderr.read() == ""
    assert process.wait() == 141
    process.stderr.close()


def test_data_for_another_model(fails: Fails, folder: Path) -> None:
    write_samples(folder / "more", 2)
    assert "more/s0.npz" in fails(3, "report", "cnn.onnx", "--data", "more")
