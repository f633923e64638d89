"""The library as a file: what it depends on, what else it compiles for, and with sanitizers."""

from __future__ import annotations

import importlib.util
import os
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


DRIVER = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from tests.runtime.cases import KINDS, run
from tests.runtime.test_sessions import case
from tests.runtime.quantized import BAD, good, run_quantized
from tests.runtime.test_low_rank import case as low_rank_case, run as run_low_rank
from tests.runtime.test_block_conv import BAD_BLOCKS, CASES, block_inputs, exact_inputs
from tests.runtime.test_door import BAD_CONV, BAD_GEMM, CONV, conv_inputs, gemm_inputs
from tests.runtime.test_panel_conv import BAD as BAD_PANELS, CASES as PANELS, panel_inputs

library = sys.argv[1]
for family in ("Gemm", "Conv", "ArgMax"):
    for kind in KINDS:
        op, inputs, attributes = case(family, kind)
        x = inputs["X"]
        views = [x[:1, :, :5, :4], x[:0]] if family == "Conv" else [x[:1], x[:5], x[:19], x[:0]]
        for view in views:
            run(library, op, {**inputs, "X": np.ascontiguousarray(view)}, threads=2, **attributes)
for columns in (1, 37):
    w, bias = np.ones((50, columns), np.float32), np.ones(columns, np.float32)
    run(library, "SparseGemm", {"X": np.ones((3, 50), np.float32), "W": w, "bias": bias})
for kind in ("Gemm", "ArgMax", "TopK"):
    for bits in (6, 8):
        for rows in (1, 5, 19, 0):
            run_quantized(library, kind, good(kind, rows=rows, outputs=70, groups=300, bits=bits), threads=2)
    for name, (where, value) in BAD.items():
        if kind == "TopK" or where != "k":
            try:
                run_quantized(library, kind, {**good(kind), where: value})
            except Exception as error:
                assert f"Quantized{kind}Bound: {where}" in str(error), error
            else:
                raise SystemExit(f"Quantized{kind}Bound took {name}")
for kind in ("Gemm", "ArgMax"):
    for rows in (1, 5, 19, 0):
        run_low_rank(library, kind, low_rank_case(kind, 0, (rows,), outputs=70, full=True), threads=2)
for case in CASES:
    for batch in (1, 5):
        inputs, attributes = block_inputs(**case, batch=batch)
        run(library, "PrefixConvBlock", inputs, threads=2, **attributes)
        run(library, "ConvRelu", exact_inputs(inputs), threads=2, **attributes)
for case in PANELS:
    for batch in (1, 3):
        inputs, attributes = panel_inputs(**case, batch=batch)
        run(library, "PrefixConvPanel", inputs, threads=2, **attributes)
        run(library, "ConvReluPanel", exact_inputs(inputs), threads=2, **attributes)
for op, bad, inputs, attributes in (
    ("PrefixConvBlock", BAD_BLOCKS, *block_inputs()),
    ("PrefixConvPanel", BAD_PANELS, *panel_inputs()),
    ("PrefixGemmThreshold", BAD_GEMM, gemm_inputs(), {}),
    ("PrefixConvThreshold", BAD_CONV, conv_inputs(), CONV),
):
    for where, value in bad.values():
        try:
            run(library, op, {**inputs, where: value}, **attributes)
        except Exception as error:
            assert op in str(error), error
        else:
            raise SystemExit(f"{op} took a bad {where}")
print("clean")
"""


@pytest.mark.parametrize("isa", ["avx512vnni", "avx512", "portable", "scalar"])
def test_sanitizers(build, sanitized, tmp_path, isa):
    """Addresses and undefined behaviour, on good and bad input."""
    library, runtime = sanitized
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, str(driver), str(library), str(ROOT)],
        check=False,
        env={
            **os.environ,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "EXPRUNE_ISA": isa,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-3000:]


@pytest.fixture(scope="module")
def sanitized(build, tmp_path_factory):
    """The library with sanitizers, and the sanitizers' own library."""
    compiler = build.find_compiler()
    if not compiler or build.is_zig(compiler) or sys.platform != "linux":
        pytest.skip("needs a native Linux compiler")
    runtime = []
    # libstdc++ too, so that the sanitizer finds the __cxa_throw that ONNX Runtime uses.
    for name in ("libasan.so", "libstdc++.so.6"):
        path = subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not os.path.isabs(path):
            pytest.skip("the compiler has no address sanitizer")
        runtime.append(path)
    out = tmp_path_factory.mktemp("sanitized") / "exprune.so"
    flags = [
        "-O1",
        "-g1",
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,alignment,object-size",  # the address sanitizer sees these, and they cost most
        "-fno-sanitize-recover=all",
    ]
    return build.build(out, version="sanitized", compiler=compiler, extra=flags), " ".join(runtime)
