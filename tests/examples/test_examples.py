"""The examples in other languages give the results that Python gives.

What they need is installed by ``.ci/run``; where it is not, they are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exprune_cli.runtime import runtime_available, runtime_library, session

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NODE = EXAMPLES / "node"
#: ONNX Runtime's headers and C# sources, by way of a package on npm that ships both.
PACKAGE = ROOT / "build" / "headers" / "node_modules" / "com.github.asus4.onnxruntime"


@pytest.fixture(scope="module")
def case(
    staged_files: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[int]]:
    """The staged digits model, a file of raw images, and their classes."""
    model, data = staged_files["digits_resnet"]
    with np.load(min(data.glob("*.npz"))) as arrays:
        images = arrays["image"][:16].astype(np.float32)
    raw = tmp_path_factory.mktemp("examples") / "images.bin"
    raw.write_bytes(images.tobytes())
    classes = session(str(model)).run(None, {"image": images})[0]
    assert len(set(classes)) > 3
    return model, raw, [int(c) for c in classes]


def test_node(case: tuple[Path, Path, list[int]]) -> None:
    _needs_node("onnxruntime-node")
    model, images, classes = case
    assert _output(["node", NODE / "run.mjs", model, images]) == classes


def test_node_with_the_runtime(case: tuple[Path, Path, list[int]], tmp_path: Path) -> None:
    _needs_node("onnxruntime-node", "koffi")
    if not runtime_available():
        pytest.skip("the native runtime is not built here")
    model, images, classes = case
    # Without its functions the file runs on the kernels or not at all.
    bare = onnx.load(model)
    del bare.functions[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    command = ["node", NODE / "native.mjs", tmp_path / "bare.onnx", images]
    assert _output([*command, runtime_library()]) == classes
    for library, named in (((), "com.exprune"), (("none.so",), "none.so")):
        done = subprocess.run([*command, *library], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"Error: {'Failed to load library' if library else ''}" in done.stderr
        assert named in done.stderr


def test_node_still_has_no_custom_op_libraries() -> None:
    types = NODE / "node_modules" / "onnxruntime-common" / "dist" / "cjs" / "inference-session.d.ts"
    if not types.is_file():
        pytest.skip("needs 'npm install --ignore-scripts' in examples/node")
    assert not re.search(r"custom.?op", types.read_text(), re.IGNORECASE), (
        "docs/deploy.md says there are none"
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The compiled C++ example, and the environment that it runs in."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    found = [Path(os.environ[name]) for name in ("EXPRUNE_ORT_INCLUDE",) if name in os.environ] or [
        path.parent for path in sorted(PACKAGE.rglob("onnxruntime_cxx_api.h"))
    ]
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if compiler is None or not found or not libraries:
        pytest.skip(
            "needs a C++ compiler, ONNX Runtime's headers (EXPRUNE_ORT_INCLUDE) and its shared library"
        )
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])
    target = folder / "run"
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Werror",
        "-isystem",
        found[0],
        EXAMPLES / "cpp" / "run.cpp",
    ]
    subprocess.run([*command, "-o", target, libraries[0]], check=True)
    return target, {**os.environ, "LD_LIBRARY_PATH": str(folder)}


@pytest.mark.parametrize("registered", [True, False], ids=["runtime", "functions"])
def test_cpp(
    case: tuple[Path, Path, list[int]], program: tuple[Path, dict[str, str]], registered: bool
) -> None:
    if registered and not runtime_available():
        pytest.skip("the native runtime is not built here")
    model, images, classes = case
    target, environment = program
    more = [runtime_library()] if registered else []
    assert _output([target, model, images, *more], environment) == classes


def test_cpp_says_what_is_wrong_with_a_library(
    case: tuple[Path, Path, list[int]], program: tuple[Path, dict[str, str]]
) -> None:
    done = subprocess.run(
        [program[0], *case[:2], "none.so"], env=program[1], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "none.so" in done.stderr


def test_csharp_uses_names_that_exist() -> None:
    sources = sorted((PACKAGE / "Runtime").glob("*.cs"))
    if not sources:
        pytest.skip("needs the C# sources of ONNX Runtime, which .ci/run installs")
    public = "\n".join(path.read_text(encoding="utf-8-sig") for path in sources)
    code = (EXAMPLES / "csharp" / "Program.cs").read_text(encoding="utf-8")
    own = {"File", "MemoryMarshal", "Console", "string", "args", "pixels", "results"}
    members = {name for owner, name in re.findall(r"\b(\w+)\.(\w+)\b", code) if owner not in own}
    members -= {"Runtime", "ML", "OnnxRuntime", "InteropServices"}
    assert {"RegisterCustomOpLibrary", "CreateTensorValueFromMemory", "OutputNames", "Run"} <= members
    for name in {*members, "GetTensorDataAsSpan", "InferenceSession", "RunOptions", "SessionOptions"}:
        assert re.search(rf"public [^\n=;]*\b{name}\b", public), name


def _needs_node(*packages: str) -> None:
    missing = [name for name in packages if not (NODE / "node_modules" / name).is_dir()]
    if shutil.which("node") is None or missing:
        pytest.skip("needs node and 'npm install --ignore-scripts' in examples/node")


def _output(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> list[int]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]
