"""What the functions return: dicts that equal the commands' JSON, files, and how they show themselves."""

from __future__ import annotations

import importlib.resources
import json
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import exprune_cli
from exprune_cli.cli import main

SCHEMA = json.loads((importlib.resources.files("exprune_cli") / "report.schema.json").read_text())


class Balanced(HTMLParser):
    """Fails on tags that do not close, and gathers the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main([*arguments, "--format", "json"]) == 0
    plain: dict[str, object] = json.loads(capsys.readouterr().out)
    return plain


@pytest.fixture
def done(folder: Path) -> exprune_cli.Optimized:
    return exprune_cli.optimize("model.onnx", "staged.onnx", objective="flops")


def test_dicts_are_the_commands_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = exprune_cli.optimize("model.onnx", "staged.onnx", objective="flops")
    assert done.to_dict() == command(capsys, "optimize", "model.onnx", "staged.onnx", "--objective", "flops")
    assert exprune_cli.report("staged.onnx").to_dict() == command(capsys, "report", "staged.onnx")
    jsonschema.validate(done.to_dict(), SCHEMA)


def test_saving_writes_what_the_output_argument_writes(done: exprune_cli.Optimized) -> None:
    done.save("again.onnx")
    assert Path("again.onnx").read_bytes() == Path("staged.onnx").read_bytes()
    with pytest.raises(exprune_cli.ExpruneError, match="there is no folder"):
        done.save("missing/x.onnx")


def test_where_nothing_is_staged_the_output_is_the_inputs_equal(folder: Path) -> None:
    content = Path("plain.onnx").read_bytes()
    for form in ("plain.onnx", content):
        done = exprune_cli.optimize(form, "out.onnx", objective="flops")
        assert done.staged == 0 and Path("out.onnx").read_bytes() == content
        Path("out.onnx").unlink()
        done.save("out.onnx")
        assert Path("out.onnx").read_bytes() == content
    done = exprune_cli.optimize(onnx.load("plain.onnx"), "out.onnx", objective="flops")
    assert onnx.load("out.onnx") == onnx.load("plain.onnx") == done.model


def test_reports_are_saved_by_their_ending(done: exprune_cli.Optimized) -> None:
    report = exprune_cli.report("staged.onnx")
    for name in ("r.json", "r.html", "r.txt"):
        report.save(name)
    assert json.loads(Path("r.json").read_text()) == report.to_dict()
    assert Path("r.html").read_text().lower().startswith("<!doctype html>")
    assert Path("r.txt").read_text() == str(report)
    with pytest.raises(exprune_cli.UsageError, match=r"r\.pdf: a report is written as \.json, \.html, \.txt"):
        report.save("r.pdf")
    assert not Path("r.pdf").exists()


def test_calibrations_are_saved_and_loaded(folder: Path, images: np.ndarray) -> None:
    made = exprune_cli.calibrate("model.onnx", images, "a.calib")
    made.save("b.calib")
    assert Path("a.calib").read_bytes() == Path("b.calib").read_bytes()
    read = exprune_cli.Calibration.load("b.calib")
    assert read.to_dict() == made.to_dict()
    assert json.loads(json.dumps(made.to_dict()))["samples"] == 160
    with pytest.raises(exprune_cli.ExpruneError, match="no such file"):
        exprune_cli.Calibration.load("missing.calib")


def test_certificates(folder: Path, images: np.ndarray) -> None:
    done = exprune_cli.optimize("model.onnx", data=images, objective="flops", max_drop=0.3, confidence=0.9)
    certificate = done.certificate
    assert isinstance(certificate, exprune_cli.Certificate) and certificate.holds
    assert certificate.to_dict() == done.to_dict()["certificate"]
    assert repr(certificate) == (
        f"<Certificate: drop <= 0.3 at 90.00% confidence holds, {certificate.samples} samples>"
    )
    assert "0.3" in Balanced(certificate._repr_html_()).text
    assert "certificate" in Balanced(done._repr_html_()).text
    assert exprune_cli.optimize("model.onnx", objective="flops").certificate is None


def test_reprs_are_one_line(done: exprune_cli.Optimized, images: np.ndarray) -> None:
    assert repr(done) == "<Optimized staged.onnx: 3 of 3 linear operators staged, written to staged.onnx>"
    known = exprune_cli.optimize("model.onnx", data=images, objective="flops", max_drop=0.2)
    saved = known.report.totals.flops_reduction
    assert saved is not None
    assert f" staged, {saved:.1%} of FLOPs saved, agreement drops by " in repr(known)
    assert repr(exprune_cli.report("model.onnx")) == (
        "<Report of model.onnx: not optimised, 3 of 3 linear operators can be staged>"
    )
    measured = exprune_cli.report("staged.onnx", "model.onnx", images[:16])
    assert "x as fast, agreement drops by 0>" in repr(measured)


def test_notebooks_show_a_fragment_with_the_numbers(done: exprune_cli.Optimized, images: np.ndarray) -> None:
    report = exprune_cli.report("staged.onnx", "model.onnx", images[:16])
    page = Balanced(report._repr_html_())
    assert {site.name for site in report.staged} <= set(page.text)
    assert report.totals.speedup is not None
    assert any(text.endswith(f"{report.totals.speedup:.3g}x") for text in page.text)
    assert not page.tags & {"script", "style", "html", "link"}
    calibration = exprune_cli.calibrate("model.onnx", images)
    assert set(calibration.sites) <= set(Balanced(calibration._repr_html_()).text)


def test_notebooks_get_names_from_models_escaped(proto: onnx.ModelProto) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.node[0].name = "<script>alert(1)</script>"
    html = exprune_cli.report(copy)._repr_html_()
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html


def test_an_optimized_model_gives_sessions(done: exprune_cli.Optimized, images: np.ndarray) -> None:
    native, plain = done.session(), done.session(use_runtime=False)
    feeds = {"x": images[:5]}
    assert native.run(None, feeds)[0].tolist() == plain.run(None, feeds)[0].tolist()
