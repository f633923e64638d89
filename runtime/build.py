"""Compiles the custom-op library: the one place that knows its sources and flags.

Run as a script (``python runtime/build.py -o FILE``) or imported by ``setup.py`` and the tests. Needs
nothing but a C++17 compiler: ``$CXX``, ``c++``, ``g++`` or ``clang++``, or else the one in PyPI's
``ziglang``. The library depends on the C library and libm only.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: Every source file, relative to this folder.
SOURCES = (
    "register.cpp",
    "ort.cpp",
    "cpu.cpp",
    "scratch.cpp",
    "pages.cpp",
    "outputs.cpp",
    "staged.cpp",
    "prefix_gemm.cpp",
    "prefix_conv.cpp",
    "prefix_argmax.cpp",
    "sparse_gemm.cpp",
    "quantized.cpp",
    "quantized_gemm.cpp",
    "quantized_head.cpp",
    "low_rank.cpp",
    "block_conv.cpp",
    "sparse_conv.cpp",
    "panel_conv.cpp",
    "attention.cpp",
    "residual_norm.cpp",
    "token_embedding.cpp",
    "kernels/registry.cpp",
    "kernels/scalar.cpp",
    "kernels/scalar_attention.cpp",
    "kernels/scalar_block_conv.cpp",
    "kernels/scalar_low_rank.cpp",
    "kernels/scalar_panel_conv.cpp",
    "kernels/scalar_quantized.cpp",
    "kernels/scalar_residual_norm.cpp",
    "kernels/scalar_sparse_conv.cpp",
    "kernels/isa_portable.cpp",
    "kernels/isa_avx2.cpp",
    "kernels/isa_avx512.cpp",
    "kernels/isa_avx512vnni.cpp",
)

#: Flags for all files. No -ffast-math: tests rely on how NaN compares. Fused multiply-adds are welcome.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
)

#: Extra flags of the files that are compiled for one instruction set (x86-64 only).
_AVX2 = ("-mavx2", "-mfma", "-mpopcnt")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *_AVX2, "-mprefer-vector-width=512")
ISA_FLAGS = {
    "kernels/isa_avx2.cpp": _AVX2,
    "kernels/isa_avx512.cpp": _AVX512,
    "kernels/isa_avx512vnni.cpp": (*_AVX512, "-mavx512vnni"),
}


def find_compiler() -> list[str] | None:
    """The compiler's command, or None where there is none.

    A ``$CXX`` that is set is taken as it is, so that a wrong one fails instead of being ignored.
    """
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    return None


def is_zig(compiler: Sequence[str]) -> bool:
    """Whether the command is zig's C++ compiler."""
    return any("zig" in part for part in compiler)


def is_x86(target: str | None) -> bool:
    """Whether code is made for x86-64; ``target`` is a triple, or None for this machine."""
    machine = target.split("-")[0] if target else platform.machine()
    return machine.lower() in ("x86_64", "amd64")


def compile_sources(
    compiler: Sequence[str],
    folder: Path,
    *,
    version: str,
    sources: Sequence[str] = SOURCES,
    target: str | None = None,
    extra: Sequence[str] = (),
) -> list[Path]:
    """Compiles ``sources`` into objects in ``folder``.

    Raises:
        subprocess.CalledProcessError: The compiler failed; ``stderr`` has its messages.
    """

    def one(source: str) -> Path:
        out = folder / (source.replace("/", "_") + ".o")
        command = [*compiler, *FLAGS, f'-DEXPRUNE_VERSION="{version}"']
        if target:
            command += ["-target", target]
        if is_zig(compiler):
            command.append("-fno-sanitize=undefined")  # on by default in zig
        if is_x86(target):
            command += ISA_FLAGS.get(source, ())
        command += [*extra, "-c", str(HERE / source), "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return out

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, sources))


def build(
    out: Path,
    *,
    version: str,
    compiler: Sequence[str] | None = None,
    target: str | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """Builds the library at ``out``, whole or not at all, and returns its path.

    Args:
        out: The file to write; its folder must exist.
        version: Goes into ``exprune_runtime_info()``.
        compiler: The command; found when None.
        target: A target triple for a cross compiler (clang, zig).
        extra: More flags for compiling and linking, e.g. ``-fsanitize=address``.

    Raises:
        FileNotFoundError: No compiler.
        subprocess.CalledProcessError: The compiler failed; ``stderr`` has its messages.
    """
    compiler = list(compiler) if compiler else find_compiler()
    if not compiler:
        raise FileNotFoundError("no C++ compiler found ($CXX, c++, g++, clang++, or PyPI's ziglang)")
    if is_zig(compiler) and target is None and sys.platform == "linux":
        # The oldest C library that the wheels of ONNX Runtime ask for.
        target = f"{platform.machine()}-linux-gnu.2.17"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        objects = compile_sources(compiler, folder, version=version, target=target, extra=extra)
        library = folder / "library.so"
        command = [*compiler, "-shared", *extra, *map(str, objects), "-o", str(library)]
        if target:
            command += ["-target", target]
        if not any(flag.startswith("-fsanitize") for flag in extra):
            # Not the C++ library; sanitizers bring theirs and need it.
            command += ["-nostdlib++"] if _knows_nostdlibxx(compiler) else ["-nodefaultlibs", "-lc", "-lgcc"]
            command.append("-lm")
            if sys.platform != "darwin":
                command += ["-Wl,-z,defs", "-Wl,--as-needed", "-s"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial = out.with_name(out.name + ".partial")
        shutil.copyfile(library, partial)
        os.replace(partial, out)
    return out


def _knows_nostdlibxx(compiler: Sequence[str]) -> bool:
    """Whether the driver has ``-nostdlib++`` (clang, and g++ from 13 on)."""
    probe = subprocess.run(
        [*compiler, "-nostdlib++", "-E", "-x", "c++", os.devnull], capture_output=True, check=False
    )
    return probe.returncode == 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build exprune's custom-op library.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--version", default="unknown")
    parser.add_argument("--target", help="target triple, for clang or zig")
    parser.add_argument("extra", nargs="*", help="more compiler flags, after --")
    arguments = parser.parse_args()
    try:
        build(
            arguments.output,
            version=arguments.version,
            target=arguments.target,
            extra=arguments.extra,
        )
    except FileNotFoundError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{shlex.join(error.cmd)}\n{error.stderr}")


if __name__ == "__main__":
    main()
