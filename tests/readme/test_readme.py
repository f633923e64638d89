"""What the README shows works as shown."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exprune_cli.runtime import runtime_available

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def _block(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block marked {mark}"
    return found[1].replace("\\\n", " ")


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: f"{len(code)} characters")
def test_python(code: str, staged_files: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    if "runtime_library" in code and not runtime_available():
        pytest.skip("the native runtime is not built here")
    shutil.copy(staged_files["digits_resnet"][0], tmp_path / "staged.onnx")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"array\(\[\d\]", done.stdout)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_demo_names_files_and_options_that_exist() -> None:
    from exprune_cli.cli import exprune

    for part in _block("demo").split("&&"):
        words = shlex.split(part)
        if not words or not words[0].endswith("exprune"):
            continue
        command = exprune.commands[words[1]]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= known
        assert all((ROOT / word).exists() for word in words[2:] if word.startswith("sample_models/"))


def test_ci_runs_the_test_command() -> None:
    assert "pytest" in _block("tests")
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
