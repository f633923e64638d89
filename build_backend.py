"""The PEP 517 backend: setuptools, plus a C++ compiler from PyPI where the machine has none.

Without a compiler the build asks for ``ziglang``, a compiler packed as a wheel. A build requirement that
cannot be downloaded would make the whole installation fail, though exprune works without its native library;
so it is only asked for when pip, run with the user's own settings, says that it can be had.
``EXPRUNE_BUILD_RUNTIME=0`` leaves the library out and asks for nothing.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *


def _runtime_build() -> ModuleType:
    """``runtime/build.py``.

    Not by its name: front ends look for every module in the backend's folder first, and a folder ``build``
    is there after the first build.
    """
    path = Path(__file__).resolve().parent / "runtime" / "build.py"
    spec = importlib.util.spec_from_file_location("exprune_runtime_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runtime_build = _runtime_build()


def _ziglang_can_be_had() -> bool:
    """Whether pip finds ``ziglang`` for this machine; True where pip cannot be asked."""
    # Without PYTHONPATH, Python leaves the isolated build environment, in which there is no pip.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip"]
    try:
        if subprocess.run(
            [*pip, "--version"], check=False, env=environment, capture_output=True, timeout=60
        ).returncode:
            return True
        options = ["--retries", "0", "--timeout", "10", "--disable-pip-version-check"]
        found = subprocess.run(
            [*pip, "index", "versions", "ziglang", *options],
            check=False,
            env=environment,
            capture_output=True,
            timeout=60,
        )
        return found.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _compiler_requirements() -> list[str]:
    if os.environ.get("EXPRUNE_BUILD_RUNTIME") == "0" or runtime_build.find_compiler():
        return []
    return ["ziglang"] if _ziglang_can_be_had() else []


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """setuptools' requirements and maybe a compiler."""
    return _setuptools.get_requires_for_build_wheel(config_settings) + _compiler_requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """setuptools' requirements and maybe a compiler."""
    return _setuptools.get_requires_for_build_editable(config_settings) + _compiler_requirements()
