"""Every command and code block of README and docs does what the page says."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exprune_cli.cli import main
from exprune_cli.runtime import runtime_available
from tests.docs.blocks import PAGES, ROOT, Block, blocks, commands, fill_sandbox, problem

LANGUAGES = ("bash", "python")
_SHELL = re.compile(r"[|&;<>$`*?~(){}=]|^\w+=")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_exist(page: Path) -> None:
    for line, words in _all_commands(page):
        assert problem(words) is None, f"{line}: {problem(words)}"


def _all_commands(page: Path) -> list[tuple[str, list[str]]]:
    fenced = [(block.where, words) for block in blocks(page) for words in commands(block.text)]
    prose = re.findall(r"`(exprune [a-z]+ [^`]*)`", page.read_text(encoding="utf-8"))
    # In prose a command may stand without its files.
    names = [
        (page.name, [*words, "IN", "OUT"]) for text in prose for words in commands(" ".join(text.split()))
    ]
    return fenced + names


def test_a_wrong_option_is_noticed() -> None:
    assert problem(["exprune", "report", "m.onnx", "--nonsense"]) == "exprune report has no option --nonsense"
    assert problem(["exprune", "repot", "m.onnx"]) == "there is no command repot"
    assert problem(["exprune", "optimize", "m.onnx"]) == "exprune optimize lacks an argument"
    assert next(commands("x && .venv/bin/exprune report \\\n a.onnx | cat")) == [
        "exprune",
        "report",
        "a.onnx",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, tmp_path, monkeypatch, long=False)


@pytest.mark.docs_full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_long_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(block.long and not block.never for block in blocks(page)):
        pytest.skip("all blocks of this page are short")
    _run_page(page, tmp_path, monkeypatch, long=True)


def _run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, long: bool) -> None:
    to_run = [b for b in blocks(page) if b.language in LANGUAGES and not b.never and (long or not b.long)]
    to_run = [b for b in to_run if b.needs is None or importlib.util.find_spec(b.needs) is not None]
    if not to_run:
        pytest.skip("no block to run")
    if not runtime_available():
        pytest.skip("the native runtime is not built here")
    if long:
        shutil.copytree(ROOT, folder, ignore=_not_sources, dirs_exist_ok=True, symlinks=True)
    fill_sandbox(folder)
    monkeypatch.chdir(folder)
    if long:  # the pages install the package themselves
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    own = folder / ".venv" / "bin"  # of pages that make an environment
    monkeypatch.setenv("PATH", os.pathsep.join([str(own), str(_commands(folder)), os.environ["PATH"]]))
    assert main(["optimize", "model.onnx", "staged.onnx", "--no-measure", "-q"]) == 0
    for block in to_run:
        code, output = _run(block, alone=long)
        assert code == block.code, f"{block.where} ended with {code}:\n{block.text}\n{output}"


def _not_sources(folder: str, names: list[str]) -> set[str]:
    """What a fresh clone has not."""
    ignored = {".git", ".venv", "build", "node_modules"} if folder == str(ROOT) else {"node_modules"}
    return {name for name in names if name in ignored or name.endswith((".egg-info", "_cache", ".so"))}


def _commands(folder: Path) -> Path:
    """A folder with the ``python`` and ``exprune`` that the tests run with."""
    target = folder / ".commands"
    target.mkdir()
    for name, module in (("python", ""), ("exprune", " -m exprune_cli")):
        script = target / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{module} "$@"\n')
        script.chmod(0o755)
    return target


def _run(block: Block, *, alone: bool) -> tuple[int, str]:
    """Runs a block; if not ``alone``, plain calls of ``exprune`` in this process, which saves starting one for each."""
    if block.language == "python":
        return _process(["python", "-c", block.text])
    lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
    plain = [shlex.split(line, comments=True) for line in lines]
    if not alone and all(
        words and words[0] == "exprune" and not _SHELL.search(_bare(line))
        for words, line in zip(plain, lines, strict=True)
    ):
        for words in plain:
            code = main(words[1:])
            if code:
                return code, f"{shlex.join(words)} failed"
        return 0, ""
    return _process(["bash", "-euo", "pipefail", "-c", block.text])


def _bare(line: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|#.*|(?<=\w)=(?=\w)", "", line)


def _process(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_links_to_files_lead_somewhere() -> None:
    for page in PAGES[:2]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_both_pages_show_the_same_result_of_the_demo() -> None:
    texts = {page.name: [b.text for b in blocks(page) if b.language == "text"] for page in PAGES}
    (short,) = texts["start.md"]
    assert any(short in text for text in texts["README.md"])
