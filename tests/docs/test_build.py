"""The documentation builds without a warning, holds what it should, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from exprune_cli.rules import RULES

import exprune_cli
from exprune_cli.certify import samples_needed
from exprune_cli.cli import exprune
from exprune_cli.functions import FUSED_OPS, OPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    for module in ("material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[docs]'")
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^WARNING", done.stderr, re.MULTILINE), done.stderr
    return target


def _page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_every_part_has_its_reference(site: Path) -> None:
    headings = {
        name: re.findall(r'<h[123] id="([^"]+)"', _page(site, f"reference/{name}"))
        for name in ("rules", "ops", "commands", "python")
    }
    assert {rule.NAME for rule in RULES} <= set(headings["rules"])
    assert {op.lower() for op in (*OPS, *FUSED_OPS)} <= set(headings["ops"])
    assert {f"exprune-{name}" for name in exprune.commands} <= set(headings["commands"])
    text = _page(site, "reference/python")
    assert all(re.search(rf'<h2 id="exprune_cli\.{name}"', text) for name in exprune_cli.__all__)


def test_every_key_of_the_json_report_is_explained(site: Path) -> None:
    schema = json.loads((ROOT / "exprune_cli" / "report.schema.json").read_text(encoding="utf-8"))
    text = _page(site, "reference/json")
    assert all(f"<code>{key}</code>" in text for key in schema["properties"])


def test_messages_are_those_of_the_sources(site: Path) -> None:
    text = _page(site, "reference/messages")
    assert "grouped-conv" in text
    assert "it sums over ⟨linear.groups⟩ group: nothing to stage" in text
    assert "--confidence needs --max-drop" in text
    assert (
        "cannot be certified at ⟨self.confidence⟩ from ⟨samples.units⟩ held-out ⟨samples.unit⟩s, at least"
        in text
    )


def test_quoted_messages_exist() -> None:
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split())
    sources = [*(ROOT / "exprune_cli").rglob("*.py"), *(ROOT / "runtime").glob("*.cpp")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r'"\s+f?"', "", text)  # strings that go over several lines
    quoted = re.findall(r'\*\*"([^"]+)"\*\*', page)
    assert len(quoted) > 5
    for piece in (piece.strip() for quote in quoted for piece in quote.split("...")):
        assert piece in text, piece


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]+src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|preload|icon)"[^>]*href="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]+href="([^"]+)"[^>]*rel="(?:stylesheet|preload|icon)"', text)
        assert loaded
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], path


def test_the_pictures_are_drawn_alike_each_time() -> None:
    from docs.pictures import draw_all

    first = draw_all()
    assert first == draw_all()
    assert all(text.lstrip().startswith("<?xml") and "<svg" in text for text in first.values())


def test_the_table_of_sample_counts() -> None:
    text = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for drop, *counts in rows:
        assert [int(c) for c in counts] == [samples_needed(float(drop), p) for p in (0.9, 0.95, 0.99)]
