"""The promises, on the sample models and their real data."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from exprune_cli.measure import measure
from exprune_cli.runtime import runtime_available, runtime_library
from exprune_cli.sites import Site
from tests.compatibility.agreement import compare
from tests.samples import CASES, ROOT, Sample

native = pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built here")


def _run(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], more: list[str] | None = None
) -> list[np.ndarray]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for name in more or []:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if runtime_available():
        options.register_custom_ops_library(str(runtime_library()))
    return ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


def test_the_files_are_what_the_readme_promises() -> None:
    for path in ROOT.rglob("*.onnx"):
        assert path.stat().st_size <= 16 * 2**20
        onnx.checker.check_model(onnx.load(path), full_check=True)
    for name in CASES:
        assert len(CASES[name]) == 5 and (ROOT / CASES[name][2]).is_dir()


def test_bound_changes_nothing(sample: Sample) -> None:
    """Classes are equal, caches equal up to rounding."""
    proto, records = sample.stage("bound")
    assert any(record.staged for record in records)
    for batch in sample.test.batches(32):
        for before, after in zip(
            _run(sample.model.proto, batch.feeds), _run(proto, batch.feeds), strict=True
        ):
            if before.dtype.kind == "i":
                np.testing.assert_array_equal(after, before)
            else:
                np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_measured_flops_are_what_the_survivors_say(sample: Sample) -> None:
    """Counted anew from the survivors, the shapes and the definition, without exprune's own counting."""
    proto, records = sample.stage("calibrated")
    staged = [record for record in records if record.staged]
    result = measure(proto, sample.test)
    saved = 0.0
    for batch in sample.test.batches(32):
        values = _run(proto, batch.feeds, [record.survivors for record in staged])
        for record, alive in zip(staged, values[len(proto.graph.output) :], strict=True):
            saved += _saved(record, _rows(proto, record.node, batch.feeds), alive)
    assert result.flops_dense is not None and result.flops is not None
    assert result.flops_dense - result.flops == pytest.approx(saved, rel=1e-9)


def _rows(proto: onnx.ModelProto, name: str, feeds: dict[str, np.ndarray]) -> int:
    """Rows of a staged node: of a Gemm's input, or output positions of a Conv."""
    node = next(n for n in proto.graph.node if n.name == name)
    conv = "Conv" in node.op_type
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.node.append(
        helper.make_node("Shape", [node.output[0] if conv else node.input[0]], ["rows of it"])
    )
    shape = _run(copy, feeds, ["rows of it"])[-1]
    return math.prod([shape[0], *shape[2:]] if conv else shape[:-1])


def _saved(record, rows: float, alive: np.ndarray) -> float:
    """Dense minus spent, straight from the definition of FLOPs."""
    width, taps, groups = record.outputs, record.taps, record.groups
    if record.kind == "sparse":
        return 2 * width * (rows * groups - float(alive[0])) - rows * groups
    if record.estimate == "low-rank":
        rank = record.parameters["rank"]
        first = record.parameters.get("first_rank", rank)
        spent = 2 * rows * (rank * groups + first * width) + 2 * rows * width + 2 * float(alive[-1]) * groups
        if first < rank:
            spent += float(alive[0]) * (2 * (rank - first) + 2)
        return 2 * rows * width * groups - spent
    saved, before = 0.0, rows * width
    for check, end in enumerate(record.ends[:-1]):
        now = float(alive[check])
        saved += 2 * (before - now) * (groups - end) * taps - 2 * before
        before = now
    return saved


@native
@pytest.mark.parametrize("name", CASES)
def test_with_and_without_the_runtime(name: str, staged_files: dict[str, tuple[Path, Path]]) -> None:
    path, data = staged_files[name]
    result = compare(str(path), data, str(runtime_library()), 100)
    assert result.samples > 10
    assert (result.different, result.turned) == (0, 0)
    assert result.relative < 1e-4
    assert result.outputs_at_first <= 2


@native
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="ONNX Runtime 1.17 has no wheel for this Python")
def test_on_the_oldest_onnx_runtime(tmp_path: Path, staged_files: dict[str, tuple[Path, Path]]) -> None:
    """The same files in ONNX Runtime 1.17, in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "onnxruntime==1.17.*", "onnx", "numpy<2"]
    subprocess.run(install, check=True, capture_output=True)
    script = Path(__file__).parents[1] / "compatibility" / "agreement.py"
    for path, data in staged_files.values():
        command = [
            str(python),
            str(script),
            str(path),
            str(data),
            "--library",
            str(runtime_library()),
            "--samples",
            "50",
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout)
        assert result["onnxruntime"].startswith("1.17.")
        assert (result["different"], result["turned"], result["relative"] < 1e-4) == (0, 0, True)
        assert result["outputs_at_first"] <= 2


def test_sites_of_the_sample_models() -> None:
    """What is found where: a change of a rule that loses a site shows here."""
    from exprune_cli.match import match
    from exprune_cli.model import load

    def rules(sites: list[Site]) -> dict[str, int]:
        names = [site.rule for site in sites]
        return {name: names.count(name) for name in sorted(set(names))}

    found = {name: rules(match(load(ROOT / case[0])).sites) for name, case in CASES.items()}
    assert found == {
        "digits_resnet": {"argmax-gemm": 1, "relu-conv": 17},
        "graph_gcn": {"argmax-gemm": 1, "relu-gemm": 3},
        "relu_lm": {"argmax-gemm": 1, "relu-gemm": 3, "sparse-gemm": 3},
        "relu_lm_step": {"argmax-gemm": 1, "relu-gemm": 3, "sparse-gemm": 3},
    }
