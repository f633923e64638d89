"""A decode step in the spellings of several exporters."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, SIZE, LAYERS, HIDDEN, TOKENS, POSITIONS = 3, 8, 2, 40, 50, 31
WIDTH = HEADS * SIZE


class Builder:
    """Collects nodes and arrays."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(seed)

    def op(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}", **attributes))
        return output

    def array(self, name: str, values: np.ndarray) -> str:
        self.arrays[name] = values
        return name

    def linear(self, x: str, name: str, inputs: int, outputs: int, bias: bool = True) -> str:
        weight = self.rng.standard_normal((inputs, outputs), np.float32) / np.float32(np.sqrt(inputs))
        product = self.op("MatMul", [x, self.array(f"{name}/W", weight)], f"{name}/product")
        if not bias:
            return product
        values = self.rng.standard_normal(outputs).astype(np.float32) * np.float32(0.1)
        return self.op("Add", [product, self.array(f"{name}/b", values)], name)

    def ints(self, name: str, *values: int) -> str:
        return self.array(name, np.array(values, np.int64))


def decoder(
    *,
    length: int | str = 1,
    stacked: bool = True,
    scaled: str = "scores",
    bias: bool = True,
    mask: bool = False,
    extra_reader: bool = False,
    cross: bool = False,
    computed_shapes: bool = True,
    positions: str = "",
    opset: int = 17,
) -> onnx.ModelProto:
    """One step of two layers.

    Args:
        length: New positions: a number, or a name.
        stacked: Caches of all layers in one tensor, or one pair of inputs a layer.
        scaled: Where the factor on the scores stands: ``scores``, ``divided`` or ``sides``.
        bias: Whether the projections have one.
        mask: Adds a mask to the scores.
        extra_reader: The shares are an output as well.
        cross: Keys and values come from another tensor.
        computed_shapes: Shapes are put together at run time.
        positions: How the place in a table of positions is worked out, see :func:`_positions`; empty: there is none.
        opset: Of the model.
    """
    b = Builder(0)
    x = b.op(
        "Gather",
        [b.array("embedding", b.rng.standard_normal((TOKENS, WIDTH), np.float32)), "token"],
        "embedded",
    )
    if positions:
        x = _positions(b, x, "past_keys" if stacked else "past_keys0", 3 if stacked else 2, positions)
    one, zero = b.array("one", np.ones(WIDTH, np.float32)), b.array("zero", np.zeros(WIDTH, np.float32))
    b.ints("first", 0)
    more_outputs: list[str] = []
    ends: dict[str, list[str]] = {"keys": [], "values": []}
    for i in range(LAYERS):
        y = b.op("LayerNormalization", [x, one, zero], f"norm{i}a")
        other = "memory" if cross else y
        parts = [
            b.linear(t, f"{n}{i}", WIDTH, WIDTH, bias)
            for n, t in (("query", y), ("key", other), ("value", other))
        ]
        heads = [_heads(b, part, computed_shapes) for part in parts]
        whole = []
        for kind, new in (("keys", heads[1]), ("values", heads[2])):
            past = f"past_{kind}{i}"
            if stacked:
                b.op("Gather", [f"past_{kind}", b.array(f"layer{i}", np.array(i, np.int64))], past, axis=0)
            joined = f"{kind}{i}" + "/all" * stacked
            whole.append(b.op("Concat", [past, new], joined, axis=2 if kind == "keys" else -2))
            if stacked:
                ends[kind].append(b.op("Unsqueeze", [whole[-1], "first"], f"{joined}/kept"))
        turned = b.op("Transpose", [whole[0]], f"turned{i}", perm=[0, 1, 3, 2])
        scores = _scores(b, heads[0], turned, scaled, i)
        if mask:
            scores = b.op("Add", [scores, "mask"], f"masked{i}")
        shares = b.op("Softmax", [scores], f"shares{i}", axis=-1)
        if extra_reader:
            more_outputs.append(b.op("Identity", [shares], f"seen{i}"))
        mixed = b.op("MatMul", [shares, whole[1]], f"mixed{i}")
        together = b.op("Transpose", [mixed], f"together{i}", perm=[0, 2, 1, 3])
        merged = b.op("Reshape", [together, b.ints("merge", 0, 0, WIDTH)], f"merged{i}")
        x = b.op("Add", [x, b.linear(merged, f"project{i}", WIDTH, WIDTH)], f"attended{i}")
        y = b.op("LayerNormalization", [x, one, zero], f"norm{i}b", epsilon=1e-4)
        active = b.op("Relu", [b.linear(y, f"up{i}", WIDTH, HIDDEN)], f"relu{i}")
        x = b.op("Add", [b.linear(active, f"down{i}", HIDDEN, WIDTH), x], f"x{i}")
    y = b.op("LayerNormalization", [x, one, zero], "last")
    b.op("ArgMax", [b.linear(y, "head", WIDTH, TOKENS, False)], "next", axis=-1, keepdims=0)
    if stacked:
        for kind, end in ends.items():
            b.op("Concat", end, kind, axis=0)
    value = helper.make_tensor_value_info
    size = [LAYERS] * stacked + ["batch", HEADS, "past", SIZE]
    total = [LAYERS] * stacked + ["batch", HEADS, "total", SIZE]
    names = ["keys", "values"] if stacked else [f"{kind}{i}" for i in range(LAYERS) for kind in ends]
    inputs = [value("token", TensorProto.INT64, ["batch", length])]
    inputs += [value(f"past_{n}", TensorProto.FLOAT, size) for n in names]
    inputs += [value("mask", TensorProto.FLOAT, [length, "total"])] if mask else []
    inputs += [value("memory", TensorProto.FLOAT, ["batch", length, WIDTH])] if cross else []
    outputs = [value("next", TensorProto.INT64, ["batch", length])]
    outputs += [value(n, TensorProto.FLOAT, total) for n in names]
    outputs += [value(n, TensorProto.FLOAT, ["batch", HEADS, length, "total"]) for n in more_outputs]
    graph = helper.make_graph(
        b.nodes, "step", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in b.arrays.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _positions(b: Builder, x: str, past: str, axis: int, how: str) -> str:
    """The next row of a table of :data:`POSITIONS` rows, added.

    ``gathered``, ``gathered vector`` or ``from Shape``: how the cache's length is taken out of its shape. ``swapped``:
    the sum's terms are. ``seen``: the row has another reader. ``second``: of the next row, the one behind it.
    """
    table = b.array("positions", b.rng.standard_normal((POSITIONS, WIDTH), np.float32))
    if how == "from Shape":
        start = b.op("Shape", [past], "start", start=axis, end=axis + 1)
        end = b.op("Add", [b.ints("place/next", 1), start], "end")
    elif how == "gathered vector":
        start = b.op("Gather", [b.op("Shape", [past], "sizes"), b.ints("axis", -2)], "start")
        end = b.op("Add", [start, b.ints("place/next", 1)], "end")
    else:
        index = b.array("axis", np.array(axis, np.int64))
        size = b.op("Gather", [b.op("Shape", [past], "sizes"), index], "place/size", axis=0)
        if how == "second":
            size = b.op("Add", [size, b.array("place/one more", np.array(1, np.int64))], "place/later")
        after = b.op("Add", [size, b.array("place/next", np.array(1, np.int64))], "after")
        start, end = (b.op("Unsqueeze", [each, b.ints("front", 0)], f"{each}/1") for each in (size, after))
    row = b.op("Slice", [table, start, end, b.ints("rows", 0)], "row")
    if how == "seen":
        x = b.op("Mul", [x, row], "seen")
    return b.op("Add", [row, x] if how == "swapped" else [x, row], "placed")


def _heads(b: Builder, part: str, computed: bool) -> str:
    """``[batch, length, width]`` as ``[batch, heads, length, size]``."""
    shape = b.ints("split", 0, 0, HEADS, SIZE)
    if computed:
        sizes = []
        for axis in (0, 1):
            own = b.op("Shape", [part], f"{part}/shape{axis}")
            size = b.op(
                "Gather", [own, b.array(f"axis{axis}", np.array(axis, np.int64))], f"{part}/size{axis}"
            )
            sizes.append(b.op("Unsqueeze", [size, "first"], f"{part}/size{axis}/1"))
        shape = b.op("Concat", [*sizes, b.ints("heads", HEADS), b.ints("rest", -1)], f"{part}/shape", axis=0)
    return b.op(
        "Transpose", [b.op("Reshape", [part, shape], f"{part}/apart")], f"{part}/heads", perm=[0, 2, 1, 3]
    )


def _scores(b: Builder, query: str, turned: str, scaled: str, i: int) -> str:
    if scaled == "sides":
        root = b.array("root", np.array(SIZE**-0.25, np.float32))
        sides = [b.op("Mul", [side, root], f"{side}/scaled") for side in (query, turned)]
        return b.op("MatMul", sides, f"scores{i}")
    product = b.op("MatMul", [query, turned], f"scores{i}")
    if scaled == "divided":
        return b.op("Div", [product, b.array("root", np.array(SIZE**0.5, np.float32))], f"scaled{i}")
    size = b.op("Cast", [b.array("size", np.array(SIZE, np.int64))], f"size{i}", to=TensorProto.FLOAT)
    factor = b.op("Pow", [size, b.array("power", np.array(-0.5, np.float32))], f"factor{i}")
    return b.op("Mul", [product, factor], f"scaled{i}")


def feeds(
    model: onnx.ModelProto, seed: int, batch: int = 2, past: int = 4, length: int = 1
) -> dict[str, np.ndarray]:
    """Random inputs."""
    rng, sizes = (
        np.random.default_rng(seed),
        {"batch": batch, "past": past, "length": length, "total": past + length},
    )
    made = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type == TensorProto.INT64:
            made[value.name] = rng.integers(TOKENS, size=shape)
        else:
            made[value.name] = rng.standard_normal(shape).astype(np.float32)
    return made
