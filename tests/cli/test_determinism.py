"""The same file, byte for byte, on one thread and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.models import cnn, mlp

ROOT = Path(__file__).parents[2]
#: Runs the command line on the first n processors; ONNX Runtime and BLAS take as many threads.
SCRIPT = (
    "import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]); "
    "from exprune_cli.cli import main; sys.exit(main(sys.argv[2:]))"
)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors"
)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_threads_do_not_change_the_file(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto, shape, metric = (
        (mlp(), (2000, 64), "agreement") if name == "mlp" else (cnn(), (400, 3, 16, 16), "mse")
    )
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "x.npz", x=rng.standard_normal(shape).astype(np.float32))
    files = []
    for threads in (1, 2):
        out = tmp_path / f"{threads}.onnx"
        options = [
            "--data",
            str(tmp_path / "d"),
            "--objective",
            "flops",
            "--max-drop",
            "0.1",
            "--metric",
            metric,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": str(threads)}
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                SCRIPT,
                str(threads),
                "optimize",
                str(tmp_path / "m.onnx"),
                str(out),
                *options,
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        files.append(out.read_bytes())
    assert files[0] == files[1]
    assert files[0] != (tmp_path / "m.onnx").read_bytes()
