"""Random data: never without ``--allow-random``, and then the files and the reports say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exprune_cli import api
from exprune_cli.calibration import load_calibration, merge
from exprune_cli.errors import UsageError
from exprune_cli.reporting import RANDOM_DATA
from tests.cli.conftest import Run


def test_never_unless_asked_for(folder: Path, run: Run) -> None:
    outcome = run("calibrate", "mlp.onnx")
    assert outcome.code == 2 and "--data" in outcome.err and not (folder / "mlp.calib").exists()
    report = json.loads(run("optimize", "mlp.onnx", "o.onnx", "--no-measure", "--format", "json").out)
    assert report["origin"]["calibration"] is None and not report["origin"]["random_data"]
    with pytest.raises(UsageError, match="allow_random"):
        api.calibrate("mlp.onnx")


def test_stamped_in_file_and_report(folder: Path, run: Run) -> None:
    outcome = run("calibrate", "mlp.onnx", "--allow-random", "--seed", "1", "-o", "r.calib")
    assert outcome.code == 0 and "from 64 random samples" in outcome.out
    assert load_calibration("r.calib").random
    assert not api.calibrate("mlp.onnx", "data").random
    flops = ("--objective", "flops")
    assert run("optimize", "mlp.onnx", "a.onnx", "--calibration", "r.calib", *flops).code == 0
    assert run("optimize", "mlp.onnx", "b.onnx", "--allow-random", *flops).code == 0
    for file in ("a.onnx", "b.onnx"):
        found = json.loads(run("report", file, "--format", "json").out)
        assert found["origin"]["random_data"] and RANDOM_DATA in found["notes"]
        assert found["certificate"] is None and found["fidelity"] is None
        assert "random data" in " ".join(run("report", file).out.split())


def test_never_certified(folder: Path, run: Run) -> None:
    run("calibrate", "mlp.onnx", "--allow-random", "--seed", "1", "-o", "r.calib")
    words = ("optimize", "mlp.onnx", "o.onnx", "--data", "data", "--max-drop", "0.5", "--confidence", "0.9")
    for more in (("--calibration", "r.calib"), ("--allow-random",)):
        outcome = run(*words, *more)
        assert outcome.code == 2 and "random" in outcome.err and not (folder / "o.onnx").exists()


def test_a_merge_keeps_the_stamp(folder: Path) -> None:
    real, made = (
        api.calibrate("mlp.onnx", "data", seed=1),
        api.calibrate("mlp.onnx", seed=1, allow_random=True),
    )
    assert merge(real, made).random and merge(made, real).random
