"""The models of the corpus: what the installed ``onnx`` package ships for its backend tests, and silero-vad's.

Node tests feed their weights. So every one with a linear operator is tried a second time with its weights frozen to
initializers and a ReLU behind its result, which makes a site of what is else none. The light models have the graphs
of real networks and weights that are computed from a few numbers; they too are tried a second time, with drawn ones.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from exprune_cli.rules._linear import LINEAR_OPS
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import DATA_DIR, load_model_tests

from exprune_cli.match import MIN_OPSET
from exprune_cli.model import model_inputs

#: Light models of more than 60 million weights.
_HUGE = ("alexnet", "vgg19", "zfnet")
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")


@dataclass
class Item:
    """One model of the corpus.

    Attributes:
        name: Of its test.
        load: Returns the model.
        feeds: Returns inputs to run it on; an empty list where the test has none.
        single: The model is one linear layer whose ReLU is the output: pruned outputs are 0 there.
    """

    name: str
    load: Callable[[], onnx.ModelProto]
    feeds: Callable[[], list[dict[str, Any]]]
    single: bool = False


def items(kind: str, step: int = 1) -> Iterator[Item]:
    """The models of a kind; with a ``step``, every so many-th, and the second form of all with a linear operator."""
    if kind == "light":
        files = sorted((Path(DATA_DIR) / "light").glob("*.onnx"))
        for path in files if step == 1 else [path for path in files if "squeezenet" in path.name]:
            feeds = partial(_drawn, onnx.load(path))
            yield Item(path.stem, partial(onnx.load, path), feeds)
            if not any(name in path.name for name in _HUGE):
                yield Item(f"{path.stem} with weights", partial(_load_with_weights, path), feeds)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests of casts overflow on purpose
        cases = sorted(load_model_tests(kind=kind), key=lambda case: case.name)
    for index, case in enumerate(cases):
        folder = Path(case.model_dir) if case.model_dir else None
        proto = case.model if case.model is not None else onnx.load(folder / "model.onnx")
        linear = any(node.op_type in LINEAR_OPS for node in proto.graph.node)
        if index % step == 0 or linear:
            if folder is not None:
                feeds = _feeds_of_files(proto, folder)
            else:
                feeds = [_named(proto, values) for values, _ in case.data_sets or []]
            if index % step == 0:
                yield Item(case.name, partial(_same, proto), partial(_same, feeds))
            frozen = freeze(proto, feeds[0]) if feeds and linear else None
            if frozen is not None:
                fed = {value.name for value in model_inputs(frozen)}
                cut = [{name: feed[name] for name in fed} for feed in feeds]
                yield Item(f"{case.name} frozen", partial(_same, frozen), partial(_same, cut), single=True)


def freeze(proto: onnx.ModelProto, feed: dict[str, Any]) -> onnx.ModelProto | None:
    """All inputs but the first as initializers, a ReLU behind the first output; None where that fits no types."""
    inputs, output = model_inputs(proto), proto.graph.output[0]
    if output.type.tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    names = {value.name for value in inputs[1:]}
    if not all(isinstance(feed.get(name), np.ndarray) for name in names):
        return None
    frozen = onnx.ModelProto()
    frozen.CopyFrom(proto)
    graph = frozen.graph
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(feed[name]), name) for name in sorted(names)
    )
    if frozen.ir_version >= 4:  # before, initializers had to be inputs as well
        kept = [value for value in graph.input if value.name not in names]
        del graph.input[:]
        graph.input.extend(kept)
    graph.node.append(helper.make_node("Relu", [output.name], ["relu_of_it"], "Relu"))
    graph.output[0].name = "relu_of_it"
    if frozen.opset_import[0].version < MIN_OPSET:
        with contextlib.suppress(RuntimeError):  # an operator that cannot be converted
            return onnx.version_converter.convert_version(frozen, MIN_OPSET)
    return frozen


def _same(value: Any) -> Any:
    return value


def _load_with_weights(path: Path) -> onnx.ModelProto:
    return with_weights(onnx.load(path))


def with_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A light model with drawn weights in place of its ``ConstantOfShape`` nodes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    rng = np.random.default_rng(0)
    full = onnx.ModelProto()
    full.CopyFrom(proto)
    kept = []
    for node in full.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in constants:
            kept.append(node)
            continue
        shape = [int(size) for size in constants[node.input[0]]]
        # Vectors are biases and norms' variances, which must be positive.
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:]) / 2)) if len(shape) > 1 else None
        array = rng.normal(0, scale, shape) if scale else rng.uniform(0.5, 1.0, shape)
        full.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
    del full.graph.node[:]
    full.graph.node.extend(kept)
    full.ir_version = 8  # before 4, initializers had to be inputs as well
    return onnx.version_converter.convert_version(full, 13)


def _named(proto: onnx.ModelProto, values: Sequence[Any]) -> dict[str, Any]:
    names = [value.name for value in model_inputs(proto)]
    return dict(zip(names, values, strict=False))


def _feeds_of_files(proto: onnx.ModelProto, folder: Path) -> list[dict[str, Any]]:
    result = []
    for data in sorted(folder.glob("test_data_set_*")):
        values = []
        for index, value in enumerate(model_inputs(proto)):
            content = (data / f"input_{index}.pb").read_bytes()
            if value.type.HasField("sequence_type"):
                values.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
            elif value.type.HasField("optional_type"):
                values.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
            else:
                values.append(numpy_helper.to_array(onnx.TensorProto.FromString(content)))
        result.append(_named(proto, values))
    return result


def _drawn(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    feed = {}
    for value in model_inputs(proto):
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    return [feed]
