"""What is built for users: a source distribution, the wheel made from it, and that wheel installed alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from exprune_cli.runtime import LIBRARY
from tests.models import mlp

ROOT = Path(__file__).parents[2]


@dataclass
class Built:
    """The two distributions, and what the build printed."""

    sdist: Path
    wheel: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    # Not by importing it: setuptools leaves a folder of that name beside the sources.
    if not {"build", "setuptools"} <= {found.name for found in importlib.metadata.distributions()}:
        pytest.skip("build or setuptools is missing: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    # In another folder: 'build' would be the one that setuptools leaves behind.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel, done.stdout + done.stderr)


def test_the_build_does_not_complain(built: Built) -> None:
    assert "absent from" not in built.log
    assert "Deprecat" not in built.log


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    sources = {
        str(p.relative_to(ROOT)) for p in (ROOT / "exprune_cli").rglob("*.py") if "rules" not in p.parts
    }
    sources |= {f"exprune_cli/rules/{p.name}" for p in (ROOT / "rules").glob("*.py")}
    info = f"exprune-{importlib.metadata.version('exprune')}.dist-info"
    package = {name for name in names if not name.startswith(info)}
    assert {name for name in package if name.endswith(".py")} == sources
    data = {str(p.relative_to(ROOT)) for p in (ROOT / "exprune_cli" / "templates").iterdir()}
    data |= {"exprune_cli/report.schema.json", "exprune_cli/py.typed"}
    native = {f"exprune_cli/{LIBRARY}", "exprune_cli/_runtime_missing.txt"}
    assert len(package & native) == 1
    assert package - native - sources == data
    assert f"{info}/licenses/LICENSE" in names
    assert built.wheel.name.split("-")[2:4] == ["py3", "none"]


def test_the_source_distribution_holds_what_a_build_needs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = [*(ROOT / "runtime").rglob("*"), *(ROOT / "rules").glob("*.py")]
    needed = {str(p.relative_to(ROOT)) for p in tracked if p.suffix in (".py", ".cpp", ".h")}
    needed |= {"LICENSE", "CHANGELOG.md", "README.md", "setup.py", "build_backend.py", "pyproject.toml"}
    assert needed <= names
    assert not [name for name in names if name.endswith(".so")]


def test_the_wheel_works_alone(built: Built, tmp_path: Path) -> None:
    """In an environment of its own, in a folder without the sources; only the dependencies are borrowed."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(built.wheel)], check=True)
    # A line in a .pth file adds a folder, not what that folder's own .pth files add: no editable exprune.
    (borrower,) = (tmp_path / "env").rglob("site-packages")
    (borrower / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    onnx.save(mlp(), work / "m.onnx")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(
        python, "-c", "import exprune_cli, exprune_cli.rules as r; print(exprune_cli.__file__, r.__file__)"
    )
    assert all(Path(path).is_relative_to(tmp_path / "env") for path in where.split())
    exprune = scripts / "exprune"
    assert run(exprune, "--version") == f"exprune {importlib.metadata.version('exprune')}\n"
    run(exprune, "optimize", "m.onnx", "s.onnx", "--objective", "flops")
    page = run(exprune, "report", "s.onnx", "--format", "html")
    assert page.lower().startswith("<!doctype html>")
    report = json.loads(run(exprune, "report", "s.onnx", "--format", "json"))
    assert sum(site["staged"] for site in report["sites"]) == 3
    if (Path(where.split()[0]).parent / LIBRARY).exists():
        assert report["runtime"] == "native"


def test_metadata() -> None:
    found = importlib.metadata.metadata("exprune")
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.10"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert f"## [{found['Version']}]" in (ROOT / "CHANGELOG.md").read_text()
