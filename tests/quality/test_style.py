"""The sources are formatted, lint-free and fully typed: what ruff and ``mypy --strict`` say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "exprune_cli"


def test_ruff_has_no_complaint() -> None:
    _need("ruff")
    for command in (["check"], ["format", "--check"]):
        assert _run(["ruff", *command, "."], ROOT) == ""


def test_mypy_strict_has_no_complaint(tmp_path: Path) -> None:
    _need("mypy")
    # mypy finds modules by their folders, so it gets the package as it is installed.
    package = tmp_path / PACKAGE
    package.mkdir()
    for entry in [*(ROOT / PACKAGE).iterdir(), ROOT / "rules"]:
        (package / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    options = ["--strict", "--config-file", str(ROOT / "pyproject.toml")]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    assert _run(["mypy", *options, *cache, "-p", PACKAGE], tmp_path) == ""


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (ROOT / PACKAGE / "py.typed").is_file()


def _need(tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install -e '.[test]'")


def _run(command: list[str], folder: Path) -> str:
    """What a tool has to complain of, without its summary."""
    quiet = {**os.environ, "RUFF_OUTPUT_FORMAT": "concise", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=quiet, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
