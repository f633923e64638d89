"""The library as a file: what it depends on, what else it compiles for, and with sanitizers."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exprune_cli.runtime import runtime_available, runtime_library

ROOT = Path(__file__).resolve().parents[2]
ISA_SOURCES = ("kernels/isa_avx2.cpp", "kernels/isa_avx512.cpp", "kernels/isa_portable.cpp")


@pytest.fixture(scope="module")
def build():
    """The module runtime/build.py."""
    spec = importlib.util.spec_from_file_location("exprune_runtime_build", ROOT / "runtime" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def symbols(path, *options):
    """``nm`` as (kind, name) pairs."""
    if not shutil.which("nm"):
        pytest.skip("no nm")
    text = subprocess.run(
        ["nm", "-C", *options, str(path)], capture_output=True, text=True, check=True
    ).stdout
    return [m.groups() for m in re.finditer(r"^[0-9a-f ]{16,18} ([A-Za-z]) (.+)$", text, re.MULTILINE)]


def test_it_needs_libc_and_libm_only():
    if not runtime_available():
        pytest.skip("the native runtime is not built")
    names = {n for kind, n in symbols(runtime_library(), "-D") if kind in "Uw"}
    strange = {n for n in names if not re.search(r"@+GLIBC_|^_ITM_|^__gmon_start__$|^__cxa_finalize", n)}
    assert not strange
    exported = {n for kind, n in symbols(runtime_library(), "-D") if kind in "TDBVW"}
    assert exported == {"RegisterCustomOps", "exprune_runtime_info"}
    if shutil.which("readelf"):
        dynamic = subprocess.run(
            ["readelf", "-d", str(runtime_library())], capture_output=True, text=True, check=True
        ).stdout
        needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))
        assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1"}


def test_kernels_share_no_functions(build, tmp_path):
    """An inline function in two kernels' objects could be linked from the one that this processor lacks."""
    compiler = build.find_compiler()
    if not compiler:
        pytest.skip("no compiler")
    for path in build.compile_sources(compiler, tmp_path, version="test", sources=ISA_SOURCES, extra=["-O1"]):
        isa = re.search("avx512vnni|avx512|avx2|portable", path.name).group()
        shared = [n for kind, n in symbols(path) if kind in "WVu" and f"exprune::{isa}::" not in n]
        assert not shared


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs ziglang")
def test_it_compiles_for_aarch64(build, tmp_path):
    zig = [sys.executable, "-m", "ziglang", "c++"]
    out = tmp_path / "arm.so"
    build.build(out, version="test", compiler=zig, target="aarch64-linux-gnu")
    assert out.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
