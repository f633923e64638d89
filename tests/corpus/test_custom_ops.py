"""Models with operators of other libraries: with ``--custom-ops``, and without."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli import api
from exprune_cli.cli import main
from exprune_cli.errors import ExpruneError
from exprune_cli.runtime import session
from tests.models import build

_SOURCE = Path(__file__).with_name("custom_op.cpp")
_GROUPS, _OUTPUTS = 64, 96


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the operator ``org.example::Twice``."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    path = tmp_path_factory.mktemp("custom ops") / "twice.so"
    subprocess.run([compiler, "-std=c++17", "-shared", "-fPIC", "-O1", "-o", path, _SOURCE], check=True)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model with the operator before a Gemm and a ReLU, and a folder of samples."""
    proto = build(
        "g (float[N, 64] x) => (float[N, 96] y) { t = Neg (x)\n g = Gemm (t, w, b)\n y = Relu (g) }",
        {"w": (_GROUPS, _OUTPUTS), "b": (_OUTPUTS,)},
    )
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Twice", "org.example"
    proto.opset_import.add(domain="org.example", version=1)
    onnx.save(proto, tmp_path / "in.onnx")
    (tmp_path / "data").mkdir()
    x = np.random.default_rng(0).standard_normal((64, _GROUPS)).astype(np.float32)
    np.savez(tmp_path / "data" / "x.npz", x=x)
    return tmp_path / "in.onnx", tmp_path / "data"


def _run(path: Path, library: Path, native: bool) -> np.ndarray:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    x = np.random.default_rng(1).standard_normal((7, _GROUPS)).astype(np.float32)
    (y,) = session(path, options, use_runtime=native).run(None, {"x": x})
    return y


def test_every_command_registers_the_library(
    files: tuple[Path, Path], library: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, data = map(str, files)
    out, calib = str(tmp_path / "out.onnx"), str(tmp_path / "m.calib")
    ops = ["--custom-ops", str(library)]
    assert main(["calibrate", model, "--data", data, "-o", calib, *ops]) == 0
    staged = ["optimize", model, out, "--calibration", calib, "--objective", "flops"]
    assert main([*staged, *ops]) == 0
    assert f"--custom-ops '{library}'" in capfd.readouterr().out  # in the next command
    assert main(["report", out, "--baseline", model, "--data", data, "--format", "json", *ops]) == 0
    # The timed form opens sessions as well.
    assert main(["optimize", model, str(tmp_path / "timed.onnx"), *ops]) == 0


@pytest.mark.parametrize("native", [True, False])
def test_results_are_equal(files: tuple[Path, Path], library: Path, tmp_path: Path, native: bool) -> None:
    out = tmp_path / "out.onnx"
    done = api.optimize(files[0], out, objective="flops", test="bound", custom_ops=[library])
    assert done.staged == 1
    np.testing.assert_allclose(
        _run(out, library, native), _run(files[0], library, False), rtol=1e-5, atol=1e-5
    )


def test_without_the_library_nothing_is_run(files: tuple[Path, Path], library: Path, tmp_path: Path) -> None:
    """What needs no run needs no library either."""
    out = tmp_path / "out.onnx"
    assert api.optimize(files[0], out, objective="flops").staged == 1
    assert api.report(files[0]).totals.flops_dense is None or out.is_file()
    np.testing.assert_allclose(_run(out, library, True), _run(files[0], library, False), rtol=1e-5, atol=1e-5)


def test_what_needs_a_run_says_which_option_is_missing(
    files: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    for command in (
        ["calibrate", str(files[0]), "--data", str(files[1]), "-o", str(tmp_path / "c.calib")],
        ["report", str(files[0]), "--data", str(files[1])],
    ):
        assert main(command) == 3
        error = capfd.readouterr().err
        assert "Twice" in error and "--custom-ops" in error and "Traceback" not in error
        assert error.count("exprune: error") == 1
    # What is only timed goes through as it is.
    assert main(["optimize", str(files[0]), str(out)]) == 0
    error = capfd.readouterr().err
    assert "warning: nothing was timed" in error and "--custom-ops" in error
    assert out.read_bytes() == files[0].read_bytes()


def test_a_library_that_is_none(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ExpruneError, match=r"gone\.so: there is no such library"):
        api.report(files[0], custom_ops=[tmp_path / "gone.so"])
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(ExpruneError, match=r"text\.so: ONNX Runtime cannot load this library"):
        api.optimize(files[0], tmp_path / "out.onnx", custom_ops=[text])


def test_the_library_is_forgotten_after_the_call(files: tuple[Path, Path], library: Path) -> None:
    api.report(files[0], data=files[1], custom_ops=str(library))
    with pytest.raises(ExpruneError, match="custom_ops"):
        api.report(files[0], data=files[1])
