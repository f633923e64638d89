"""Shapes of a model that is not run: dynamic first dimensions of its inputs are set to one size."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.inliner

from exprune_cli.flops import ShapeOf
from exprune_cli.functions import FUSED_DOMAIN
from exprune_cli.model import model_inputs
from exprune_cli.shapes import infer_shapes
from exprune_cli.staged_nodes import DOMAIN, staged_view, weight_input

#: Zeros or random numbers are made for inputs of at most this many elements.
MOST_ELEMENTS = 2**28
#: Initializers up to this many elements keep their values: shapes are computed from such ones.
_KEEP_ELEMENTS = 256


def static_shapes(proto: onnx.ModelProto, batch: int = 1) -> ShapeOf:
    """Looks shapes up that ONNX shape inference finds for inputs with ``batch`` as first size.

    Only the first dimension of a graph input is set, and only where it is dynamic. Other
    dynamic dimensions (a sequence's length) stay unknown, and so does what depends on them.

    Args:
        proto: The model, optimised or not; not changed.
        batch: Size of dynamic first dimensions.

    Returns:
        A function from a tensor's name to its shape; None if any of its sizes is unknown.
    """
    shapes = infer_shapes(_without_fused(_light_copy(proto, batch)))

    def shape_of(name: str) -> tuple[int, ...] | None:
        shape = shapes.get(name)
        if shape is None or not all(isinstance(size, int) for size in shape):
            return None
        return tuple(size for size in shape if isinstance(size, int))

    return shape_of


def zero_feeds(proto: onnx.ModelProto, batch: int = 1) -> dict[str, np.ndarray] | None:
    """Zeros for every input, None if a size other than the first one is open or a type is no number's."""
    feeds = {}
    for value in model_inputs(proto):
        tensor = value.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            return None
        dims = list(tensor.shape.dim)
        if any(not dim.HasField("dim_value") for dim in dims[1:]):
            return None
        shape = [dim.dim_value if dim.HasField("dim_value") else batch for dim in dims]
        if min(shape, default=0) < 0 or math.prod(shape) > MOST_ELEMENTS:
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind not in "fiub":
            return None
        feeds[value.name] = np.zeros(shape, dtype)
    return feeds


def _without_fused(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fused operators spelled out: inside a function, shape inference does not follow shapes that are computed."""
    fused = {node.op_type for node in proto.graph.node if node.domain == FUSED_DOMAIN}
    if not fused:
        return proto
    return onnx.inliner.inline_selected_functions(proto, [(FUSED_DOMAIN, op) for op in sorted(fused)])


def _light_copy(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy without large weights, with dense layers in the place of staged nodes.

    Shape inference cannot see through the loops in a staged op's function.
    """
    source = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(function for function in proto.functions if function.domain != DOMAIN)
    graph = light.graph
    graph.name = source.name
    fed = {value.name for value in model_inputs(proto)}
    for value in source.input:
        if value.name not in fed:
            continue
        graph.input.add().CopyFrom(value)
        dims = graph.input[-1].type.tensor_type.shape.dim
        if len(dims) and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _KEEP_ELEMENTS:
            graph.initializer.append(tensor)
        else:
            _declare(graph, tensor.name, tensor.data_type, list(tensor.dims))
    for sparse in source.sparse_initializer:
        _declare(graph, sparse.values.name, sparse.values.data_type, list(sparse.dims))
    weights = {tensor.name: list(tensor.dims) for tensor in source.initializer}
    for node in staged_view(source.node):
        if node.domain == DOMAIN:
            _add_dense(graph, node, weights)
        else:
            graph.node.append(node)
    for value in source.output:
        graph.output.add().CopyFrom(value)
        if value.type.HasField("tensor_type"):
            graph.output[-1].type.tensor_type.ClearField("shape")
    # What a model declares of sizes that do not vary helps where inference knows no operator.
    graph.value_info.extend(value for value in source.value_info if _is_static(value))
    return light


def _add_dense(graph: onnx.GraphProto, node: onnx.NodeProto, weights: dict[str, list[int]]) -> None:
    data, output = node.input[0], node.output[0]
    kept = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "SparseGemm":
        graph.node.append(onnx.helper.make_node("MatMul", [data, node.input[1]], [output]))
        return
    shape = _dense_weight(node, weights)
    if shape is None:
        return
    weight = f"{output}/dense weight"
    if "Conv" in node.op_type:
        _declare(graph, weight, onnx.TensorProto.FLOAT, shape)
        conv = onnx.helper.make_node("Conv", [data, weight], [output])
        conv.attribute.extend(kept[name] for name in ("strides", "dilations", "pads") if name in kept)
        graph.node.append(conv)
        return
    _declare(graph, weight, onnx.TensorProto.FLOAT, shape[::-1])
    head = "ArgMax" in node.op_type or "TopK" in node.op_type
    product = f"{output}/dense scores" if head else output
    graph.node.append(onnx.helper.make_node("MatMul", [data, weight], [product]))
    if "TopK" in node.op_type:
        graph.node.append(onnx.helper.make_node("TopK", [product, node.input[7]], node.output[:2]))
    elif head:
        keepdims = kept["keepdims"].i if "keepdims" in kept else 0
        graph.node.append(onnx.helper.make_node("ArgMax", [product], [output], axis=-1, keepdims=keepdims))


def _dense_weight(node: onnx.NodeProto, weights: dict[str, list[int]]) -> list[int] | None:
    """Dims ``[N, G, *kernel]`` of a staged node's whole weight; None if unknown."""
    first = weights.get(node.input[weight_input(node)])
    if first is None or len(first) < 2:
        return None
    if node.op_type.startswith(("Quantized", "LowRank")):
        return first
    if node.op_type in ("ConvRelu", "PrefixConvBlock", "DynamicPrefixConvBlock"):  # [G, N, *kernel]
        return [first[1], first[0], *first[2:]]
    if node.op_type.startswith("SparseConv"):  # [G, *kernel, N]
        return [first[-1], first[0], *first[1:-1]]
    if node.op_type in ("ConvReluPanel", "PrefixConvPanel"):  # [ceil(N / 16), *kernel, G, 16]
        bias = weights.get(node.input[weight_input(node) + 1])
        return None if bias is None else [bias[0], first[-2], *first[1:-2]]
    tail = weights.get(node.input[4])
    return None if tail is None or len(tail) < 2 else [first[0], first[1] + tail[1], *first[2:]]


def _declare(graph: onnx.GraphProto, name: str, dtype: int, dims: list[int]) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, dims))


def _is_static(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return (
        value.type.HasField("tensor_type")
        and tensor.HasField("shape")
        and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    )
