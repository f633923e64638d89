"""The report object, its JSON against the committed schema, and its tables."""

from __future__ import annotations

import dataclasses
import importlib.resources
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from exprune_cli import render
from exprune_cli.latency import Latency
from exprune_cli.measure import Measurement
from exprune_cli.model import load
from exprune_cli.record import read_record, write_record
from exprune_cli.report_data import (
    Alternative,
    Certificate,
    Environment,
    Fidelity,
    Histogram,
    Origin,
    Outlook,
    RefusalGroup,
    Report,
    SiteOutlook,
    SiteReport,
    Spread,
    Timing,
    Totals,
)
from exprune_cli.reporting import build_report
from exprune_cli.runtime import kernels_name
from tests.models import build, cnn, mlp
from tests.report.staged import staged_model

SCHEMA = json.loads((importlib.resources.files("exprune_cli") / "report.schema.json").read_text())
GOLDEN = Path(__file__).parent / "golden"


def check(report: Report) -> dict:
    text = render.to_json(report)
    plain = json.loads(text)
    jsonschema.validate(plain, SCHEMA)
    return plain


def same_as_golden(name: str, text: str) -> None:
    """Compares with ``golden/<name>``. To renew a file: delete it and run the tests once."""
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path} was missing and is written now: read it, then run again")
    assert text == path.read_text()


def test_schema_names_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    properties = SCHEMA["properties"]
    assert {f.name for f in dataclasses.fields(Report)} | {"output"} == set(properties)
    for kind, part in (
        (SiteReport, properties["sites"]["items"]),
        (Totals, properties["totals"]),
        (Fidelity, properties["fidelity"]),
        (Certificate, properties["certificate"]),
        (Timing, properties["timing"]),
        (Histogram, properties["timing"]["properties"]["histogram"]),
        (Spread, SCHEMA["$defs"]["spread"]),
        (SiteOutlook, properties["sites"]["items"]["properties"]["outlook"]),
        (Alternative, properties["alternatives"]["items"]),
        (RefusalGroup, properties["refusals"]["items"]),
        (Outlook, properties["outlook"]),
        (Origin, properties["origin"]),
        (Environment, properties["environment"]),
    ):
        assert [f.name for f in dataclasses.fields(kind)] == list(part["properties"]) == part["required"]


def test_schema_admits_no_other_field() -> None:
    def objects(part: object) -> Iterator[dict]:
        if isinstance(part, dict):
            if "object" in str(part.get("type")):
                yield part
            for value in part.values():
                yield from objects(value)

    found = list(objects(SCHEMA))
    assert len(found) > 12
    assert all("additionalProperties" in part for part in found)
    assert [part for part in found if part["additionalProperties"] is not False] == [
        SCHEMA["properties"]["origin"]["properties"][name] for name in ("top_k", "fused")
    ]


def test_untouched_model() -> None:
    plain = check(build_report(load(cnn()), name="cnn.onnx"))
    assert [site["name"] for site in plain["sites"]] == ["c1", "c2", "c3", "y"]
    assert not any(site["staged"] for site in plain["sites"])
    assert plain["sites"][3]["reason"] == "its result 'y' is an output of the model"
    # by hand: 24 x 16 x 16 outputs of 27 and of 216 taps, 40 x 8 x 8 of 216, 40 x 10
    dense = [2 * 6144 * 27, 2 * 6144 * 216, 2 * 2560 * 216, 2 * 400]
    assert [site["flops_dense"] for site in plain["sites"]] == dense
    assert plain["totals"]["flops_dense"] == plain["totals"]["flops"] == sum(dense)
    assert plain["totals"]["flops_reduction"] == 0
    assert (plain["optimized"], plain["runtime"], plain["fidelity"], plain["certificate"]) == (
        False,
        None,
        None,
        None,
    )


def test_model_without_linear_operators() -> None:
    source = build("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {})
    plain = check(build_report(load(source)))
    assert plain["sites"] == []
    assert plain["totals"]["flops_dense"] == 0
    assert plain["totals"]["flops_reduction"] is None


def test_dynamic_sizes_other_than_the_batch_are_unknown() -> None:
    source = build(
        "g (float[B, L, 8] x) => (float[B, L, 12] y) { a = MatMul (x, w) y = Relu (a) }", {"w": (8, 12)}
    )
    plain = check(build_report(load(source)))
    assert plain["totals"]["flops_dense"] is None
    assert plain["sites"][0]["flops_dense"] is None


def test_expected_flops_of_a_staged_model() -> None:
    plain = check(build_report(staged_model(mlp()), name="mlp.onnx"))
    sites = {site["name"]: site for site in plain["sites"]}
    assert plain["optimized"]
    assert (sites["a"]["estimate"], sites["a"]["test"]) == ("prefix", "threshold")
    assert sites["a"]["pruned"] == 0.5
    # a: 96 outputs, groups 64 = 16 + 16 + 32; 72 are left after the first check, 48 after the second
    spent = 2 * 96 * 16 + 96 + 2 * 72 * 16 + 72 + 2 * 48 * 32
    assert sites["a"]["flops"] == spent
    saved = sum(site["flops_dense"] - site["flops"] for site in sites.values())
    assert plain["totals"]["flops"] == plain["totals"]["flops_dense"] - saved
    assert plain["totals"]["flops_reduction"] == pytest.approx(saved / plain["totals"]["flops_dense"])


def test_expected_flops_are_unknown_where_shares_are() -> None:
    plain = check(build_report(staged_model(mlp(), pruned=None)))
    assert plain["totals"]["flops"] is None
    assert plain["totals"]["flops_dense"] == 2 * (64 * 96 + 96 * 96 + 96 * 10)
    assert plain["sites"][0]["pruned"] is None
    assert plain["sites"][0]["flops_dense"] == 2 * 64 * 96


def measured_report() -> Report:
    model = staged_model(mlp(), only="a")
    record = read_record(model.proto)
    assert record is not None
    record.certificate = {
        "max_drop": 0.01,
        "confidence": 0.95,
        "holds": True,
        "samples": 500,
        "p_value": 0.01,
    }
    write_record(model.proto, record)
    import numpy as np

    measurement = Measurement(
        samples=100,
        rows={"a": 100},
        survivors={"a": np.array([4800, 2400])},
        flops_dense=3_264_000,
        flops=2_500_000.0,
        node_flops={"r": 1_228_800, "m": 1_843_200, "f": 192_000},
        site_flops={"a": 464_800.0},
        metric="accuracy",
        scores_baseline=np.array([1.0] * 90 + [0.0] * 10),
        scores_optimized=np.array([1.0] * 89 + [0.0] * 11),
        agreement=0.99,
    )
    timing = Latency(0.0123, 0.0099, 1.25, 60, 1, 1, "iobinding")
    return build_report(model, measurement=measurement, timing=timing, name="mlp.onnx")


def test_measured() -> None:
    plain = check(measured_report())
    sites = {site["name"]: site for site in plain["sites"]}
    assert sites["a"]["pruned"] == 0.75
    assert (sites["a"]["flops_dense"], sites["a"]["flops"]) == (12288, 4648)
    assert (sites["m"]["flops_dense"], sites["m"]["flops"], sites["m"]["pruned"]) == (18432, 18432, 0)
    assert plain["totals"]["flops_dense"] == 32640
    assert plain["fidelity"]["drop"] == pytest.approx(0.01)
    assert (
        plain["certificate"] | {"max_drop": 0.01, "confidence": 0.95, "holds": True, "samples": 500}
        == plain["certificate"]
    )
    unknown = {"dense": None, "optimized": None, "histogram": None}
    assert plain["timing"] == {"threads": 1, "batch": 1, "runs": 60, "binding": "iobinding"} | unknown


def test_numbers_that_are_not_finite_are_null() -> None:
    report = measured_report()
    assert report.fidelity is not None
    report.fidelity.drop = math.nan
    report.totals.speedup = math.inf
    plain = check(report)
    assert plain["fidelity"]["drop"] is plain["totals"]["speedup"] is None


@pytest.mark.parametrize("name", ["untouched", "expected", "measured"])
def test_tables(name: str) -> None:
    if name == "measured":
        report = measured_report()
    else:
        model = load(cnn()) if name == "untouched" else staged_model(mlp())
        report = build_report(model, name=f"some/folder/{name}.onnx")
    if report.runtime is not None:
        report.runtime = "native"
    table = render.to_table(report).replace(f", {kernels_name()} kernels", "")  # this machine's
    same_as_golden(f"{name}.txt", table)


def awkward_report() -> Report:
    sites = [
        SiteReport(
            "/encoder/layers.11/feed_forward/intermediate/dense/MatMul",
            "MatMul",
            "r",
            True,
            "",
            "prefix",
            "threshold",
            1.2e12,
            9.99e11,
            0.123,
        ),
        SiteReport("[red]name\x1b[31m :smile:", "Conv", "r", True, "", None, "zero", 0, 0, None),
        SiteReport("x" * 200, "DynamicQuantizeMatMul", None, False, "a reason that goes on " * 10),
    ]
    return Report("/some/folder/" + "m" * 100 + ".onnx", sites, Totals(), optimized=True, runtime="function")


def test_awkward_names_stay_within_80_columns() -> None:
    text = render.to_table(awkward_report())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "[red]name" in text
    assert ":smile:" in text
    assert "\x1b" not in text
    assert "/encoder..e/dense/MatMul" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_and_never_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = measured_report()
    plain = render.to_table(report, io.StringIO())
    coloured = render.to_table(report, Terminal())
    assert "\x1b[" in coloured and "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == plain.split()
    monkeypatch.setenv("NO_COLOR", "1")
    assert render.to_table(report, Terminal()) == plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (999.6, "1 k"),
        (1234, "1.23 k"),
        (999_600, "1 M"),
        (2.5e9, "2.5 G"),
        (1.5e15, "1500 T"),
    ],
)
def test_amounts(value: float | None, text: str) -> None:
    assert render.amount(value) == text


def test_shorten_keeps_both_ends() -> None:
    assert render.shorten("abcdefghij", 10) == "abcdefghij"
    assert render.shorten("abcdefghijk", 10) == "abc..ghijk"
    assert len(render.shorten("y" * 99, 25)) == 25
