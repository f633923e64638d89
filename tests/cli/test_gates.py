"""Bounds of ``exprune report``: exit code 1 and one line that names the bound, the value and the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import exprune_cli
from exprune_cli.gates import Bounds
from exprune_cli.report_data import Fidelity, Report, Totals
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
MEASURE = ("--baseline", "mlp.onnx", "--data", "data")


@pytest.fixture
def staged(folder: Path) -> str:
    exprune_cli.optimize("mlp.onnx", "staged.onnx", objective="flops")
    return "staged.onnx"


def test_within_all_bounds_the_exit_code_is_0(staged: str, run: Run) -> None:
    bounds = ("--min-saving", "-9", "--max-drop", "0.5", "--min-speedup", "0", "--min-staged", "3")
    done = run("report", staged, *MEASURE, *bounds)
    assert done.code == 0 and "error" not in done.err


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (("--min-saving", "0.99"), r"[\d.-]+% of FLOPs saved is below --min-saving 0.99: optimise again"),
        (("--max-drop", "-0.5"), r"accuracy drops by 0, more than --max-drop -0.5: optimise again"),
        (("--min-speedup", "1e6"), r"[\d.]+x as fast is below --min-speedup 1e\+06 \("),
        (("--min-staged", "4"), r"3 staged sites are fewer than --min-staged 4: see in the report"),
    ],
)
def test_outside_it_is_1_and_the_report_is_printed(
    bound: tuple[str, str], message: str, staged: str, run: Run
) -> None:
    done = run("report", staged, *MEASURE, *bound, "--format", "json")
    assert done.code == 1
    assert json.loads(done.out)["samples"] == 8
    errors = [line for line in done.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert re.match(rf"exprune: error: staged.onnx: {message}", errors[0])


def test_the_file_is_written_all_the_same(staged: str, run: Run) -> None:
    assert run("report", staged, "--min-staged", "4", "-o", "report.txt").code == 1
    assert "staged.onnx" in Path("report.txt").read_text()


def test_an_untouched_model_saves_nothing(folder: Path, run: Run) -> None:
    done = run("report", "mlp.onnx", "--min-saving", "0.1", "--min-staged", "1")
    assert done.code == 1
    assert "0 staged sites are fewer" in done.err and "0.00% of FLOPs saved is below" in done.err


def test_what_is_not_known_is_no_pass(staged: str, run: Run) -> None:
    """The lossless test's saving is only known after it was measured."""
    done = run("report", staged, "--min-saving", "0")
    assert done.code == 1 and "give --data to measure it" in done.err
    unknown = Report("m.onnx", [], Totals(), Fidelity(), optimized=True)
    with pytest.raises(exprune_cli.GateError, match="no metric fits .*no speed-up was measured"):
        Bounds(max_drop=0.1, min_speedup=1).check(unknown)


@pytest.mark.parametrize(
    "options",
    [
        ("--max-drop", "0.1"),
        ("--max-drop", "0.1", "--data", "data"),
        ("--min-speedup", "1", "--baseline", "mlp.onnx"),
        ("--min-saving", "1"),
        ("--min-saving", "nan"),
        ("--min-speedup", "-1", *MEASURE),
    ],
)
def test_bounds_that_cannot_be_checked_are_usage_errors(
    options: tuple[str, ...], staged: str, run: Run
) -> None:
    done = run("report", staged, *options)
    assert done.code == 2 and options[0] in done.err and not done.out


def test_from_python(staged: str) -> None:
    report = exprune_cli.report(staged)
    report.check(min_staged=3)
    with pytest.raises(exprune_cli.GateError, match="min_staged=4"):
        report.check(min_staged=4)


def test_the_hook_runs_a_command_that_there_is(run: Run) -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (entry,) = re.findall(r"entry: exprune (\w+)", text)
    assert run(entry, "--help").code == 0
    (pattern,) = re.findall(r"files: (.*)", text)
    assert re.search(pattern, "models/a.onnx") and not re.search(pattern, "a.py")
