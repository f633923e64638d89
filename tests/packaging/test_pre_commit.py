"""The hook, run by pre-commit itself: ``pytest -m matrix``. It installs the package in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from exprune_cli import api
from tests.models import mlp

ROOT = Path(__file__).parents[2]
CONFIG = """repos:
- repo: {repo}
  rev: {rev}
  hooks:
    - id: exprune-report
      args: [models/staged.onnx, --min-staged, "{least}"]
"""


@pytest.mark.matrix
def test_the_hook_passes_and_fails_a_commit(tmp_path: Path) -> None:
    pytest.importorskip("pre_commit", reason="pre-commit is not installed: pip install pre-commit")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git, and a clone of the repository")
    user = {"NAME": "a", "EMAIL": "a@example.org"}
    environment = {
        **os.environ,
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in user.items()},
    }

    def caller(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        return lambda *words: subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    # What is not committed yet is tested as well.
    clone, repo = tmp_path / "clone", tmp_path / "repo"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("sample_models/"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    hooks, git = caller(clone), caller(repo)
    for command in ("init -q", "add -A", "commit -qm hooks"):
        assert hooks("git", *command.split()).returncode == 0
    (repo / "models").mkdir(parents=True)
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    api.optimize(tmp_path / "mlp.onnx", repo / "models" / "staged.onnx", objective="flops")
    assert git("git", "init", "-q").returncode == 0
    rev = hooks("git", "rev-parse", "HEAD").stdout.strip()
    pre_commit = (sys.executable, "-m", "pre_commit")
    for least, code in ((3, 0), (4, 1)):
        text = CONFIG.format(repo=clone, rev=rev, least=least)
        (repo / ".pre-commit-config.yaml").write_text(text)
        assert git("git", "add", "-A").returncode == 0
        done = git(*pre_commit, "run", "--verbose", "--color", "never")
        assert done.returncode == code, done.stdout + done.stderr
        assert "3 of 3 linear operators" in done.stdout
    assert "3 staged sites are fewer than --min-staged 4" in done.stdout
    # A commit without a model does not run it.
    (repo / "a.py").write_text("")
    assert git("git", "reset", "-q").returncode == 0 and git("git", "add", "a.py").returncode == 0
    assert "no files to check" in git(*pre_commit, "run", "--color", "never").stdout.lower()
