"""What no staging can beat: the language model's decode step with next to nothing of what it could skip."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LEFT = 16  # neurons of each feed-forward layer, and tokens of the head


def without_sites(source: Path, target: Path) -> None:
    """Writes the model with feed-forward layers of :data:`LEFT` neurons and a head of as many tokens.

    All nodes stay, so its time is that of attention, of the other small operators, and of calling all of them.

    Args:
        source: ``relu_lm_step.onnx``, by its names of nodes.
        target: Where to write; its results mean nothing.
    """
    model = onnx.load(source)
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}

    def cut(name: str, axis: int) -> None:
        array = numpy_helper.to_array(arrays[name])
        part = np.ascontiguousarray(array.take(range(LEFT), axis))
        arrays[name].CopyFrom(numpy_helper.from_array(part, name))

    for node in model.graph.node:
        if re.fullmatch(r"/blocks\.\d+/up/MatMul", node.name):
            cut(node.input[1], 1)
        elif re.fullmatch(r"/blocks\.\d+/up/Add", node.name):
            cut(next(name for name in node.input if name in arrays), 0)
        elif re.fullmatch(r"/blocks\.\d+/down/MatMul", node.name):
            cut(node.input[1], 0)
        elif node.name == "/MatMul":
            head = np.ones((arrays["model.embedding"].dims[1], LEFT), np.float32)
            model.graph.initializer.append(numpy_helper.from_array(head, "head of few tokens"))
            node.input[1] = "head of few tokens"
    onnx.save(model, target)
