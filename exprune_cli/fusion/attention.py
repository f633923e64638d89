"""Attention over several heads with a cache of earlier keys and values: one operator.

What is looked for, from the Softmax on (Vaswani et al., Attention Is All You Need, section 3.2)::

    heads(x) = Transpose(Reshape(x, [batch, length, heads, size]), [0, 2, 1, 3])
    K, V     = Concat(cache, heads(k)), Concat(cache, heads(v))
    y        = Reshape(Transpose(MatMul(Softmax(s MatMul(heads(q), K^T)), V), [0, 2, 1, 3]))

where q, k and v are projections of one tensor, and one position is new: products of many positions are ONNX Runtime's
to compute. The projections' weights are put together. Masks are not looked for: a step that decodes one token needs
none. ONNX Runtime's own MultiHeadAttention takes ten microseconds a call on a CPU, for whatever little there is to do,
and has no place for caches of all layers in one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from exprune_cli.functions import FUSED_DOMAIN
from exprune_cli.fusion.lengths import at_most_one
from exprune_cli.fusion.patterns import biased, is_inner, made_by, permutation, scalar
from exprune_cli.graph import ModelGraph, detach
from exprune_cli.rules._constants import ConstantRef, constant_of, small_constant

#: Projections of more bytes are not put together: what a call costs matters little then.
_PACKED_BYTES = 2**24


@dataclass
class Heads:
    """A tensor ``[batch, heads, length, size]``, split from ``source`` ``[batch, length, heads size]``."""

    source: gs.Tensor
    heads: int
    size: int
    nodes: list[gs.Node]


@dataclass
class Cached:
    """Keys or values: those of ``new``, after ``past``; ``whole`` is all of them."""

    new: Heads
    past: gs.Tensor
    whole: gs.Tensor
    nodes: list[gs.Node]


@dataclass
class Attention:
    """A match: its operands, the factor on the scores, its result, and the nodes that one takes the place of."""

    name: str
    query: Heads
    key: Cached
    value: Cached
    scale: float
    result: gs.Tensor
    nodes: list[gs.Node]


def apply(graph: ModelGraph) -> list[str]:
    """Fuses every such attention; returns the operators that were put in."""
    short = at_most_one(graph)
    nodes = list(graph.nodes())
    found = [match for node in nodes if (match := _match(graph, node, short)) is not None]
    return [op for match in found if (op := _replace(graph, match)) is not None]


# --- finding it ------------------------------------------------------------------------------


def _match(graph: ModelGraph, softmax: gs.Node, short: set[str]) -> Attention | None:
    if softmax.op != "Softmax" or softmax.domain or softmax.attrs.get("axis", -1) not in (-1, 3):
        return None
    scores = _scaled(graph, softmax.inputs[0])
    product = made_by(scores[0], "MatMul")
    mixed = _reader(graph, softmax.outputs[0], "MatMul")
    if product is None or mixed is None or mixed.inputs[0] is not softmax.outputs[0]:
        return None
    left, right = (_scaled(graph, operand) for operand in product.inputs)
    query, key, value = _heads(graph, left[0]), _turned_keys(graph, right[0]), _cached(graph, mixed.inputs[1])
    if query is None or key is None or value is None:
        return None
    length = (graph.shapes.get(query.source.name) or (None, None))[1]
    if length != 1 and length not in short:
        return None
    sizes = {(heads.heads, heads.size) for heads in (query, key.new, value.new)}
    if len(sizes) != 1:
        return None
    merged = _merged(graph, mixed.outputs[0], query)
    if merged is None:
        return None
    inner = [*scores[2], *left[2], *right[2], softmax, product, mixed, *merged[1]]
    nodes = [*query.nodes, *key.nodes, *value.nodes, *inner]
    if len({id(node) for node in nodes}) != len(nodes):
        return None
    # All that is replaced is read by the pattern alone, but for what the operator hands out as well.
    handed = {merged[0].name, key.whole.name, value.whole.name}
    for node in nodes:
        for tensor in node.outputs:
            if tensor.name not in handed and not is_inner(graph, tensor):
                return None
    name = softmax.name or softmax.outputs[0].name
    return Attention(name, query, key, value, scores[1] * left[1] * right[1], merged[0], nodes)


def _scaled(graph: ModelGraph, tensor: gs.Tensor) -> tuple[gs.Tensor, float, list[gs.Node]]:
    """A tensor behind its products with scalars; their product; their nodes."""
    factor, nodes = 1.0, []
    while (node := made_by(tensor, "Mul", "Div")) is not None:
        by = scalar(graph, node.inputs[1])
        rest = node.inputs[0]
        if by is None and node.op == "Mul":
            by, rest = scalar(graph, node.inputs[0]), node.inputs[1]
        if by is None or by == 0:
            break
        factor *= by if node.op == "Mul" else 1 / by
        nodes.append(node)
        tensor = rest
    return tensor, factor, nodes


def _reader(graph: ModelGraph, tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The only reader of a tensor, if it is one of these."""
    if not is_inner(graph, tensor) or len(tensor.outputs) != 1:
        return None
    node = tensor.outputs[0]
    return node if node.op == op and not node.domain else None


def _heads(graph: ModelGraph, tensor: gs.Tensor) -> Heads | None:
    turn = made_by(tensor, "Transpose")
    if turn is not None:
        split = made_by(turn.inputs[0], "Reshape") if permutation(turn) == (0, 2, 1, 3) else None
        nodes, order = [split, turn], (0, 1, 2, 3)
    else:
        split = made_by(tensor, "Reshape")  # of one position there is nothing to turn
        nodes, order = [split], (0, 2, 1, 3)
    if split is None:
        return None
    before, after = graph.shapes.get(split.inputs[0].name), graph.shapes.get(split.outputs[0].name)
    if before is None or after is None or len(before) != 3 or len(after) != 4:
        return None
    batch, length, heads, size = (after[axis] for axis in order)
    if not isinstance(heads, int) or not isinstance(size, int) or heads * size != before[2]:
        return None
    if batch is None or length is None or (batch, length) != before[:2] or (turn is None and length != 1):
        return None
    return Heads(split.inputs[0], heads, size, nodes)


def _cached(graph: ModelGraph, tensor: gs.Tensor) -> Cached | None:
    join = made_by(tensor, "Concat")
    if join is None or len(join.inputs) != 2 or join.attrs.get("axis") not in (2, -2):
        return None
    past, new = join.inputs
    heads, shape = _heads(graph, new), graph.shapes.get(past.name)
    if heads is None or shape is None or len(shape) != 4 or (shape[1], shape[3]) != (heads.heads, heads.size):
        return None
    return Cached(heads, past, tensor, [*heads.nodes, join])


def _turned_keys(graph: ModelGraph, tensor: gs.Tensor) -> Cached | None:
    turn = made_by(tensor, "Transpose")
    if turn is None or permutation(turn) != (0, 1, 3, 2):
        return None
    cached = _cached(graph, turn.inputs[0])
    return (
        Cached(cached.new, cached.past, cached.whole, [*cached.nodes, turn]) if cached is not None else None
    )


def _merged(graph: ModelGraph, mixed: gs.Tensor, query: Heads) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """The heads side by side again, ``[batch, length, heads size]``, and the nodes that put them so."""
    wanted = graph.shapes.get(query.source.name)
    turn = _reader(graph, mixed, "Transpose")
    if turn is not None and permutation(turn) != (0, 2, 1, 3):
        return None
    merge = _reader(graph, mixed if turn is None else turn.outputs[0], "Reshape")
    if merge is None or wanted is None or graph.shapes.get(merge.outputs[0].name) != wanted or None in wanted:
        return None
    if turn is None and wanted[1] != 1:
        return None
    return merge.outputs[0], [merge] if turn is None else [turn, merge]


# --- putting the operator in its place ---------------------------------------------------------


def _replace(graph: ModelGraph, match: Attention) -> str | None:
    packed = _packed(graph, match)
    if packed is None:
        return None
    products, product, bias = packed
    caches, whole, slicing, layer = _caches(graph, match)
    old = [*match.nodes, *products, *slicing]
    outputs = [match.result, *whole]
    shapes = [graph.shapes.get(tensor.name) for tensor in outputs]
    heads = graph.shared_constant(
        f"exprune/heads_{match.query.heads}", np.array([match.query.heads], np.int64)
    )
    scale = graph.constant(f"{match.name}/scale", np.array([match.scale], np.float32))
    detach(old)
    op = "StackedCachedAttention" if layer else "CachedAttention"
    inputs = [product.outputs[0], bias, *(gs.Variable(cache.name) for cache in caches), heads, scale, *layer]
    attention = gs.Node(op, graph.unique_name(f"{match.name}/{op}"), {}, inputs, outputs, domain=FUSED_DOMAIN)
    graph.replace(old, [product, attention])
    for tensor, shape in zip(outputs, shapes, strict=True):
        if shape is not None:
            graph.declare(tensor.name, onnx.TensorProto.FLOAT, shape)
    return op


def _caches(
    graph: ModelGraph, match: Attention
) -> tuple[list[gs.Tensor], list[gs.Tensor], list[gs.Node], list[gs.Constant]]:
    """The caches of keys and values before and after.

    Returns:
        Those before and those after. Where they are slices of all layers' caches and go back there: all layers', the
        slices that go back, the nodes that cut them out and expand them, and which slice it is.
    """
    gathers = [made_by(cached.past, "Gather") for cached in (match.key, match.value)]
    expanded = [_expanded(graph, cached) for cached in (match.key, match.value)]
    places = {
        _slice(graph, cached.past, gather)
        for cached, gather in zip((match.key, match.value), gathers, strict=True)
    }
    slicing = [node for node in (*gathers, *expanded) if node is not None]
    if len(places) != 1 or None in places or len(slicing) != 4:
        own = (match.key, match.value)
        return [cached.past for cached in own], [cached.whole for cached in own], [], []
    place = places.pop()
    layer = graph.shared_constant(f"exprune/layer_{place}", np.array([place], np.int64))
    caches, whole = [node.inputs[0] for node in slicing[:2]], [node.outputs[0] for node in slicing[2:]]
    return caches, whole, slicing, [layer]


def _expanded(graph: ModelGraph, cached: Cached) -> gs.Node | None:
    """The Unsqueeze that puts all keys or values of a layer into a slice of all layers'."""
    readers = [node for node in cached.whole.outputs if node.op == "Unsqueeze" and not node.domain]
    if len(readers) != 1 or graph.readers(cached.whole) != 2 or cached.whole.name in graph.outputs:
        return None
    axes = small_constant(graph, readers[0].inputs[1]) if len(readers[0].inputs) == 2 else None
    return readers[0] if axes is not None and axes.tolist() == [0] else None


def _slice(graph: ModelGraph, cache: gs.Tensor, gather: gs.Node | None) -> int | None:
    if gather is None or gather.attrs.get("axis", 0) != 0 or not is_inner(graph, cache):
        return None
    index = constant_of(graph, gather.inputs[1])
    if not isinstance(index, ConstantRef) or index.shape != ():
        return None
    layers = (graph.shapes.get(gather.inputs[0].name) or (None,))[0]
    place = int(index.load())
    if place < 0:
        return place + layers if isinstance(layers, int) and place + layers >= 0 else None
    return place


def _packed(graph: ModelGraph, match: Attention) -> tuple[list[gs.Node], gs.Node, gs.Constant] | None:
    """One product in the place of three: the nodes that go, the new one, and the biases of all."""
    width = match.query.heads * match.query.size
    sources = [match.query.source, match.key.new.source, match.value.new.source]
    old: list[gs.Node] = []
    weights, biases = [], []
    for tensor in sources:
        found = biased(graph, tensor)
        bias = np.zeros(width, np.float32)
        if found is not None:
            vector = constant_of(graph, found[2])
            assert isinstance(vector, ConstantRef)
            bias = vector.load()
            old.append(found[0])
        product = made_by(tensor if found is None else found[1], "MatMul")
        weight = constant_of(graph, product.inputs[1]) if product is not None else None
        if product is None or not isinstance(weight, ConstantRef) or weight.dtype != np.float32:
            return None
        if len(weight.shape) != 2 or weight.shape[1] != width or 12 * weight.shape[0] * width > _PACKED_BYTES:
            return None
        old.append(product)
        weights.append(weight)
        biases.append(bias)
    products = [node for node in old if node.op == "MatMul"]
    source = products[0].inputs[0]
    inner = [*sources, *(node.outputs[0] for node in products)]
    if any(node.inputs[0] is not source for node in products) or not all(is_inner(graph, t) for t in inner):
        return None
    name = products[0].name or products[0].outputs[0].name
    matrix = graph.constant(f"{name}/packed", np.concatenate([weight.load() for weight in weights], axis=1))
    bias = graph.constant(f"{name}/packed_bias", np.concatenate(biases))
    packed = gs.Variable(graph.unique_name(f"{name}/packed_product"), np.float32)
    shape = graph.shapes.get(sources[0].name)
    if shape is not None:
        graph.declare(packed.name, onnx.TensorProto.FLOAT, (*shape[:-1], 3 * width))
    new = gs.Node(
        "MatMul", graph.unique_name(f"{name}/MatMul"), {}, [gs.Variable(source.name), matrix], [packed]
    )
    return old, new, bias
