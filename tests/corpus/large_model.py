"""A model over 2 GB with external data: written, and taken through the commands with the memory that they take.

    python -m tests.corpus.large_model [FOLDER] [--gigabytes 2.5]

prints one line per command: its exit code, seconds, and peak resident memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

WIDTH, HIDDEN, CLASSES = 2048, 8192, 32768
_LAYER = WIDTH * HIDDEN * 4


@dataclass(frozen=True)
class Run:
    """One command: exit code, seconds, peak resident memory in bytes, what it printed."""

    command: str
    code: int
    seconds: float
    peak: int
    output: str


def write_model(path: Path, total_bytes: float, seed: int = 0) -> None:
    """A feed-forward network of about so many bytes: blocks of two Gemms with a ReLU between, and an ArgMax head.

    Most hidden units are rarely above zero, as in networks that are worth staging.
    """
    rng = np.random.default_rng(seed)
    weights = path.with_name(path.stem + ".bin")
    nodes, initializers = [], []
    with weights.open("wb") as file:

        def add(name: str, shape: tuple[int, ...], scale: float, shift: float = 0.0) -> None:
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= scale
            values += shift
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", weights.name),
                ("offset", file.tell()),
                ("length", values.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))
            file.write(memoryview(values).cast("B"))
            initializers.append(tensor)

        x = "x"
        for index in range(max(1, round((total_bytes - CLASSES * WIDTH * 4) / (2 * _LAYER)))):
            add(f"up{index}", (WIDTH, HIDDEN) if index % 2 else (HIDDEN, WIDTH), WIDTH**-0.5)
            add(f"shift{index}", (HIDDEN,), 0.1, -1.5)
            add(f"down{index}", (HIDDEN, WIDTH), HIDDEN**-0.5)
            nodes += [
                helper.make_node(
                    "Gemm",
                    [x, f"up{index}", f"shift{index}"],
                    [f"h{index}"],
                    f"up{index}",
                    transB=1 - index % 2,
                ),
                helper.make_node("Relu", [f"h{index}"], [f"r{index}"]),
                helper.make_node("MatMul", [f"r{index}", f"down{index}"], [f"d{index}"], f"down{index}"),
                helper.make_node("Add", [x, f"d{index}"], [f"x{index}"]),
            ]
            x = f"x{index}"
        add("classes", (WIDTH, CLASSES), WIDTH**-0.5)
        nodes.append(helper.make_node("MatMul", [x, "classes"], ["scores"], "head"))
        nodes.append(helper.make_node("ArgMax", ["scores"], ["best"], axis=-1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("best", TensorProto.INT64, ["rows"])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def write_samples(folder: Path, samples: int = 8, seed: int = 1) -> None:
    """Standard normal inputs, in one file."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    np.savez(folder / "samples.npz", x=rng.standard_normal((samples, WIDTH), dtype=np.float32))


def run(*arguments: str | Path) -> Run:
    """Runs ``exprune`` in a process of its own and measures it."""
    command = [sys.executable, "-m", "exprune_cli", *map(str, arguments)]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    seconds = time.perf_counter() - start
    shown = " ".join(str(getattr(part, "name", part)) for part in arguments)
    return Run(f"exprune {shown}", process.returncode, seconds, usage.ru_maxrss * 1024, text)


def commands(folder: Path) -> list[tuple[str | Path, ...]]:
    """What the model in ``folder`` is taken through."""
    model, staged, timed = folder / "large.onnx", folder / "staged.onnx", folder / "timed.onnx"
    data = folder / "samples"
    return [
        ("report", model),
        ("optimize", model, staged, "--objective", "flops", "--test", "bound"),
        ("optimize", model, timed),
        ("report", timed, "--baseline", model),
        ("report", timed, "--baseline", model, "--data", data),
        ("calibrate", model, "--data", data, "-o", folder / "large.calib"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exprune-large-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        write_model(folder / "large.onnx", args.gigabytes * 1e9)
        write_samples(folder / "samples")
        for arguments in commands(folder):
            done = run(*arguments)
            print(
                f"{done.command}: exit {done.code}, {done.seconds:.0f} s, {done.peak / 1e9:.2f} GB",
                flush=True,
            )
            if done.code:
                print(done.output)


if __name__ == "__main__":
    main()
