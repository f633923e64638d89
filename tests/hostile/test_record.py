"""Metadata that claim to be exprune's own: checked like any other input, and never followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import exprune_cli
from exprune_cli.errors import ExpruneError
from exprune_cli.page import to_html
from exprune_cli.record import KEY
from exprune_cli.render import to_json, to_table
from tests.hostile.conftest import run_limited
from tests.models import mlp


@pytest.fixture(scope="module")
def staged() -> bytes:
    done = exprune_cli.optimize(mlp(), objective="flops", test="stats", measure=False)
    assert done.staged
    return done.model.SerializeToString()  # type: ignore[attr-defined,no-any-return]


def _with(staged: bytes, change: Any) -> onnx.ModelProto:
    """The model with its record as text, or with fields changed."""
    proto = onnx.ModelProto.FromString(staged)
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    entry.value = change if isinstance(change, str) else json.dumps(json.loads(entry.value) | change)
    return proto


CHANGES: dict[str, Any] = {
    "empty": "",
    "no object": "[]",
    "null": "null",
    "a number": "1e999",
    "deeply nested": "[" * 100_000,
    "a future version": {"schema_version": 99},
    "no version": '{"tool": "x"}',
    "version is no number": '{"schema_version": NaN}',
    "unknown field": {"other": 1},
    "tool is no text": {"tool": 1},
    "batch is no number": {"batch": "many"},
    "batch is negative": {"batch": -5},
    "batch is huge": {"batch": 10**400},
    "sites are no list": {"sites": {}},
    "a site is no object": {"sites": [1]},
    "top_k is no mapping": {"top_k": [1]},
    "top_k has a negative": {"top_k": {"y": -1}},
    "quality is a list": {"quality": [1]},
    "quality has a wrong type": {"quality": {"drop": "a"}},
    "certificate is a text": {"certificate": "yes"},
    "certificate has a wrong type": {"certificate": {"max_drop": [], "confidence": "x"}},
    "tried has a wrong type": {"tried": [{"drop": []}]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_records_that_are_none(staged: bytes, name: str) -> None:
    with pytest.raises(ExpruneError) as caught:
        exprune_cli.report(_with(staged, CHANGES[name]))
    assert "metadata cannot be read" in str(caught.value) or "update exprune" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ends", [1, 2, 3, 4, 5]),
        ("ends", [-1, 0]),
        ("ends", "all"),
        ("outputs", None),
        ("groups", -3),
        ("taps", 10**30),
        ("test", "other"),
        ("estimate", 7),
        ("pruned", [0.1] * 9),
        ("pruned", ["a"]),
        ("survivors", "nowhere"),
        ("kind", 3),
        ("parameters", {"extra_bytes": "a"}),
        ("parameters", {"most_rows": 1e999}),
        ("nonzero", [None]),
        ("reason", None),
    ],
)
def test_sites_that_do_not_fit(staged: bytes, field: str, value: object) -> None:
    proto = _with(staged, {})
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    data = json.loads(entry.value)
    for site in data["sites"]:
        if site["staged"]:
            site[field] = value
    entry.value = json.dumps(data)
    try:
        report = exprune_cli.report(proto)
    except ExpruneError as error:
        assert "optimise the original again" in str(error)
    else:
        assert json.loads(to_json(report)) and to_table(report)


@pytest.mark.parametrize("change", [{"ends": [1, 2, 3, 4]}, {"test": "other"}, {"outputs": None}])
def test_shares_that_do_not_fit_the_checks(staged: bytes, change: dict[str, object]) -> None:
    proto = _with(staged, {})
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    data = json.loads(entry.value)
    for site in data["sites"]:
        if site["staged"]:
            site |= {
                "kind": "relu",
                "estimate": "prefix",
                "ends": [8, 64],
                "pruned": [0.5],
                "parameters": {},
                **change,
            }
    entry.value = json.dumps(data)
    with pytest.raises(ExpruneError, match="does not fit together: optimise the original again"):
        exprune_cli.report(proto)


def test_text_of_a_record_cannot_drive_a_terminal_or_a_page(staged: bytes) -> None:
    bad = "\x1b]0;t\x07<img src=x onerror=alert(1)>[bold]"
    proto = _with(
        staged, {"tool": bad, "objective": bad, "test": bad, "quality": {"metric": bad, "drop": 0.1}}
    )
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    data = json.loads(entry.value)
    for site in data["sites"]:
        site["reason"] = site["rule"] = bad
    entry.value = json.dumps(data)
    report = exprune_cli.report(proto)
    assert "\x1b" not in to_table(report) and "\x07" not in to_table(report)
    assert "<img" not in to_html(report)
    assert "\x1b" not in to_json(report)


def test_a_metric_that_a_model_names_is_not_run(staged: bytes, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('followed')\ndef f(*a): os.mkdir('followed')\n")
    for name in ("evil.py:f", str(tmp_path / "evil.py") + ":f"):
        proto = _with(staged, {"quality": {"metric": name, "baseline": 1.0, "optimized": 1.0, "drop": 0.0}})
        onnx.save(proto, tmp_path / "m.onnx")
        onnx.save(mlp(), tmp_path / "original.onnx")
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / "a.npz", x=np.ones((2, 64), np.float32), label=np.array([0, 1]))
        done = run_limited(
            "report", "m.onnx", "--data", "data", "--baseline", "original.onnx", folder=tmp_path, seconds=120
        )
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "followed").exists()
