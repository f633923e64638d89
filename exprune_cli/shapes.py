"""Static shapes of a model's tensors, without its weights in the way."""

from __future__ import annotations

import math
from functools import partial

import onnx

from exprune_cli.apart import run_apart

Dims = tuple[int | str | None, ...]

#: Initializers up to this many elements keep their values: shapes are computed from such ones.
_KEEP_ELEMENTS = 256


#: Elements of a constant whose values take part in shape inference.
_MOST_PROPAGATED = 2**16
#: Memory that inference may take: so many bytes, and so many for each byte of a model without its weights.
_MEMORY, _MEMORY_PER_BYTE = 2**30, 64


def infer_shapes(proto: onnx.ModelProto, fixed: dict[str, tuple[int, ...]] | None = None) -> dict[str, Dims]:
    """Shapes of all main-graph tensors that ONNX shape inference finds.

    Works on a skeleton in which large weights are graph inputs, so it takes little memory and
    is not bound by protobuf's 2 GB.

    Args:
        proto: The model; not changed.
        fixed: Concrete shapes for graph inputs, by name.

    Returns:
        Dims by tensor name: int, a symbol's name, or None for an unknown size. Tensors of
        unknown rank are absent. If the model defeats inference: what it declares itself.
    """
    skeleton = _skeleton(proto, fixed or {})
    # With values, onnx writes out every vector that goes into a Cast or an Add, element by element, however long
    # a file makes it; what is too long is only seen on the way. Then the shapes do without.
    memory = _MEMORY + _MEMORY_PER_BYTE * skeleton.ByteSize()
    for values in (not _makes_large_constants(skeleton), False):
        found = run_apart(partial(_inferred, skeleton, values), memory)
        # onnx refuses what it cannot infer; what the model declares still holds.
        if found is not None:
            skeleton.ParseFromString(found)
            break
    shapes: dict[str, Dims] = {}
    graph = skeleton.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            shapes[value.name] = tuple(_dim(d) for d in tensor.shape.dim)
    for initializer in proto.graph.initializer:
        shapes[initializer.name] = tuple(initializer.dims)
    return shapes


def _inferred(skeleton: onnx.ModelProto, values: bool) -> bytes:
    return onnx.shape_inference.infer_shapes(skeleton, data_prop=values).SerializeToString()


def _makes_large_constants(proto: onnx.ModelProto) -> bool:
    """Whether data propagation would write out a large constant, element by element."""
    sizes = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value_ints":
                    sizes[node.output[0]] = onnx.helper.make_tensor(
                        "", onnx.TensorProto.INT64, [len(attribute.ints)], attribute.ints
                    )
                elif attribute.HasField("t"):
                    sizes[node.output[0]] = attribute.t
        if node.op_type == "ConstantOfShape" and node.input and node.input[0] in sizes:
            shape = onnx.numpy_helper.to_array(sizes[node.input[0]]).reshape(-1)
            if math.prod(int(size) for size in shape) > _MOST_PROPAGATED:
                return True
    return False


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param or None


def _skeleton(proto: onnx.ModelProto, fixed: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    skeleton = onnx.ModelProto(ir_version=proto.ir_version)
    skeleton.opset_import.extend(proto.opset_import)
    skeleton.functions.extend(proto.functions)
    graph, source = skeleton.graph, proto.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    if not fixed:
        graph.value_info.extend(source.value_info)
    declared = set()
    for value in source.input:
        copy = graph.input.add()
        copy.CopyFrom(value)
        declared.add(value.name)
        if value.name in fixed:
            del copy.type.tensor_type.shape.dim[:]
            for size in fixed[value.name]:
                copy.type.tensor_type.shape.dim.add(dim_value=size)
    if fixed:
        for value in graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _KEEP_ELEMENTS:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return skeleton
