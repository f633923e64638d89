"""The library with sanitizers, and the environment in which an ordinary Python can load it.

``python -m tests.runtime.sanitizers address|thread -o FILE`` builds it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "address": [
        "-O1",
        "-g1",
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,alignment,object-size",  # the address sanitizer sees these, and they cost most
        "-fno-sanitize-recover=all",
    ],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
#: libstdc++ too, so that the sanitizer finds the __cxa_throw that ONNX Runtime uses.
_RUNTIMES = {"address": ("libasan.so", "libstdc++.so.6"), "thread": ("libtsan.so", "libstdc++.so.6")}


@lru_cache
def build_module():
    """The module runtime/build.py."""
    spec = importlib.util.spec_from_file_location("exprune_runtime_build", ROOT / "runtime" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def preload(kind: str) -> str | None:
    """What LD_PRELOAD must hold; None where the compiler has no such sanitizer."""
    build = build_module()
    compiler = build.find_compiler()
    if not compiler or build.is_zig(compiler) or sys.platform != "linux":
        return None
    paths = []
    for name in _RUNTIMES[kind]:
        command = [*compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not os.path.isabs(path):
            return None
        paths.append(path)
    return " ".join(paths)


def build(kind: str, out: Path, extra: tuple[str, ...] = ()) -> Path:
    """The library with the sanitizer, at ``out``."""
    build = build_module()
    return build.build(out, version="sanitized", compiler=build.find_compiler(), extra=[*FLAGS[kind], *extra])


def kind_of(library: str | os.PathLike) -> str | None:
    """Which sanitizer a library was built with."""
    data = Path(library).read_bytes()
    return "address" if b"__asan_init" in data else "thread" if b"__tsan_init" in data else None


def environment(library: str | os.PathLike, isa: str | None = None) -> dict[str, str]:
    """The environment of a process that loads the library."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if isa:
        env["EXPRUNE_ISA"] = isa
    kind = kind_of(library)
    if kind:
        env["LD_PRELOAD"] = preload(kind) or ""
        env["ASAN_OPTIONS"] = "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1"
        env["UBSAN_OPTIONS"] = "halt_on_error=1:print_stacktrace=1"
        # No suppressions: a race's stacks all have frames of ONNX Runtime, which is not built for the sanitizer.
        # What its pool promises is told to the sanitizer in runtime/ort.cpp.
        env["TSAN_OPTIONS"] = "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1"
    return env


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=FLAGS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    build(arguments.kind, arguments.output.resolve())


if __name__ == "__main__":
    main()
