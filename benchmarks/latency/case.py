"""What a case of the benchmark is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model and its inputs.

    Attributes:
        name: As in the table.
        build: Writes the model.
        feeds: Yields the inputs of one run each, for a batch size and a seed.
        batches: Batch sizes to time.
        metric: For the calibrated contender; None: it is not made.
        exact: Whether the first result is an index (compared as such) or numbers.
        checks: Inputs that results are compared on.
        fused: Whether operators around the sites can be fused: what that alone brings is then a contender.
        limit: Writes the model without what can be staged, from the model's file; None if that is the whole of it.
    """

    name: str
    build: Callable[[Path], None]
    feeds: Callable[[int, int], Iterator[Feeds]]
    batches: tuple[int, ...] = (1,)
    metric: str | None = None
    exact: bool = True
    checks: int = 1000
    fused: bool = False
    limit: Callable[[Path, Path], None] | None = None


def save(nodes, values, results, arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes a model of these nodes."""
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "case", values, results, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
