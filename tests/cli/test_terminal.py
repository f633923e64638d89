"""What people see: tables of 80 columns, colour and progress on a terminal only, how much is said, what comes next."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from exprune_cli import api
from exprune_cli.next_step import after_calibrate, after_optimize, after_report
from exprune_cli.report_data import Outlook, Report, SiteReport, Totals
from tests.cli.conftest import Run, write_samples
from tests.cli.test_commands import GOLDEN, ROOT, SCHEMA
from tests.models import build, mlp
from tests.models import run as run_model

pty = pytest.importorskip("pty")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def same_as_golden(name: str, text: str) -> None:
    """Compares with ``golden/<name>``. To renew a file: delete it and run the tests once."""
    text = re.sub(r"^(runtime +).*", r"\1RUNTIME", text, flags=re.MULTILINE)  # this machine's
    path = GOLDEN / name
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was missing and is written now: read it, then run again")
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("report", ["report", "mlp.onnx"]),
        ("report-nothing", ["report", "plain.onnx"]),
        ("report-quiet", ["report", "-q", "mlp.onnx"]),
        ("optimize", ["optimize", "mlp.onnx", "out.onnx", "--objective", "flops", "--no-measure"]),
        ("optimize-nothing", ["optimize", "plain.onnx", "out.onnx"]),
        (
            "optimize-dry-run",
            ["optimize", "cnn.onnx", "o.onnx", "--objective", "flops", "--no-measure", "--dry-run"],
        ),
        ("optimize-quiet", ["-q", "optimize", "plain.onnx", "out.onnx"]),
        ("calibrate", ["calibrate", "mlp.onnx", "--data", "data"]),
    ],
)
def test_what_commands_print(run: Run, folder: Path, name: str, words: list[str]) -> None:
    outcome = run(*words)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith(("next: ", "nothing was staged: ")))
    assert "\x1b" not in outcome.out
    same_as_golden(f"{name}.txt", outcome.out)


def test_quiet_says_the_result_and_errors_only(run: Run, folder: Path) -> None:
    np.savez("data/s9.npz", x=np.full((1, 64), np.nan, np.float32), label=np.array([0]))
    words = ("calibrate", "mlp.onnx", "--data", "data")
    loud, quiet = run(*words), run(*words, "-q")
    assert "warning" in loud.err and "next: " in loud.out
    assert quiet.err == "" and quiet.out == loud.out.splitlines()[0] + "\n"
    assert run("--quiet", *words) == quiet
    assert run(*words) == loud  # nothing is left of it
    wrong = run("report", "-q", "none.onnx")
    assert wrong.code == 3 and wrong.err.startswith("exprune: error: none.onnx: no such file")


def test_verbose_explains_sites_and_steps(run: Run, folder: Path) -> None:
    words = ("optimize", "mlp.onnx", "o.onnx", "--objective", "flops", "--no-measure")
    plain, verbose = run(*words), run(*words, "-v")
    assert verbose.out == plain.out and plain.err == ""
    lines = verbose.err.splitlines()
    assert all(line.startswith("exprune: ") for line in lines)
    report = json.loads(run(*words, "--format", "json").out)
    for site in report["sites"]:
        assert any(f"'{site['name']}' ({site['op']}" in line and site["reason"] in line for line in lines)
    took = [re.fullmatch(r"exprune: (.*) took \d+\.\d\d s", line) for line in lines]
    steps = [found[1] for found in took if found]
    assert steps == ["loading", "looking for sites", "planning", "rewriting", "verifying", "saving"]
    as_json = run("-v", *words, "--format", "json")
    assert json.loads(as_json.out) == report and as_json.err.count(" took ") == len(steps)


def test_quiet_and_verbose_exclude_each_other(run: Run, folder: Path) -> None:
    for words in (["-q", "report", "-v", "mlp.onnx"], ["report", "-q", "-v", "mlp.onnx"]):
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert "--quiet and --verbose exclude each other" in outcome.err


def test_the_schema_is_printed_and_is_the_published_one(run: Run, folder: Path) -> None:
    outcome = run("report", "--schema")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == SCHEMA
    jsonschema.Draft202012Validator(json.loads(outcome.out)).validate(
        json.loads(run("report", "mlp.onnx", "--format", "json").out)
    )


def on_a_terminal(script: str, **environment: str) -> str:
    """What a shell script shows on a terminal of 80 columns."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    child, terminal = pty.fork()
    if not child:
        os.execvpe("sh", ["sh", "-c", script], whole)
    shown = b""
    try:
        while select.select([terminal], [], [], 60)[0]:
            chunk = os.read(terminal, 65536)
            if not chunk:
                break
            shown += chunk
    except OSError:  # how Linux reports that the other side has gone
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    os.close(terminal)
    return shown.decode()


EXPRUNE = f"{shlex.quote(sys.executable)} -m exprune_cli"


def test_colour_is_for_terminals_without_no_color(folder: Path) -> None:
    command = f"{EXPRUNE} report mlp.onnx"
    coloured = on_a_terminal(f"{command} 2> errors", NO_COLOR="")
    plain = on_a_terminal(f"{command} 2> errors", NO_COLOR="1")
    assert "\x1b[" in coloured and "\x1b" not in plain
    assert ESCAPE.sub("", coloured).split() == plain.split()
    assert max(len(line) for line in plain.splitlines() if not line.startswith("next: ")) <= 80


def test_every_step_shows_progress_and_time_left(folder: Path) -> None:
    shutil.rmtree("data")
    write_samples(Path("data"), 200)
    command = f"{EXPRUNE} optimize mlp.onnx o.onnx --data data --objective flops --max-drop 0.9 > out"
    shown = ESCAPE.sub("", on_a_terminal(command))
    for stage in (
        "loading",
        "looking for sites",
        "observing",
        "planning",
        "trying plans, round 1",
        "rewriting",
        "verifying",
        "saving",
    ):
        assert stage in shown
    assert re.search(r"\d+/\d+, \d+ s left", shown)
    assert "o.onnx: " in Path("out").read_text() and "\x1b" not in Path("out").read_text()
    assert ESCAPE.sub("", on_a_terminal(f"{EXPRUNE} -q report mlp.onnx --data data > out")) == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_complete(folder: Path, shell: str) -> None:
    program = Path("bin/exprune")
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {EXPRUNE} "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{program.parent.resolve()}:{os.environ['PATH']}",
    }

    def shell_out(*words: str, **more: str) -> str:
        done = subprocess.run(words, env=environment | more, capture_output=True, text=True, check=True)
        return done.stdout

    script = shell_out("exprune", "completion", shell)
    assert "_EXPRUNE_COMPLETE" in script
    kinds = {"bash": "exprune opt", "zsh": "exprune opt", "fish": "exprune opt"}
    words = {"COMP_WORDS": kinds[shell], "COMP_CWORD": "opt" if shell == "fish" else "1"}
    assert "optimize" in shell_out("exprune", _EXPRUNE_COMPLETE=f"{shell}_complete", **words)
    if shell == "bash":
        use = (
            'eval "$(exprune completion bash)"; COMP_WORDS=(exprune optimize --te); COMP_CWORD=2; '
            '_exprune_completion exprune; echo "${COMPREPLY[@]}"'
        )
        assert shell_out("bash", "-c", use).split() == ["--test"]


def test_a_gate_that_fails_says_what_would_pass(run: Run, folder: Path) -> None:
    x = np.random.default_rng(4).standard_normal((300, 64)).astype(np.float32)
    (label,) = run_model(mlp(), x=x)
    Path("many").mkdir()
    np.savez("many/all.npz", x=x, label=label)
    words = ("optimize", "mlp.onnx", "o.onnx", "--data", "many", "--objective", "flops", "--max-drop")
    refused = run(*words, "0.0001")
    assert (refused.code, refused.out) == (1, "")
    error, proposed = refused.err.splitlines()
    found = re.search(r"try --max-drop ([\d.e-]+) or give more samples$", error)
    assert found is not None
    assert proposed.startswith("next: exprune ") and f" --max-drop {found[1]}" in proposed
    assert run(*shlex.split(proposed)[2:]).code == 0
    refused = run(*words, "0.001", "--confidence", "0.95")
    error, proposed = refused.err.splitlines()
    found = re.search(r"give about (\d+) in --data, a quarter of which calibrates$", error)
    assert refused.code == 1 and found is not None and int(found[1]) > 3000
    # So few samples can certify a larger drop.
    assert "--max-drop 0.02 --confidence 0.95" in proposed


def untouched(sites: int, expected: float | None = None, data: str | None = None, reason: str = "") -> Report:
    outlook = Outlook("weights", None, sites, 1.0, 1.0, expected, expected, [], [])
    site = SiteReport("f", "Gemm", None, False, reason, code="scores-returned" if reason else None)
    return Report("my model.onnx", [site], Totals(), outlook=outlook, data=data)


def staged(**fields: object) -> Report:
    return Report("o.onnx", [], Totals(), optimized=True, **fields)  # type: ignore[arg-type]


def test_the_next_step_fits_the_state() -> None:
    optimize = "exprune optimize 'my model.onnx' 'my model.exprune.onnx'"
    assert after_report(untouched(3)).command == optimize
    assert after_report(untouched(3, 0.3, "d")).command == f"{optimize} --data d --max-drop 0.01"
    assert after_report(untouched(3, 0.001, "d")).command == optimize
    assert after_report(untouched(0)).command is None and "quantising" in (
        after_report(untouched(0)).hint or ""
    )
    head = "all 50,000 scores 'logits' are returned: with --top-k logits=1 only the best one is"
    assert after_report(untouched(0, reason=head)).command == f"{optimize} --top-k logits=1"
    assert after_report(staged()).command == "exprune report o.onnx"
    assert "--baseline IN --data DIR" in (after_report(staged()).hint or "")
    assert after_report(staged(baseline="i")).command == "exprune report o.onnx --baseline i"
    measured = staged(samples=8, baseline="i", data="d")
    assert (
        after_report(measured).command
        == "exprune report o.onnx --baseline i --data d --format html -o o.html"
    )
    assert after_report(measured, page=True).lines() == []
    assert after_calibrate("i", "c").lines() == ["next: exprune optimize i i.exprune.onnx --calibration c"]
    done = after_optimize("i", "o", "d", staged=True, dry_run=False)
    assert done.command == "exprune report o --baseline i --data d"
    assert done.hint is not None and "samples that it was not made with" in done.hint
    assert len(after_optimize("i", "o", None, staged=True, dry_run=False).lines()) == 2
    assert after_optimize("i", "o", None, staged=True, dry_run=True).lines() == []
    assert after_optimize("i", "o", None, staged=False, dry_run=False).command == "exprune report i"


def test_each_next_command_runs(run: Run, folder: Path) -> None:
    """From the first report to the page, pasting what is printed and adding the data."""
    words = ["report", "mlp.onnx", "--data", "data"]
    seen = []
    for _ in range(3):
        outcome = run(*words)
        assert outcome.code == 0, outcome.err
        words = shlex.split(outcome.out.splitlines()[-1].removeprefix("next: exprune "))
        seen.append(words[0])
        if words[0] == "optimize":
            words += ["--objective", "flops"]
            words[words.index("--max-drop") + 1] = "0.9"
    assert seen == ["optimize", "report", "report"] and "html" in words
    outcome = run(*words)
    assert (outcome.code, outcome.out) == (0, "")
    assert Path(words[-1]).read_text().startswith("<!doctype html>")


def test_a_large_head_is_offered_its_best(run: Run, folder: Path) -> None:
    head = build("g (float[N, 64] x) => (float[N, 300] scores) { scores = MatMul (x, w) }", {"w": (64, 300)})
    onnx.save(head, "head.onnx")
    outcome = run("report", "head.onnx")
    command = shlex.split(outcome.out.splitlines()[-1].removeprefix("next: exprune "))
    assert command[-2:] == ["--top-k", "scores=1"]
    assert run(*command).code == 0
    assert api.report("head.exprune.onnx").model == "head.exprune.onnx"
