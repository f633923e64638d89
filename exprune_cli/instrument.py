"""Copies of a model that also return survivor counts, or the shapes of its tensors.

The copies exist to be run once and are never kept. They are made by appending to the serialised
model: protobuf merges two concatenated messages, so large weights are copied only once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper

from exprune_cli.errors import ExpruneError
from exprune_cli.flops import counted_tensors
from exprune_cli.staged_nodes import DOMAIN, staged_view

_LOG = logging.getLogger(__name__)

#: Inputs that give an operator's output shape by their values, by operator.
_SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "TopK": (1,),
    "OneHot": (1,),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "CenterCropPad": (1,),
    "AffineGrid": (1,),
    "MaxUnpool": (2,),
    "BlackmanWindow": (0,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "DFT": (1,),
    "STFT": (1, 3),
    "Col2Im": (1, 2),
}
#: Operators whose output shape depends on their data.
_DATA_SHAPED = {"NonZero", "Compress", "Unique", "NonMaxSuppression", "ImageDecoder", "StringSplit"}
_PREFIX = "exprune/shape of "


def with_outputs(
    proto: onnx.ModelProto, names: Sequence[str], element_type: int = onnx.TensorProto.INT64
) -> onnx.ModelProto:
    """What to merge into ``proto`` so that it also returns the tensors ``names``."""
    extra = onnx.ModelProto()
    present = {value.name for value in proto.graph.output}
    for name in names:
        if name not in present:
            extra.graph.output.append(helper.make_tensor_value_info(name, element_type, None))
    return extra


def with_shapes(proto: onnx.ModelProto, names: Iterable[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """What to merge into ``proto`` so that it also returns the shapes of the tensors ``names``.

    Returns:
        The addition, and the name of the new output for every tensor.
    """
    extra = onnx.ModelProto()
    outputs: dict[str, str] = {}
    for name in dict.fromkeys(names):
        outputs[name] = _PREFIX + name
        extra.graph.node.append(helper.make_node("Shape", [name], [outputs[name]]))
        extra.graph.output.append(helper.make_tensor_value_info(outputs[name], onnx.TensorProto.INT64, None))
    return extra, outputs


def counted_names(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The main-graph tensors whose shapes the FLOPs depend on.

    Returns:
        The shapes of those that are initializers, and the names of those that are computed.
    """
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants |= {sparse.values.name: tuple(sparse.dims) for sparse in graph.sparse_initializer}
    # An initializer that is a graph input as well keeps its shape when a caller overrides it.
    names = dict.fromkeys(name for node in staged_view(graph.node) for name in counted_tensors(node))
    known = {name: constants[name] for name in names if name in constants}
    return known, [name for name in names if name not in known]


def shapes_need_values(graph: onnx.GraphProto) -> bool:
    """Whether shapes inside a graph can differ between inputs of equal shapes.

    Errs on the side of True: for operators of foreign domains and nodes with subgraphs.
    """
    varying = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in staged_view(graph.node):
        if node.domain == DOMAIN:
            varying.update(node.output)
            continue
        foreign = node.domain not in ("", "ai.onnx", "ai.onnx.ml")
        has_graph = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
        if foreign or has_graph or node.op_type in _DATA_SHAPED or node.op_type.startswith("Sequence"):
            return True
        if any(node.input[i] in varying for i in _SHAPE_INPUTS.get(node.op_type, ()) if i < len(node.input)):
            return True
        if node.op_type not in ("Shape", "Size") and any(name in varying for name in node.input):
            varying.update(node.output)
    return False


def inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own local functions inlined (staged ops kept), for counting.

    Without such functions: ``proto`` itself.

    Raises:
        ExpruneError: A call does not fit its function.
    """
    own = [(function.domain, function.name) for function in proto.functions if function.domain != DOMAIN]
    if not own:
        return proto
    import onnx.inliner

    try:
        return onnx.inliner.inline_selected_functions(proto, own, exclude=False)
    except (RuntimeError, ValueError) as error:
        text = next(iter(str(error).splitlines()), "")
    if "incompatible opset" in text:  # valid, but not for onnx's inliner
        _LOG.warning(
            "what the model's functions do is not in the FLOPs: they use other operator set versions"
        )
        return proto
    raise ExpruneError(f"not a valid ONNX model: its functions cannot be inlined: {text}")


def as_shape(value: np.ndarray) -> tuple[int, ...]:
    """The result of a Shape node as a tuple."""
    return tuple(int(size) for size in value)
