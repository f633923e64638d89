"""The built wheel on every Python and ONNX Runtime that it is promised for.

    python -m tests.compatibility.matrix [--short] [--keep FOLDER]

Builds the source distribution, unpacks it elsewhere, builds the wheel from that, and installs it into a new virtual
environment for every Python that is found (3.10 to 3.13) with several versions of ONNX Runtime, the oldest and the
newest among them. In each, sample models are staged from the command line, and the files are run with and without
the native runtime and compared. ``--short`` takes the running Python and its oldest ONNX Runtime. Prints one line per
combination; the exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
AGREEMENT = Path(__file__).with_name("agreement.py")
#: Minor versions of Python, and ONNX Runtimes for each: the oldest that has a wheel, some between, the newest.
MATRIX: dict[int, tuple[str, ...]] = {
    10: ("1.17.0", "1.18.1", "1.20.1", ""),
    11: ("1.17.3", "1.19.2", "1.22.1", ""),
    12: ("1.17.3", "1.21.1", "1.24.4", ""),
    13: ("1.20.1", "1.23.2", "1.27.0", ""),
}
#: Too old: refused in one sentence.
TOO_OLD = "1.16.3"
#: Wheels of older ONNX Runtimes were built for NumPy 1.
_NUMPY_2_SINCE = (1, 19)
#: Every how many-th calibration sample the third file is planned with: how files run is compared, not how well.
_EVERY = 10
#: Sample model, data, options of ``optimize``; ``{few}`` is a folder of calibration samples.
SAMPLES = (
    ("digits_resnet/digits_resnet.onnx", "digits_resnet/test", ("--objective", "flops", "--test", "bound")),
    ("relu_lm/relu_lm_step.onnx", "relu_lm/test_step", ("--objective", "flops", "--test", "bound")),
    (
        "digits_resnet/digits_resnet.onnx",
        "digits_resnet/test",
        (
            "--objective",
            "flops",
            "--data",
            "{few}",
            "--max-drop",
            "0.02",
        ),
    ),
)
#: Between both ways to run a file: largest difference of floats, relative to the largest value, where all decisions
#: are the same; largest share of samples for which they are not; most outputs decided differently where that begins.
_TOLERANCE, _SHARE, _OUTPUTS = 1e-5, 0.05, 2


@dataclass(frozen=True)
class Outcome:
    """One combination: its versions, seconds, and what went wrong, if anything."""

    python: str
    onnxruntime: str
    seconds: float
    problem: str | None
    seen: str = ""

    def __str__(self) -> str:
        state = self.problem or f"ok, {self.seen}"
        return f"Python {self.python}, ONNX Runtime {self.onnxruntime}: {state} ({self.seconds:.0f} s)"


def pythons() -> dict[int, str]:
    """The interpreters that are found, by minor version: on the path, or pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for minor in MATRIX:
        name = f"python3.{minor}"
        candidates = [*sorted(root.glob(f"3.{minor}.*/bin/python")), shutil.which(name) or ""]
        path = next((str(path) for path in candidates if path and _answers(str(path), minor)), None)
        if path is not None:
            found[minor] = path
    found.setdefault(sys.version_info.minor, sys.executable)
    return found


def _answers(python: str, minor: int) -> bool:
    done = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info.minor)"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 and done.stdout.strip() == str(minor)


def build_wheel(folder: Path) -> Path:
    """The wheel, built from the unpacked source distribution.

    Raises:
        RuntimeError: A build failed, or the wheel has another tag than ``py3-none-<platform>``.
    """
    source, unpacked, wheels = folder / "sdist", folder / "unpacked", folder / "wheels"
    script = "import sys; sys.path.insert(0, '.'); import build_backend; print(build_backend.build_sdist(sys.argv[1]))"
    source.mkdir(parents=True)
    _call([sys.executable, "-m", "venv", str(folder / "builder")])
    builder = str(folder / "builder" / ("Scripts" if os.name == "nt" else "bin") / "python")
    _call([builder, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "setuptools>=77"])
    _call([builder, "-c", script, str(source)], cwd=ROOT)
    with tarfile.open(next(source.glob("*.tar.gz"))) as archive:
        archive.extractall(unpacked, filter="data")
    tree = next(unpacked.iterdir())
    _call([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(wheels), str(tree)])
    wheel = next(wheels.glob("exprune-*.whl"))
    if not re.search(r"-py3-none-(?!any)\w+\.whl$", wheel.name):
        raise RuntimeError(f"the wheel is called {wheel.name}")
    return wheel


def _few_samples(folder: Path) -> None:
    (folder / "few").mkdir()
    for file in sorted((ROOT / "sample_models/digits_resnet/calibration").glob("*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            np.savez(folder / "few" / file.name, **{name: arrays[name][::_EVERY] for name in arrays})


def check(python: str, onnxruntime: str, wheel: Path, folder: Path) -> Outcome:
    """Installs the wheel and this ONNX Runtime (empty: the newest) and compares what the files compute."""
    start = time.perf_counter()
    version, seen = "?", ""
    try:
        executable = _environment(python, onnxruntime, wheel, folder)
        show = "import platform, onnxruntime; print(platform.python_version(), onnxruntime.__version__)"
        version, onnxruntime = _call([executable, "-c", show], cwd=folder).split()
        problem = None
        worst = 0.0
        for index, (model, data, options) in enumerate(SAMPLES):
            worst = max(worst, _agreement(executable, folder, index, model, data, options))
        seen = f"largest difference {worst:.1e}"
    except RuntimeError as error:
        problem = str(error)
    return Outcome(version, onnxruntime or "newest", time.perf_counter() - start, problem, seen)


def _environment(python: str, onnxruntime: str, wheel: Path, folder: Path) -> str:
    _call([python, "-m", "venv", str(folder / "venv")])
    executable = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    wanted = [str(wheel), f"onnxruntime=={onnxruntime}" if onnxruntime else "onnxruntime"]
    if onnxruntime and tuple(map(int, onnxruntime.split(".")[:2])) < _NUMPY_2_SINCE:
        wanted.append("numpy<2")
    _call([executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    return executable


def _agreement(
    executable: str, folder: Path, index: int, model: str, data: str, options: Sequence[str]
) -> float:
    staged = str(folder / f"staged{index}.onnx")
    samples = ROOT / "sample_models"
    printed = _call(
        [
            executable,
            "-m",
            "exprune_cli",
            "optimize",
            str(samples / model),
            staged,
            "--format",
            "json",
            *(option.format(few=folder.parent / "few") for option in options),
        ],
        cwd=folder,
    )
    if not any(site["staged"] for site in json.loads(printed)["sites"]):
        raise RuntimeError(f"nothing was staged of {model}")
    library = _call(
        [executable, "-c", "import exprune_cli; print(exprune_cli.runtime_library())"], cwd=folder
    )
    command = [
        executable,
        str(AGREEMENT),
        staged,
        str(samples / data),
        "--library",
        library,
        "--samples",
        "100",
    ]
    found = json.loads(_call(command, cwd=folder))
    same = found["different"] == 0 and found["relative"] <= _TOLERANCE
    at_limits = (
        found["decided_differently"] <= _SHARE * found["samples"] and found["outputs_at_first"] <= _OUTPUTS
    )
    if not (same and at_limits):
        raise RuntimeError(f"{model}: native runtime and functions differ: {found}")
    return float(found["relative"])


def check_too_old(python: str, wheel: Path, folder: Path) -> Outcome:
    """An ONNX Runtime that is too old is refused, in one sentence that names what is needed."""
    start = time.perf_counter()
    problem = None
    try:
        executable = _environment(python, "", wheel, folder)
        force = ["--force-reinstall", "--no-deps", f"onnxruntime=={TOO_OLD}"]
        pip = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _call([*pip, *force])
        _call([*pip, "numpy<2"])
        model = str(ROOT / "sample_models" / SAMPLES[0][0])
        done = subprocess.run(
            [executable, "-m", "exprune_cli", "optimize", model, str(folder / "out.onnx")],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        lines = done.stderr.strip().splitlines()
        if done.returncode != 3 or len(lines) != 1 or "1.17" not in lines[0] or TOO_OLD not in lines[0]:
            problem = f"exit code {done.returncode}, printed {done.stderr.strip()[-400:]!r}"
    except RuntimeError as error:
        problem = str(error)
    return Outcome(Path(python).parent.parent.name, TOO_OLD, time.perf_counter() - start, problem, "refused")


def outcomes(folder: Path, short: bool = False) -> Iterator[Outcome]:
    """All combinations, one after the other; each environment is deleted when it is done."""
    wheel = build_wheel(folder / "build")
    _few_samples(folder)
    found = pythons()
    minors = [sys.version_info.minor] if short else list(found)
    for minor in minors:
        for version in MATRIX[minor][:1] if short else MATRIX[minor]:
            place = folder / f"3.{minor}-{version or 'newest'}"
            place.mkdir()
            yield check(found[minor], version, wheel, place)
            shutil.rmtree(place, ignore_errors=True)
    oldest = min(found)
    if not short and oldest <= 11:
        place = folder / "too-old"
        place.mkdir()
        yield check_too_old(found[oldest], wheel, place)


def _call(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        text = " ".join((done.stderr or done.stdout).strip().split())[-600:]
        raise RuntimeError(f"{' '.join(command[:6])} ...: exit code {done.returncode}: {text}")
    return (
        done.stdout.strip().splitlines()[-1]
        if done.stdout.strip() and "--format" not in command
        else done.stdout
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one combination only")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="work here instead of in a temporary folder"
    )
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="exprune-matrix-") as temporary:
        for outcome in outcomes(args.keep or Path(temporary), args.short):
            print(outcome, flush=True)
            failed += outcome.problem is not None
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
