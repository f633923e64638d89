"""Files of a newer exprune: what this one does not know runs as its function, or is refused with both versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exprune_cli import __version__, api
from exprune_cli.cli import main
from exprune_cli.record import KEY, SCHEMA_VERSION
from exprune_cli.runtime import session
from exprune_cli.staged_nodes import DOMAIN
from tests.models import mlp

_X = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)


def _staged(tmp_path: Path, batch: int | None) -> onnx.ModelProto:
    """Native nodes in the main graph; with a batch, in branches that few rows take."""
    options = {"objective": "flops"} if batch is None else {"measure": False, "batch": batch}
    return api.optimize(mlp(), tmp_path / "staged.onnx", test="bound", **options).model


def _rename_op(proto: onnx.ModelProto, old: str, new: str) -> int:
    """Gives an operator and its function another name, in the main graph and in branches; says how often."""
    count = 0
    for function in proto.functions:
        if function.name == old:
            function.name = new
    graphs = [proto.graph]
    while graphs:
        for node in graphs.pop().node:
            if node.domain == DOMAIN and node.op_type == old:
                node.op_type = new
                count += 1
            graphs += [
                attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH
            ]
    return count


@pytest.mark.parametrize("op", ["PrefixGemmBound", "PrefixArgMaxBound"])
def test_an_op_that_the_library_lacks_runs_as_its_function(op: str, tmp_path: Path) -> None:
    proto = _staged(tmp_path, None)
    known = session(proto).run(None, {"x": _X})
    assert _rename_op(proto, op, f"{op}V2")
    onnx.save(proto, tmp_path / "newer.onnx")
    newer = session(tmp_path / "newer.onnx").run(None, {"x": _X})
    for a, b in zip(known, newer, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    # The other operators of the file still run natively: nothing is lost but the speed of this one.
    report = api.report(tmp_path / "newer.onnx")
    assert [site.staged for site in report.sites] == [True] * 3


def test_an_op_without_a_function_is_named(tmp_path: Path) -> None:
    proto = _staged(tmp_path, None)
    _rename_op(proto, "PrefixGemmBound", "PrefixGemmBoundV2")
    kept = [function for function in proto.functions if function.name != "PrefixGemmBoundV2"]
    del proto.functions[:]
    proto.functions.extend(kept)
    with pytest.raises(Exception, match="PrefixGemmBoundV2") as caught:
        session(proto)
    assert type(caught.value).__module__.startswith("onnxruntime")


def test_a_newer_record_is_refused_with_both_versions(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = _staged(tmp_path, None)
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    data = json.loads(entry.value)
    data.update(schema_version=SCHEMA_VERSION + 1, tool="exprune 99.1", something={"new": [1]})
    entry.value = json.dumps(data)
    onnx.save(proto, tmp_path / "newer.onnx")
    assert main(["report", str(tmp_path / "newer.onnx")]) == 3
    error = capfd.readouterr().err
    assert "exprune 99.1" in error and f"exprune {__version__}" in error and "update" in error
    assert len(error.strip().splitlines()) == 1
    # It runs all the same: the record is for reports.
    np.testing.assert_array_equal(
        session(tmp_path / "newer.onnx").run(None, {"x": _X})[0],
        ort.InferenceSession(str(tmp_path / "staged.onnx")).run(None, {"x": _X})[0],
    )
