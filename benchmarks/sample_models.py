"""The README's table: FLOPs cut and accuracy of the sample models, on their test data.

Statistics and the choice of the plan come from the calibration data alone; the test data are read
once, at the end:

    python benchmarks/sample_models.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import exprune_cli
from exprune_cli.errors import GateError

MODELS = Path(__file__).resolve().parent.parent / "sample_models"

#: Model file, calibration data, test data; relative to ``sample_models/``.
CASES = {
    "digits_resnet": ("digits_resnet/digits_resnet.onnx", "digits_resnet/calibration", "digits_resnet/test"),
    "graph_gcn": ("graph_gcn/graph_gcn.onnx", "graph_gcn/calibration", "graph_gcn/test"),
    "relu_lm": ("relu_lm/relu_lm.onnx", "relu_lm/calibration", "relu_lm/test"),
    "relu_lm, decode step": ("relu_lm/relu_lm_step.onnx", "relu_lm/calibration_step", "relu_lm/test_step"),
}


def row(name: str, test: str, max_drop: float) -> str:
    """One line of the table."""
    model, calibration, held_out = (MODELS / part for part in CASES[name])
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "staged.onnx"
        start = time.perf_counter()
        try:
            exprune_cli.optimize(
                model, staged, data=calibration, objective="flops", test=test, max_drop=max_drop
            )
        except GateError as error:
            return f"| {name} | {test} | refused: {error} |"
        seconds = time.perf_counter() - start
        report = exprune_cli.report(staged, baseline=model, data=held_out)
    totals, fidelity = report.totals, report.fidelity
    return (
        f"| {name} | {test} | {totals.flops_dense / 1e6:.1f} | {totals.flops_reduction:.1%} | "
        f"{fidelity.baseline:.2%} | {fidelity.optimized:.2%} | {fidelity.drop:+.2%} | "
        f"{fidelity.samples} | {seconds:.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CASES, action="append", help="default: all")
    parser.add_argument("--test", choices=("calibrated", "threshold", "stats"), action="append")
    parser.add_argument("--max-drop", type=float, default=0.005)
    args = parser.parse_args()
    print("| model | test | MFLOPs a sample | cut | accuracy | staged | drop | samples | optimize took |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: |")
    for name in args.model or CASES:
        for test in args.test or ["calibrated"]:
            print(row(name, test, args.max_drop), flush=True)


if __name__ == "__main__":
    main()
