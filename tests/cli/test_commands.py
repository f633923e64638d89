"""The commands on real models, through ONNX Runtime."""

from __future__ import annotations

import importlib.resources
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import exprune_cli
from exprune_cli import api
from exprune_cli.calibration import load_calibration
from exprune_cli.cli import exprune
from exprune_cli.errors import UsageError
from tests.cli.conftest import Outcome, Run, content

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((importlib.resources.files("exprune_cli") / "report.schema.json").read_text())
GOLDEN = Path(__file__).parent / "golden"


def shell(*arguments: str, **environment: str) -> Outcome:
    """Runs a command in a process of its own, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "exprune_cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def parse(outcome: Outcome) -> dict:
    """The JSON object that a command printed, which has to be all that it printed."""
    assert (outcome.code, outcome.err) == (0, "")
    plain = json.loads(outcome.out)
    jsonschema.validate(plain, SCHEMA)
    return plain


@pytest.mark.parametrize("command", ["", "calibrate", "optimize", "report", "completion"])
def test_help(command: str) -> None:
    words = [command] if command else []
    short, long = (
        CliRunner().invoke(exprune, [*words, flag], prog_name="exprune") for flag in ("-h", "--help")
    )
    assert short.output == long.output
    assert short.exit_code == 0
    path = GOLDEN / f"help-{command or 'exprune'}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(short.output)
        pytest.fail(f"{path} was missing and is written now: read it, then run again")
    assert short.output == path.read_text()
    assert max(map(len, short.output.splitlines())) <= 80


def test_version_and_no_command(run: Run) -> None:
    assert run("--version") == Outcome(0, f"exprune {exprune_cli.__version__}\n", "")
    outcome = run()
    assert outcome.code == 2 and "Commands:" in outcome.err and outcome.out == ""


def test_help_loads_no_heavy_module() -> None:
    script = (
        "import sys; from exprune_cli.cli import main; main(['optimize', '-h']); "
        "print([m for m in ('onnx', 'onnxruntime', 'numpy', 'scipy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def test_the_whole_way(run: Run, folder: Path) -> None:
    """Every command prints the next one, ready to paste."""
    first = run("calibrate", "mlp.onnx", "--data", "data", "--max-samples", "6")
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[0] == "mlp.calib: statistics of 3 sites from 6 samples"
    command = shlex.split(first.out.splitlines()[-1].removeprefix("next: exprune "))
    assert command == ["optimize", "mlp.onnx", "mlp.exprune.onnx", "--calibration", "mlp.calib"]
    second = run(*command, "--objective", "flops")
    assert (second.code, second.err) == (0, "")
    assert "mlp.exprune.onnx: " in second.out
    command = shlex.split(second.out.splitlines()[-1].removeprefix("next: exprune "))
    assert command == ["report", "mlp.exprune.onnx", "--baseline", "mlp.onnx"]
    third = run(*command, "--data", "data")
    assert (third.code, third.err) == (0, "")
    assert "per sample, measured on 8 samples" in third.out
    assert "paired" in third.out


def test_report_json_of_all_stages(run: Run, folder: Path) -> None:
    before = parse(run("report", "mlp.onnx", "--format", "json"))
    assert before["model"] == "mlp.onnx"
    made = parse(run("optimize", "mlp.onnx", "o.onnx", "--objective", "flops", "--format", "json"))
    assert made["output"] == "o.onnx"
    assert made["optimized"] and any(site["staged"] for site in made["sites"])
    assert made["totals"]["flops_dense"] == before["totals"]["flops_dense"]
    measured = parse(run("report", "o.onnx", "--baseline", "mlp.onnx", "--data", "data", "--format", "json"))
    assert measured["totals"]["flops_dense"] == before["totals"]["flops_dense"]
    assert measured["totals"]["flops"] is not None
    assert measured["samples"] == 8
    assert measured["fidelity"]["samples"] == 8
    assert measured["fidelity"]["agreement"] == 1  # lossless
    assert measured["fidelity"]["drop"] == 0
    assert measured["totals"]["latency_dense_ms"] > 0 and measured["totals"]["latency_ms"] > 0
    assert measured["totals"]["speedup"] > 0
    untouched = parse(run("report", "mlp.onnx", "--data", "data", "--format", "json"))
    assert (
        untouched["totals"]["flops"] == untouched["totals"]["flops_dense"] == before["totals"]["flops_dense"]
    )
    assert untouched["totals"]["latency_ms"] > 0 and untouched["totals"]["latency_dense_ms"] is None
    assert untouched["fidelity"]["baseline"] is None and 0 <= untouched["fidelity"]["optimized"] <= 1


def test_output_is_a_valid_model_with_the_same_results(run: Run, folder: Path) -> None:
    assert run("optimize", "cnn.onnx", "o.onnx", "--objective", "flops").code == 0
    onnx.checker.check_model("o.onnx", full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    import onnxruntime

    results = [
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("cnn.onnx", "o.onnx")
    ]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


def test_same_bytes_for_same_inputs(folder: Path) -> None:
    for name in ("one", "two"):
        options = ("--data", "data", "--max-samples", "5", "--seed", "3", "-o", f"{name}.calib")
        assert (
            shell("calibrate", "mlp.onnx", *options, PYTHONHASHSEED=str(len(name) + ord(name[0]))).code == 0
        )
        options = ("--calibration", f"{name}.calib", "--objective", "flops", "--no-measure")
        assert shell("optimize", "mlp.onnx", f"{name}.onnx", *options, PYTHONHASHSEED="7").code == 0
    assert Path("one.calib").read_bytes() == Path("two.calib").read_bytes()
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_gate_that_cannot_be_met(run: Run, folder: Path) -> None:
    before = content(folder)
    options = ("--data", "data", "--objective", "flops", "--max-drop", "0")
    outcome = run("optimize", "mlp.onnx", "o.onnx", *options)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("exprune: error: no staging keeps the drop within 0")
    assert content(folder) == before


def test_too_few_samples_are_refused_before_anything_is_computed(run: Run, folder: Path) -> None:
    before = content(folder)
    words = ("optimize", "mlp.onnx", "o.onnx", "--data", "data", "--objective", "flops", "-v", "--max-drop")
    outcome = run(*words, "0.01", "--confidence", "0.95")
    assert (outcome.code, outcome.out) == (1, "")
    assert re.search(
        r"cannot be certified at 0\.95 from \d+ held-out samples, at least \d+ are needed", outcome.err
    )
    assert "observing" not in outcome.err and "planning" not in outcome.err
    assert content(folder) == before
    assert all(stage in run(*words, "0.9").err for stage in ("observing", "planning"))


def test_a_failed_gate_ends_with_a_command_that_passes(run: Run, folder: Path) -> None:
    words = ("optimize", "mlp.onnx", "o.onnx", "--data", "data", "--objective", "flops", "--exclude", "a*")
    outcome = run(*words, "--max-drop", "0.01", "--confidence", "0.95", "-v")
    error, proposed = outcome.err.splitlines()[-2:]
    assert outcome.code == 1 and outcome.out == "" and error.startswith("exprune: error: ")
    # Six samples certify nothing: what is left is what needs no certificate.
    assert proposed == (
        "next: exprune optimize mlp.onnx o.onnx --data data --test bound --objective flops --exclude 'a*'"
    )
    assert run(*shlex.split(proposed)[2:]).code == 0
    assert "next: " not in run(*words, "--max-drop", "0.01", "--confidence", "0.95", "-q").err
    outcome = run(*words, "--max-drop", "0")
    error, proposed = outcome.err.splitlines()
    drop = re.search(r"try --max-drop (\S+) or", error)
    assert drop and f"--max-drop {drop[1]} " in f"{proposed} "
    again = run(*shlex.split(proposed)[2:])
    assert again.code == 0 and "next: exprune report o.onnx" in again.out


def test_a_gate_of_report_ends_with_a_command(run: Run, folder: Path) -> None:
    assert run("optimize", "mlp.onnx", "o.onnx", "--objective", "flops", "--no-measure").code == 0
    for form in ("table", "json", "html"):
        failed = run("report", "o.onnx", "--min-staged", "9", "--format", form)
        error, proposed = failed.err.splitlines()
        assert failed.code == 1 and "--min-staged 9" in error and proposed == "next: exprune report o.onnx"
        assert "next: " not in failed.out and failed.out
        assert form != "json" or json.loads(failed.out)["model"] == "o.onnx"
    assert "next: " not in run("report", "o.onnx", "--min-staged", "9", "-q").err


def test_a_gate_of_a_measured_report_ends_with_how_to_make_the_model_again(run: Run, folder: Path) -> None:
    assert run("optimize", "mlp.onnx", "o.onnx", "--objective", "flops", "--no-measure").code == 0
    words = [
        "report",
        "o.onnx",
        "--baseline",
        "mlp.onnx",
        "--data",
        "data",
        "--format",
        "html",
        "--min-saving",
        "0.99",
    ]
    failed = run(*words)
    proposed = failed.err.splitlines()[-1]
    assert failed.code == 1
    assert proposed == "next: exprune optimize mlp.onnx o.onnx --data data --max-drop 0.01"
    held = run(*words, "--max-drop", "0.03").err.splitlines()[-1]
    assert held == "next: exprune optimize mlp.onnx o.onnx --data data --max-drop 0.03"


def test_a_metric_of_the_users_own(run: Run, folder: Path) -> None:
    """Report measures such a file too, but never runs code that the file names."""
    Path("mine.py").write_text("def score(outputs, label, baseline):\n    return 1.0\n")
    made = run(
        *("optimize", "mlp.onnx", "o.onnx", "--data", "data", "--objective", "flops"),
        *("--metric", "mine.py:score", "--max-drop", "0.9"),
    )
    assert made.code == 0 and "mine.py:score: 1 dense, 1 now" in made.out
    Path("mine.py").write_text("raise SystemExit('was run')\n")
    assert parse(run("report", "o.onnx", "--format", "json"))["fidelity"]["metric"] == "mine.py:score"
    outcome = run("report", "o.onnx", "--data", "data", "--baseline", "mlp.onnx", "--format", "json")
    assert parse(outcome)["fidelity"]["metric"] == "accuracy"


def test_warnings_have_the_form_of_messages(run: Run, folder: Path) -> None:
    np.savez("data/s9.npz", x=np.full((1, 64), np.nan, np.float32), label=np.array([0]))
    outcome = run("calibrate", "mlp.onnx", "--data", "data")
    assert outcome.code == 0
    assert outcome.err.startswith("exprune: warning: ") and outcome.out.startswith("mlp.calib: ")


def test_nothing_to_stage(run: Run, folder: Path) -> None:
    outcome = run("optimize", "plain.onnx", "same.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    assert Path("same.onnx").read_bytes() == Path("plain.onnx").read_bytes()
    assert "nothing was staged: same.onnx is the same as plain.onnx" in outcome.out
    assert "1 x its result 'y' is an output of the model" in outcome.out
    plain = parse(run("optimize", "plain.onnx", "same.onnx", "--format", "json"))
    assert plain["output"] == "same.onnx" and not plain["optimized"]


def test_everything_excluded(run: Run, folder: Path) -> None:
    outcome = run("optimize", "mlp.onnx", "same.onnx", "--exclude", "[am]", "--exclude", "f")
    assert outcome.code == 0 and "3 x excluded by --exclude" in outcome.out
    assert Path("same.onnx").read_bytes() == Path("mlp.onnx").read_bytes()


@pytest.mark.parametrize("name", ["mlp.onnx", "plain.onnx"])
def test_dry_run_writes_nothing(run: Run, folder: Path, name: str) -> None:
    before = content(folder)
    options = ("--objective", "flops", "--dry-run")
    outcome = run("optimize", name, "o.onnx", *options)
    assert outcome.code == 0 and "dry run: nothing was written" in outcome.out
    assert parse(run("optimize", name, "o.onnx", *options, "--format", "json"))["output"] is None
    assert content(folder) == before


def test_existing_output_is_replaced(run: Run, folder: Path) -> None:
    Path("o.onnx").write_text("old")
    assert run("optimize", "mlp.onnx", "o.onnx").code == 0
    onnx.load("o.onnx")


def test_no_stray_files(run: Run, folder: Path) -> None:
    before = set(content(folder))
    assert run("optimize", "mlp.onnx", "o.onnx").code == 0
    assert run("calibrate", "mlp.onnx", "--data", "data").code == 0
    assert run("report", "mlp.onnx", "-o", "report.txt").code == 0
    assert set(content(folder)) == before | {"o.onnx", "mlp.calib", "report.txt"}


@pytest.mark.parametrize("form", ["table", "json", "html"])
def test_report_to_a_file(run: Run, folder: Path, form: str) -> None:
    printed = run("report", "mlp.onnx", "--format", form)
    assert (printed.code, printed.err) == (0, "")
    assert run("report", "mlp.onnx", "--format", form, "-o", "file") == Outcome(0, "", "")
    assert Path("file").read_text() == printed.out


def test_models_with_weights_in_other_files(run: Run, folder: Path) -> None:
    onnx.save(
        onnx.load("mlp.onnx"), "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0
    )
    Path("there").mkdir()
    assert run("optimize", "big.onnx", "there/o.onnx", "--objective", "flops").code == 0
    onnx.checker.check_model("there/o.onnx", full_check=True)
    weights = Path("big.data").read_bytes()
    outcome = run("optimize", "big.onnx", "big.data")
    assert outcome.code == 2 and "is the input's external data" in outcome.err
    assert Path("big.data").read_bytes() == weights
    # Its copy elsewhere has to stand on its own.
    assert run("optimize", "big.onnx", "there/same.onnx", "--exclude", "*").code == 0
    assert onnx.load("there/same.onnx").graph.initializer[0].data_location == onnx.TensorProto.DEFAULT


def test_a_baseline_that_is_not_the_original_is_noted(run: Run, folder: Path) -> None:
    assert run("optimize", "mlp.onnx", "o.onnx", "--objective", "flops").code == 0
    other = onnx.load("mlp.onnx")
    other.doc_string = "another"
    onnx.save(other, "other.onnx")
    outcome = run("report", "o.onnx", "--baseline", "other.onnx", "--data", "data")
    assert outcome.code == 0 and "note: other.onnx is not the file that o.onnx was made from" in outcome.out


def test_names_with_spaces_are_quoted(run: Run, folder: Path) -> None:
    Path("mlp.onnx").rename("my model.onnx")
    outcome = run("optimize", "my model.onnx", "a b.onnx", "--objective", "flops")
    assert outcome.out.splitlines()[-1] == "next: exprune report 'a b.onnx' --baseline 'my model.onnx'"


def test_subprocess_and_encoding(folder: Path) -> None:
    outcome = shell("report", "mlp.onnx", PYTHONIOENCODING="ascii")
    assert (outcome.code, outcome.err) == (0, "")
    assert "mlp.onnx: not optimised, 3 of 3" in outcome.out
    assert outcome.out.isascii() and "?" not in outcome.out
    assert shell("report", "missing.onnx").code == 3


def test_python_interface_mirrors_the_commands(folder: Path) -> None:
    for name, other in (
        ("calibrate", {"progress"}),
        ("optimize", {"progress", "seed"}),
        ("report", {"progress"}),
    ):
        options = {parameter.name for parameter in exprune.commands[name].params}
        arguments = set(inspect.signature(getattr(api, name)).parameters)
        options -= {"quiet", "verbose"}
        options = {option.removeprefix("no_") for option in options} - {"format"}
        # A report is returned, not written; merging is a function of its own.
        options -= {"report": {"output", "schema"}, "calibrate": {"merge"}}.get(name, set())
        if name == "report":  # bounds are demanded of the report that is returned
            bounds = set(inspect.signature(exprune_cli.Report.check).parameters) - {"self"}
            assert bounds < options
            options -= bounds
        assert arguments - other == options
    statistics = api.calibrate("mlp.onnx", "data", "c")
    assert statistics.samples == 8 and Path("c").exists()
    done = api.optimize("mlp.onnx", "o.onnx", objective="flops")
    assert done.staged == len(done.report.staged) > 0 and done.output == Path("o.onnx")
    assert api.optimize("mlp.onnx", objective="flops").model == done.model
    assert api.report("o.onnx").optimized
    with pytest.raises(UsageError):
        api.report("o.onnx", threads=0)


def test_merging_gives_what_one_pass_gives(folder: Path, run: Run) -> None:
    for part, start in (("a", 0), ("b", 5)):
        (folder / part).mkdir()
        for index in range(start, min(start + 5, 8)):
            (folder / "data" / f"s{index}.npz").rename(folder / part / f"s{index}.npz")
        assert run("calibrate", "mlp.onnx", "--data", part, "-o", f"{part}.calib").code == 0
        for file in (folder / part).iterdir():
            (folder / "data" / file.name).write_bytes(file.read_bytes())
    outcome = run("calibrate", "--merge", "a.calib", "b.calib", "-o", "both.calib")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "both.calib: statistics of 3 sites from 8 samples\n"
    assert run("calibrate", "mlp.onnx", "--data", "data", "-o", "once.calib").code == 0
    both, once = load_calibration("both.calib"), load_calibration("once.calib")
    assert (both.data_digest, both.samples, both.seed) == (once.data_digest, once.samples, once.seed)
    for name, site in once.sites.items():
        other = both.sites[name]
        np.testing.assert_array_equal(other.rows, site.rows)
        np.testing.assert_array_equal(other.keys, site.keys)
        np.testing.assert_array_equal(other.input_zeros, site.input_zeros)
        np.testing.assert_allclose(other.energy, site.energy, rtol=1e-14)
        assert (other.elements, other.count) == (site.elements, site.count)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--merge", "a.calib", "-o", "c"], 2, "two or more"),
        (["--merge", "a.calib", "a.calib"], 2, "-o FILE"),
        (["--merge", "a.calib", "a.calib", "-o", "a.calib"], 2, "is calibration file 1"),
        (["--merge", "a.calib", "a.calib", "-o", "c", "--data", "data"], 2, "runs no model"),
        (["--merge", "a.calib", "a.calib", "-o", "c"], 3, "8 samples in common"),
        (["--merge", "a.calib", "none", "-o", "c"], 3, "none: no such file"),
        (["mlp.onnx", "cnn.onnx", "--data", "data"], 2, "give one MODEL"),
    ],
)
def test_merging_what_cannot_be_merged(
    folder: Path, run: Run, words: list[str], code: int, text: str
) -> None:
    assert run("calibrate", "mlp.onnx", "--data", "data", "-o", "a.calib").code == 0
    before = content(folder)
    outcome = run("calibrate", *words)
    assert outcome.code == code and text in outcome.err and outcome.err.count("\n") == 1
    assert content(folder) == before


def test_package_names_stay_functions(folder: Path) -> None:
    for _ in range(2):
        assert all(callable(getattr(exprune_cli, name)) for name in ("calibrate", "optimize", "report"))
        api.optimize("plain.onnx")
        api.report("plain.onnx")
