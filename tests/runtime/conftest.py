"""The library once per instruction set.

The kernels are chosen when a library is loaded; copies of the file are libraries of their own, so one process
can hold them all.
"""

from __future__ import annotations

import ctypes
import os
import shutil

import pytest

from exprune_cli.runtime import runtime_available, runtime_library

ISAS = ("avx512vnni", "avx512", "avx2", "portable", "scalar")


def load_copy(folder, isa: str) -> str:
    """Path of a loaded copy of the library that uses these kernels, or skips."""
    if not runtime_available():
        pytest.skip("the native runtime is not built")
    copy = folder / f"exprune_{isa}.so"
    if not copy.exists():
        shutil.copyfile(runtime_library(), copy)
    before = os.environ.get("EXPRUNE_ISA")
    os.environ["EXPRUNE_ISA"] = isa
    try:
        info = ctypes.CDLL(str(copy)).exprune_runtime_info
    finally:
        if before is None:
            del os.environ["EXPRUNE_ISA"]
        else:
            os.environ["EXPRUNE_ISA"] = before
    info.restype = ctypes.c_char_p
    if not info().decode().endswith(f"isa={isa}"):
        pytest.skip(f"this processor has no {isa}")
    return str(copy)


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    """Where the copies are."""
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="session", params=ISAS)
def library(request, library_folder) -> str:
    """The library with each set of kernels."""
    return load_copy(library_folder, request.param)


@pytest.fixture(scope="session")
def best_library(library_folder) -> str:
    """The library as it is loaded by default."""
    if not runtime_available():
        pytest.skip("the native runtime is not built")
    copy = library_folder / "exprune_default.so"
    shutil.copyfile(runtime_library(), copy)
    return str(copy)
