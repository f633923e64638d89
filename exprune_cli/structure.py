"""What an untrusted model must not be, checked before any native code sees it.

onnx's checker and shape inference and ONNX Runtime walk models by recursion, on the stack, and put functions in the place
of their calls: a file of some kilobytes can make them overflow the stack or fill the memory. So nesting,
calls and sizes are bounded here first, without recursion. Valid models stay far below the limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.external_data import tensor_bytes
from exprune_cli.staged_nodes import DOMAIN, least_inputs

#: Graphs inside graphs (bodies of If, Loop and Scan).
MAX_NESTING = 24
#: Functions that call functions.
MAX_CALL_DEPTH = 64
#: Nodes, with a function's counted for every call of it.
MAX_NODES = 2_000_000
#: Types inside types (sequences of optionals of ...).
MAX_TYPE_DEPTH = 16
#: Dimensions of a tensor.
MAX_RANK = 64
#: Elements of a tensor, a size in a shape.
MAX_SIZE = 2**48

#: Elements of a list that is put together of constants and shapes.
MAX_SHAPE_SUM = 2**20
#: Constants up to this many elements may be sizes.
_SHAPE_ELEMENTS = 2**10
#: Operators through which values of sizes go in shape inference.
_SIZE_OPS = {
    *("Add", "Sub", "Mul", "Div", "Cast", "Ceil", "Floor", "Gather", "Identity", "Max", "Min", "Neg"),
    *("Reshape", "Slice", "Squeeze", "Unsqueeze", "Where"),
}
#: Where elements are that are not in ``raw_data``, for types with one number per element.
_FIELDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
Key = tuple[str, str, str]


def check_structure(proto: onnx.ModelProto, where: str) -> None:
    """Checks nesting, function calls, types, shapes and texts of a model, without recursion.

    Args:
        proto: The model; external data need not be loaded.
        where: Its name in messages.

    Raises:
        ExpruneError: The model is over a limit, recursive, or holds text that is not UTF-8.
    """
    _check_graph(proto.graph, where)
    for function in proto.functions:
        _texts(where, function.name, function.domain, *function.input, *function.output)
        _check_nodes(function.node, where)
    _check_calls(proto, where)
    _check_shape_sums(proto.graph, where)
    for entry in proto.metadata_props:
        _texts(where, entry.key, entry.value)
    _texts(where, proto.producer_name, proto.domain, *(entry.domain for entry in proto.opset_import))


def _texts(where: str, *values: object) -> None:
    """Protobuf hands out text that is not UTF-8 as bytes, or raises, by its version."""
    for value in values:
        if not isinstance(value, str):
            raise ExpruneError(
                f"{where}: not a valid ONNX model: it holds text that is not UTF-8: {value!r:.60}"
            )


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever one can stand: in subgraphs, functions, attributes, sparse ones too."""
    graphs: list[onnx.GraphProto] = [proto.graph]
    nodes: list[Sequence[onnx.NodeProto]] = [function.node for function in proto.functions]
    # Functions' attributes may have defaults, which are attributes themselves.
    attributes = [a for function in proto.functions for a in getattr(function, "attribute_proto", ())]
    while graphs or nodes or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.append(graph.node)
        for node in nodes.pop() if nodes else ():
            attributes.extend(node.attribute)
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)
        attributes = []


def every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those in subgraphs and functions too."""
    yield from _every(proto.graph.node)
    for function in proto.functions:
        yield from _every(function.node)


def _check_graph(graph: onnx.GraphProto, where: str) -> None:
    waiting = [(graph, 0)]
    while waiting:
        graph, depth = waiting.pop()
        for tensor in graph.initializer:
            _check_tensor(tensor, where)
        for sparse in graph.sparse_initializer:
            _check_tensor(sparse.values, where)
            _check_tensor(sparse.indices, where)
            _check_dims(sparse.dims, sparse.values.name, where)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_type(value, where)
        waiting += [(inner, depth + 1) for inner in _check_nodes(graph.node, where)]
        if waiting and waiting[-1][1] > MAX_NESTING:
            raise ExpruneError(
                f"{where}: not supported: subgraphs are nested deeper than {MAX_NESTING} levels"
            )


def _check_nodes(nodes: Sequence[onnx.NodeProto], where: str) -> list[onnx.GraphProto]:
    """Reads what is read of nodes later on; returns their subgraphs."""
    inner: list[onnx.GraphProto] = []
    for node in nodes:
        _texts(where, node.name, node.op_type, node.domain, *node.input, *node.output)
        if node.domain == DOMAIN and (len(node.input) < least_inputs(node) or not node.output):
            raise ExpruneError(
                f"{where}: not a valid ONNX model: '{node.name}' lacks inputs of {node.op_type}"
            )
        for attribute in node.attribute:
            _texts(where, attribute.name, attribute.ref_attr_name)
            if attribute.type in _GRAPHS:
                inner += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            elif attribute.HasField("t"):
                _check_tensor(attribute.t, where)
    return inner


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    _texts(where, tensor.name)
    _check_dims(tensor.dims, tensor.name, where)
    if tensor.data_type not in onnx.TensorProto.DataType.values():
        raise ExpruneError(
            f"{where}: not a valid ONNX model: tensor '{tensor.name}' has the unknown type {tensor.data_type}"
        )


def check_content(tensor: onnx.TensorProto, where: str) -> None:
    """Checks that a tensor holds as many bytes or numbers as its shape has elements.

    Raises:
        ExpruneError: It does not.
    """
    if tensor.HasField("segment"):
        raise ExpruneError(f"{where}: not supported: tensor '{tensor.name}' is stored in segments")
    elements = math.prod(tensor.dims)
    wanted: int | None = elements
    found: int | None = None
    if tensor.HasField("raw_data"):
        wanted, found = tensor_bytes(tensor), len(tensor.raw_data)
    elif tensor.data_type in _FIELDS:
        found = len(getattr(tensor, _FIELDS[tensor.data_type]))
    if None not in (wanted, found) and found != wanted:
        raise ExpruneError(
            f"{where}: not a valid ONNX model: tensor '{tensor.name}' of {elements} elements holds {found} "
            f"{'bytes' if tensor.HasField('raw_data') else 'numbers'}, not {wanted}"
        )


def _check_dims(dims: Sequence[int], name: str, where: str) -> None:
    if len(dims) > MAX_RANK or min(dims, default=0) < 0 or math.prod(dims) > MAX_SIZE:
        shape = "[" + ", ".join(map(str, dims[:8])) + (", ...]" if len(dims) > 8 else "]")
        raise ExpruneError(
            f"{where}: not a valid ONNX model: tensor '{name}' has the impossible shape {shape}"
        )


def _check_type(value: onnx.ValueInfoProto, where: str) -> None:
    kind, depth = value.type, 0
    _texts(where, value.name)
    while True:
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            tensor = getattr(kind, which)
            sizes = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            _texts(where, *(d.dim_param for d in tensor.shape.dim))
            # A negative size means an unknown one in files of old exporters.
            if tensor.elem_type not in onnx.TensorProto.DataType.values():
                raise ExpruneError(
                    f"{where}: not a valid ONNX model: '{value.name}' has the unknown type {tensor.elem_type}"
                )
            if max(sizes, default=0) > MAX_SIZE or len(tensor.shape.dim) > MAX_RANK:
                raise ExpruneError(f"{where}: not a valid ONNX model: '{value.name}' has an impossible shape")
            return
        if which is None or which == "opaque_type":
            return
        inner = getattr(kind, which)
        kind = inner.value_type if which == "map_type" else inner.elem_type
        depth += 1
        if depth > MAX_TYPE_DEPTH:
            raise ExpruneError(
                f"{where}: not supported: the type of '{value.name}' is nested deeper than {MAX_TYPE_DEPTH} levels"
            )


def _check_shape_sums(graph: onnx.GraphProto, where: str) -> None:
    """Bounds the lists of sizes that shape inference puts together: a chain of Concats doubles them each time."""
    sizes = {t.name: math.prod(t.dims) for t in graph.initializer if math.prod(t.dims) <= _SHAPE_ELEMENTS}
    for node in graph.node:
        known = [sizes[name] for name in node.input if name in sizes]
        whole = len(known) == sum(1 for name in node.input if name)
        if node.op_type == "Concat":
            size = sum(known) if whole else 0
        elif node.op_type == "Shape":
            size = MAX_RANK
        elif node.op_type == "Constant":
            size = max(
                (math.prod(a.t.dims) if a.HasField("t") else len(a.ints) for a in node.attribute), default=0
            )
            size = size if size <= _SHAPE_ELEMENTS else 0
        elif node.op_type in _SIZE_OPS:
            size = max(known, default=0) if whole else 0
        else:
            size = 0
        if size > MAX_SHAPE_SUM:
            raise ExpruneError(
                f"{where}: not supported: '{next(iter(node.output), '')}' joins over {MAX_SHAPE_SUM:,} constants"
            )
        if size:
            sizes |= dict.fromkeys(node.output, size)


# --- function calls --------------------------------------------------------------------------------


def _check_calls(proto: onnx.ModelProto, where: str) -> None:
    """Checks that inlining all functions ends, and ends in a bounded number of nodes."""
    functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
    sizes: dict[Key, int] = {}
    depths: dict[Key, int] = {}
    for start, first in functions.items():
        stack = [(start, iter(_called(first.node, functions)))] if start not in sizes else []
        active = {start}
        while stack:
            key, calls = stack[-1]
            callee = next((name for name in calls if name not in sizes), None)
            if callee is None:
                every = _called(functions[key].node, functions)
                sizes[key] = _count(functions[key].node) + sum(sizes[name] for name in every)
                depths[key] = 1 + max((depths[name] for name in every), default=0)
                _limit_nodes(sizes[key], where)
                if depths[key] > MAX_CALL_DEPTH:
                    raise ExpruneError(
                        f"{where}: not supported: functions call each other deeper than {MAX_CALL_DEPTH} levels"
                    )
                active.discard(key)
                stack.pop()
            elif callee in active:
                raise ExpruneError(f"{where}: not a valid ONNX model: function '{callee[1]}' calls itself")
            else:
                active.add(callee)
                stack.append((callee, iter(_called(functions[callee].node, functions))))
    calls_of_graph = _called(proto.graph.node, functions)
    _limit_nodes(_count(proto.graph.node) + sum(sizes[name] for name in calls_of_graph), where)


def _limit_nodes(count: int, where: str) -> None:
    if count > MAX_NODES:
        raise ExpruneError(
            f"{where}: not supported: with its functions inlined it has over {MAX_NODES:,} nodes"
        )


def _called(nodes: Sequence[onnx.NodeProto], functions: dict[Key, onnx.FunctionProto]) -> list[Key]:
    """The functions that nodes call, in subgraphs too, once for every call."""
    if not functions:
        return []
    keys = ((node.domain, node.op_type, getattr(node, "overload", "")) for node in _every(nodes))
    return [key for key in keys if key in functions]


def _count(nodes: Sequence[onnx.NodeProto]) -> int:
    return sum(1 for _ in _every(nodes))


def _every(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    waiting.append(attribute.g.node)
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    waiting.extend(graph.node for graph in attribute.graphs)
