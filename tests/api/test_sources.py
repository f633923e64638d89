"""Whatever form a model and its samples have, the result is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import exprune_cli
from exprune_cli.data import Data
from tests.models import run


def serialise(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


@pytest.fixture
def samples(images: np.ndarray, labels: np.ndarray) -> list[dict[str, object]]:
    return [{"x": x[None], "label": label} for x, label in zip(images, labels, strict=True)]


def test_a_path_bytes_and_a_proto_give_the_same_model(folder: Path, proto: onnx.ModelProto) -> None:
    before = serialise(proto)
    path = folder / "model.onnx"
    forms = (path, str(path), path.read_bytes(), proto)
    made = [exprune_cli.optimize(form, objective="flops").model for form in forms]
    assert len({serialise(model) for model in made}) == 1
    assert len(made[0].functions) > 0
    assert serialise(proto) == before


def test_folders_and_memory_give_the_same_model(folder: Path, samples: list[dict[str, object]]) -> None:
    made = []
    for data in (folder / "data", samples, iter(samples)):
        done = exprune_cli.optimize("model.onnx", data=data, objective="flops", max_drop=0.2)
        assert done.report.fidelity is not None and done.report.fidelity.metric == "accuracy"
        made.append(serialise(done.model))
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("form", ["array", "dict", "items"])
def test_calibration_is_that_of_a_folder(form: str, folder: Path, images: np.ndarray) -> None:
    data: Data = {"array": images, "dict": {"x": images}, "items": ({"x": x[None]} for x in images)}[form]
    made = exprune_cli.calibrate("model.onnx", data, "memory.calib", max_samples=60, seed=3)
    exprune_cli.calibrate("model.onnx", "data", "folder.calib", max_samples=60, seed=3)
    assert made.samples == 60
    assert Path("memory.calib").read_bytes() == Path("folder.calib").read_bytes()


def test_calibrations_may_be_objects(folder: Path, images: np.ndarray) -> None:
    parts = [exprune_cli.calibrate("model.onnx", images[at : at + 80], seed=1) for at in (0, 80)]
    merged = exprune_cli.merge_calibrations(parts, "merged.calib")
    assert merged.samples == 160
    from_object = exprune_cli.optimize("model.onnx", calibration=merged, objective="flops")
    from_file = exprune_cli.optimize("model.onnx", calibration="merged.calib", objective="flops")
    assert serialise(from_object.model) == serialise(from_file.model)
    with pytest.raises(
        exprune_cli.ExpruneError, match="data: the calibration has seen all of its 80 samples"
    ):
        exprune_cli.optimize("model.onnx", calibration=merged, data=images[:80])
    with pytest.raises(exprune_cli.ExpruneError, match="the calibration: .* another model"):
        exprune_cli.optimize("plain.onnx", calibration=merged)


def test_reports_measure_models_in_memory(proto: onnx.ModelProto, samples: list[dict[str, object]]) -> None:
    done = exprune_cli.optimize(proto, objective="flops")
    report = exprune_cli.report(done.model, baseline=proto, data=samples[:20])
    assert report.model == "<memory>" and report.samples == 20 and not report.notes
    assert report.fidelity is not None and report.fidelity.drop == 0 and report.fidelity.agreement == 1
    other = exprune_cli.report(done.model, baseline=done.model)
    assert "the baseline is not the file that the model was made from" in other.notes


def test_a_function_is_a_metric(proto: onnx.ModelProto, samples: list[dict[str, object]]) -> None:
    seen = []

    def close(
        outputs: dict[str, np.ndarray], label: np.ndarray | None, baseline: dict[str, np.ndarray]
    ) -> float:
        seen.append(label)
        return float((outputs["y"] == baseline["y"]).all())

    done = exprune_cli.optimize(proto, data=samples, metric=close, max_drop=0.1, objective="flops")
    assert seen and done.report.fidelity is not None
    assert done.report.fidelity.metric == f"{__name__}:{close.__qualname__}"


def test_what_is_no_model_is_refused(proto: onnx.ModelProto, folder: Path) -> None:
    with pytest.raises(exprune_cli.ExpruneError, match="the given bytes: not an ONNX model"):
        exprune_cli.optimize(b"nonsense")
    with pytest.raises(exprune_cli.ExpruneError, match="the given model: not an ONNX model: it has no graph"):
        exprune_cli.optimize(onnx.ModelProto())
    broken = onnx.ModelProto()
    broken.CopyFrom(proto)
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(exprune_cli.ExpruneError, match="the given model: not a valid ONNX model: .*nowhere"):
        exprune_cli.optimize(broken)


def test_weights_in_other_files_need_a_path(proto: onnx.ModelProto, folder: Path) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    onnx.save(copy, "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert exprune_cli.optimize("outside.onnx", objective="flops").staged > 0
    unloaded = onnx.load("outside.onnx", load_external_data=False)
    for form in (unloaded, Path("outside.onnx").read_bytes()):
        with pytest.raises(
            exprune_cli.ExpruneError, match="keeps 'w1' in another file: give the model's path"
        ):
            exprune_cli.optimize(form)
    assert exprune_cli.optimize(onnx.load("outside.onnx"), objective="flops").staged > 0


def test_sessions_of_every_form(proto: onnx.ModelProto, folder: Path, images: np.ndarray) -> None:
    (expected,) = run(proto, x=images[:3])
    done = exprune_cli.optimize(proto, "staged.onnx", objective="flops")
    for form in ("staged.onnx", Path("staged.onnx"), Path("staged.onnx").read_bytes(), done.model):
        assert exprune_cli.session(form).run(None, {"x": images[:3]})[0].tolist() == expected.tolist()
