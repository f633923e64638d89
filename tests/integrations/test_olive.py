"""The pass for Olive, run by Olive itself: alone, and in a workflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import exprune_cli
from exprune_cli.record import read_record
from tests.models import mlp, run

olive = pytest.importorskip("olive", reason="Olive is not installed: pip install 'exprune[olive]'")

from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.workflows import run as run_workflow

from exprune_cli.integrations.olive import ExpruneStaging, package_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp(), "model.onnx")
    Path("data").mkdir()
    rng = np.random.default_rng(0)
    np.save("data/x.npy", rng.standard_normal((160, 64)).astype(np.float32))
    return tmp_path


def check(path: str) -> None:
    """The file is staged and gives the original's results, by the functions alone."""
    record = read_record(onnx.load(path))
    assert record is not None and sum(site.staged for site in record.sites) == 3
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    (expected,) = run(mlp(), x=x)
    agreement = float(np.mean(run(onnx.load(path), x=x)[0] == expected))
    assert agreement == 1 if record.test == "bound" else agreement >= 0.5


def test_the_pass_stages_what_optimize_stages(folder: Path) -> None:
    made = create_pass_from_dict(ExpruneStaging, {"objective": "flops"}, disable_search=True)
    output = made.run(ONNXModelHandler("model.onnx"), str(folder / "out"))
    check(output.model_path)
    done = exprune_cli.optimize("model.onnx", objective="flops")
    assert onnx.load(output.model_path) == done.model


def test_options_and_samples_reach_optimize(folder: Path) -> None:
    options = {"objective": "flops", "data": "data", "max_drop": 0.3, "exclude": ["a"], "seed": 3}
    made = create_pass_from_dict(ExpruneStaging, options, disable_search=True)
    output = made.run(ONNXModelHandler("model.onnx"), str(folder / "out.onnx"))
    done = exprune_cli.optimize("model.onnx", **options)
    assert onnx.load(output.model_path) == done.model
    assert not next(site for site in done.report.sites if site.name == "a").staged


def test_other_models_are_refused(folder: Path) -> None:
    made = create_pass_from_dict(ExpruneStaging, {}, disable_search=True)
    with pytest.raises(NotImplementedError, match="stages ONNX models"):
        made.run(HfModelHandler.__new__(HfModelHandler), str(folder / "out"))


def test_in_a_workflow(folder: Path) -> None:
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": "model.onnx"},
        "passes": {"staging": {"type": "ExpruneStaging", "objective": "flops"}},
        "output_dir": "out",
        "cache_dir": "cache",
    }
    result = run_workflow(workflow, package_config=package_config())
    check(str(next(Path("out").rglob("*.onnx"))))
    assert result is not None


def test_a_failed_gate_leaves_a_workflow_without_a_model(folder: Path) -> None:
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": "model.onnx"},
        "passes": {"s": {"type": "ExpruneStaging", "objective": "flops", "data": "data", "max_drop": 0.0}},
        "output_dir": "out",
        "cache_dir": "cache",
    }
    assert not run_workflow(workflow, package_config=package_config()).has_output_model()
    assert not list(Path("out").rglob("*.onnx"))


def test_the_package_configuration_is_printed(folder: Path) -> None:
    command = [sys.executable, "-m", "exprune_cli.integrations.olive"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert printed == package_config()
    assert "onnxquantization" in {name.lower() for name in printed["passes"]}


def test_olives_own_samples(folder: Path) -> None:
    shapes = {"input_shapes": [[1, 64]], "input_names": ["x"], "input_types": ["float32"], "max_samples": 40}
    samples = {"name": "dummy", "type": "DummyDataContainer", "load_dataset_config": shapes}
    options = {"objective": "flops", "data_config": samples, "max_drop": 0.3}
    output = create_pass_from_dict(ExpruneStaging, options, disable_search=True).run(
        ONNXModelHandler("model.onnx"), str(folder / "out")
    )
    record = read_record(onnx.load(output.model_path))
    assert record is not None and record.calibration is not None
    with pytest.raises(ValueError, match="give 'data' or 'data_config', not both"):
        create_pass_from_dict(ExpruneStaging, {**options, "data": "data"}, disable_search=True).run(
            ONNXModelHandler("model.onnx"), str(folder / "out")
        )
