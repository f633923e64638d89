"""The HTML page as text: whole, escaped, closed to the network. How it looks and works: ``tests/browser``."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from exprune_cli import render
from exprune_cli.model import load
from exprune_cli.page import FORMATS, resolve, to_html
from exprune_cli.page.charts import _ticks, segments
from exprune_cli.report_data import Report
from exprune_cli.reporting import build_report
from tests.models import build, cnn, mlp
from tests.report.staged import staged_model
from tests.report.test_report import awkward_report, measured_report

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\'"'


def hostile_report() -> Report:
    """Every string that a model, its data or its options bring is hostile."""
    report = measured_report()
    report.model = f"some/{HOSTILE}.onnx"
    report.baseline = report.data = HOSTILE
    report.notes.append(HOSTILE)
    for site in report.sites:
        site.name = site.reason = site.op = HOSTILE
    report.refusals[0].sites = [HOSTILE]
    report.refusals[0].reason = report.refusals[0].advice = HOSTILE
    assert report.origin is not None and report.fidelity is not None
    report.fidelity.metric = HOSTILE
    report.origin.options = {"metric": HOSTILE, "exclude": [HOSTILE, HOSTILE]}
    report.origin.top_k = {HOSTILE: 3}
    return report


class Elements(HTMLParser):
    """All elements with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def reports() -> list[Report]:
    return [
        build_report(load(cnn())),
        build_report(load(build("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}))),
        build_report(staged_model(mlp(), pruned=None)),
        build_report(staged_model(cnn())),
        measured_report(),
        awkward_report(),
        hostile_report(),
    ]


@pytest.mark.parametrize("index", range(7))
def test_a_page_is_whole_and_closed(index: int) -> None:
    report = reports()[index]
    page = to_html(report)
    elements = Elements(page).found
    tags = [tag for tag, _ in elements]
    assert page.startswith("<!doctype html>") and page.endswith("</html>")
    assert tags.count("script") == 2 and tags.count("style") == 1
    assert not {"img", "link", "iframe", "object", "base", "form", "a"} & set(tags)
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "style")]
    policy = next(each["content"] for tag, each in elements if each.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "prefers-color-scheme: dark" in page and "@media print" in page


@pytest.mark.parametrize("index", range(7))
def test_a_page_carries_its_report(index: int) -> None:
    report = reports()[index]
    page = to_html(report)
    embedded = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    plain = json.loads(embedded[1])
    assert plain == json.loads(render.to_json(report))
    numbers = re.findall(r'data-json="([^"]+)" data-format="(\w+)">([^<]*)<', page)
    assert numbers or not report.sites
    for pointer, form, text in numbers:
        assert html.unescape(text) == FORMATS[form](resolve(plain, pointer))


def test_hostile_strings_are_text() -> None:
    page = to_html(hostile_report())
    assert "alert(1)" in page and "<script>alert" not in page and "<img" not in page
    assert page.count("\\u003c/script\\u003e") >= 8  # in the JSON
    assert page.count(html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) >= 8


def test_what_is_measured_is_on_the_page() -> None:
    page = re.sub(r"<[^>]+>", "", to_html(measured_report()))
    for text in (
        "25 k of 32.6 k",
        "23.4%",
        "1.25x",
        "0.9 before, 0.89 now",
        "holds",
        "same result on 99.00% of 100",
    ):
        assert text in " ".join(page.split())


def test_a_bar_is_made_of_its_sites_flops() -> None:
    for site in measured_report().as_json()["sites"]:  # type: ignore[attr-defined]
        parts = {part.kind: part.flops for part in segments(site)}
        if not site["staged"]:
            assert parts == {"dense": site["flops_dense"]}
            continue
        assert parts["estimate"] + parts["finished"] == site["flops"]
        assert sum(parts.values()) == site["flops_dense"]


@pytest.mark.parametrize(("low", "high"), [(0, 0.0101), (0.3, 0.334), (-0.02, 0.4), (0, 1e-9), (1.1, 9000)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    steps = {round(b - a, 12) for a, b in pairwise(ticks)}
    assert len(steps) == 1
