"""The HTML page in a real browser: its numbers are the JSON's, nothing is fetched, it fits and can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from exprune_cli import api, render
from exprune_cli.page import FORMATS, resolve, to_html
from exprune_cli.report_data import Report
from tests.models import build, cnn, mlp, run
from tests.report.test_page import hostile_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KINDS = ("untouched", "untouched with data", "open sizes", "staged and measured", "hostile")
#: WCAG 2.1, success criteria 1.4.3 and 1.4.11.
TEXT_CONTRAST, GRAPHIC_CONTRAST = 4.5, 3.0


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """Reports of real models, by what they are about."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(cnn(), folder / "cnn.onnx")
    onnx.save(mlp(), folder / "mlp.onnx")
    free = "g (float[B, L, 8] x) => (float[B, L, 12] y) { a = MatMul (x, w) y = Relu (a) }"
    onnx.save(build(free, {"w": (8, 12)}), folder / "open.onnx")
    x = np.random.default_rng(4).standard_normal((400, 64)).astype(np.float32)
    (label,) = run(mlp(), x=x)
    (folder / "data").mkdir()
    np.savez(folder / "data" / "all.npz", x=x, label=label)
    source, staged, data = folder / "mlp.onnx", folder / "staged.onnx", folder / "data"
    api.optimize(source, staged, data=data, objective="flops", max_drop=0.2)
    return {
        "untouched": api.report(folder / "cnn.onnx"),
        "untouched with data": api.report(source, data=data),
        "open sizes": api.report(folder / "open.onnx"),
        "staged and measured": api.report(staged, source, data),
        "hostile": hostile_report(),
    }


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Browser, reports: dict[str, Report], tmp_path: Path) -> Open:
    """Opens a report's page from disk, and fails on anything that the browser complains of or fetches."""

    @contextmanager
    def open_page(kind: str, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
        path = tmp_path / "page.html"
        path.write_text(to_html(reports[kind]), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        seen: list[str] = []
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("request", lambda request: seen.append(f"request: {request.url}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
        page.goto(path.as_uri())
        yield page
        assert seen == [f"request: {path.as_uri()}"]
        page.close()

    return open_page


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_json(opened: Open, reports: dict[str, Report], kind: str) -> None:
    with opened(kind) as page:
        plain = json.loads(page.evaluate("document.getElementById('report').textContent"))
        assert plain == json.loads(render.to_json(reports[kind]))
        shown = page.evaluate(
            "[...document.querySelectorAll('[data-json]')].map(e => [e.dataset.json, e.dataset.format, e.textContent])"
        )
        assert len(shown) >= 4 * len(plain["sites"])
        for pointer, form, text in shown:
            assert text == FORMATS[form](resolve(plain, pointer)), pointer
        pointers = {pointer for pointer, _, _ in shown}
        if kind == "staged and measured":
            assert {
                "/totals/flops",
                "/totals/flops_dense",
                "/totals/flops_reduction",
                "/totals/latency_ms",
                "/totals/latency_dense_ms",
                "/totals/speedup",
                "/fidelity/drop",
                "/fidelity/samples",
                "/timing/optimized/median",
                "/alternatives/0/drop",
                "/origin/calibration_samples",
            } <= pointers


@pytest.mark.parametrize("kind", KINDS)
def test_bars_have_the_lengths_of_their_numbers(opened: Open, kind: str) -> None:
    with opened(kind) as page:
        sites = json.loads(page.evaluate("document.getElementById('report').textContent"))["sites"]
        bars = page.evaluate(
            """[...document.querySelectorAll("td.chart[data-site]")].map(cell => ({
              site: Number(cell.dataset.site), whole: cell.querySelector("svg").getBoundingClientRect().width,
              parts: [...cell.querySelectorAll("rect")].map(r => [
                r.getAttribute("class"), Number(r.dataset.flops), r.getBoundingClientRect().width])}))"""
        )
    assert [bar["site"] for bar in bars] == list(range(len(sites)))
    known = all(site["flops_dense"] is not None for site in sites)
    scale = max(sum(flops for _, flops, _ in bar["parts"]) for bar in bars)
    for bar, site in zip(bars, sites, strict=True):
        for _, flops, width in bar["parts"]:
            assert width == pytest.approx(bar["whole"] * flops / scale, abs=0.6)
        work = {name: flops for name, flops, _ in bar["parts"]}
        if known and site["staged"]:
            spent = sum(value for name, value in work.items() if name != "skipped")
            assert spent == pytest.approx(site["flops"])
        elif known:
            assert sum(work.values()) == pytest.approx(site["flops_dense"])


def test_points_and_times_are_those_of_the_json(opened: Open) -> None:
    with opened("staged and measured") as page:
        plain = json.loads(page.evaluate("document.getElementById('report').textContent"))
        points = page.evaluate(
            "[...document.querySelectorAll('#trade-off circle')].map(c => "
            "[Number(c.dataset.point), c.getAttribute('class'), c.cx.baseVal.value, c.cy.baseVal.value])"
        )
        counts = page.evaluate(
            "[...document.querySelectorAll('#times rect')].map(r => [r.getAttribute('class'), Number(r.dataset.count)])"
        )
    alternatives = plain["alternatives"]
    assert sorted(index for index, *_ in points) == list(range(len(alternatives)))
    assert [alternatives[index]["chosen"] for index, kind, *_ in points] == [
        kind == "chosen" for _, kind, *_ in points
    ]
    ordered = sorted(points, key=lambda point: alternatives[point[0]]["flops_reduction"])
    assert [x for *_, x, _ in ordered] == sorted(x for *_, x, _ in points)
    lost = sorted(points, key=lambda point: -alternatives[point[0]]["drop"])
    assert [y for *_, y in lost] == sorted(y for *_, y in points)
    for name in ("dense", "optimized"):
        drawn = [count for kind, count in counts if kind == f"times {name}"]
        assert drawn == [count for count in plain["timing"]["histogram"][name] if count]
        assert sum(drawn) == plain["timing"]["runs"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [320, 375])
def test_nothing_is_wider_than_a_phone(opened: Open, kind: str, width: int) -> None:
    with opened(kind, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# Pairs of texts that stand over each other.
OVERLAPS = """() => {
  const texts = [], found = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.textContent.trim() || node.parentElement.closest("title, details:not([open])")) continue;
    const head = node.parentElement.closest("thead");
    if (head && getComputedStyle(head).clipPath !== "none") continue;  // for those who do not see the table
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (box.width > 1) texts.push([box, node.textContent.trim().slice(0, 40)]);
  }
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [texts[i][0], texts[j][0]];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && high > 4) found.push(["texts", texts[i][1], texts[j][1]]);
    }
  return found;
}"""


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("kind", ["untouched", "untouched with data", "open sizes", "staged and measured"])
def test_no_text_stands_over_another(opened: Open, kind: str, width: int) -> None:
    with opened(kind, width) as page:
        assert page.evaluate(OVERLAPS) == []


# The contrast of every text with what is behind it, and of every filled shape with the page.
CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || (c.length === 4 && c[3] > 0)) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const each of document.querySelectorAll("details")) each.open = true;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    found.push(["text", ratio(parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color), behind(element)),
      walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  for (const shape of document.querySelectorAll("svg rect, svg circle")) {
    const fill = getComputedStyle(shape).fill, stroke = getComputedStyle(shape).stroke;
    const c = fill.startsWith("rgb") ? fill : "";
    if (!c || shape.classList.contains("failed")) continue;
    found.push(["shape", ratio(parse(c), behind(shape.closest("svg").parentElement)), shape.getAttribute("class")]);
  }
  return [getComputedStyle(document.body).backgroundColor, found];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["untouched with data", "staged and measured"])
def test_everything_can_be_read_in_light_and_dark(opened: Open, kind: str, scheme: str) -> None:
    with opened(kind, scheme=scheme) as page:
        back, found = page.evaluate(CONTRAST)
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    assert len(found) > 60
    limits = {"text": TEXT_CONTRAST, "shape": GRAPHIC_CONTRAST}
    assert [each for each in found if each[1] < limits[each[0]]] == []


def test_columns_sort_by_keyboard(opened: Open) -> None:
    with opened("staged and measured") as page:
        order = "[...document.querySelectorAll('#sites tbody tr')].map(r => Number(r.dataset.saved))"
        before = page.evaluate(order)
        page.locator("#sites th[data-sort=saved] button").focus()
        page.keyboard.press("Enter")
        assert page.evaluate(order) == sorted(before, reverse=True) != sorted(before)
        page.keyboard.press("Enter")
        assert page.evaluate(order) == sorted(before)
        assert page.get_attribute("#sites th[data-sort=saved]", "aria-sort") == "ascending"


def test_print_shows_what_is_folded(opened: Open) -> None:
    with opened("staged and measured") as page:
        folded = "document.querySelectorAll('details:not([open])').length"
        before = page.evaluate(folded)
        assert before > 0
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(folded) == 0
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(folded) == before
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_data_can_be_saved(opened: Open, reports: dict[str, Report], tmp_path: Path) -> None:
    with opened("untouched") as page:
        with page.expect_download() as download:
            page.click("#save button")
        download.value.save_as(tmp_path / "saved.json")
    assert json.loads((tmp_path / "saved.json").read_text()) == json.loads(
        render.to_json(reports["untouched"])
    )


def test_charts_have_words_for_those_who_do_not_see_them(opened: Open) -> None:
    with opened("staged and measured") as page:
        unnamed = page.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].filter(s => !s.getAttribute('aria-label')).length"
        )
        charts = page.evaluate("document.querySelectorAll('svg[role=img]').length")
        scopes = page.evaluate("[...document.querySelectorAll('th:not([scope])')].length")
    assert (unnamed, scopes) == (0, 0) and charts > 4
