"""What all rules share: reading a linear op, and folding what stands between it and its end.

:func:`read_linear` turns a Gemm, MatMul or Conv with constant weights into a :class:`Linear`;
:func:`follow` walks on from its result through biases, BatchNormalization and at most one added
tensor. Both answer with a :class:`Reason` where they cannot go on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from exprune_cli.rules._constants import ConstantRef, Reason, constant_of, small_constant
from exprune_cli.rules._pads import fold_pad

from exprune_cli.graph import ModelGraph
from exprune_cli.sites import ConvGeometry, Site

LINEAR_OPS = ("Gemm", "MatMul", "Conv")
#: What may follow an added tensor on the way to a ReLU, and the ReLUs themselves.
_BEFORE_RELU = ("Add", "BatchNormalization", "Identity", "Dropout", "Relu", "Clip")


@dataclass(frozen=True)
class Linear:
    """A linear op, with what was folded into it on the way to ``tensor``.

    Attributes:
        node: The Gemm, MatMul or Conv.
        input: Its data input.
        outputs, groups: ``N`` and ``G``.
        weight: Name of the constant that holds the weight.
        read_weight: Returns the constant weight as ``[N, G, T]`` float32, unscaled.
        scale, bias: ``[N]`` float64: factor on the weight, and all constant offsets.
        conv: Geometry of a Conv.
        transposed_input: The data input is ``[G, M]``.
        separate_pad: Some of a Conv's pads come from a Pad before it, which is folded.
        offset: A computed tensor that is added.
        nodes: All nodes folded so far, the linear one first.
        tensor: The result after the last of them.
        stop: Why :func:`follow` went no further.
    """

    node: gs.Node
    input: gs.Tensor
    outputs: int
    groups: int
    weight: str
    read_weight: Callable[[], np.ndarray]
    scale: np.ndarray
    bias: np.ndarray
    tensor: gs.Tensor
    conv: ConvGeometry | None = None
    transposed_input: bool = False
    separate_pad: bool = False
    offset: str | None = None
    nodes: list[gs.Node] = field(default_factory=list)
    stop: Reason | None = None

    @property
    def name(self) -> str:
        """The node's name, or its first output's."""
        return str(self.node.name or self.node.outputs[0].name)

    def load_weight(self) -> np.ndarray:
        """The weight with the folded factor, ``[N, G, T]`` float32."""
        weight = self.read_weight()
        if np.all(self.scale == 1):
            return weight
        scaled: np.ndarray = (weight * self.scale[:, None, None]).astype(np.float32)
        return scaled


def as_site(linear: Linear, rule: str, kind: str, **more: object) -> Site:
    """The site that a matched linear op is; ``more`` are the fields that its kind adds."""
    return Site(
        name=linear.name,
        op=linear.node.op,
        rule=rule,
        kind=kind,
        input=linear.input.name,
        output=linear.tensor.name,
        outputs=linear.outputs,
        groups=linear.groups,
        bias=linear.bias.astype(np.float32),
        weight=linear.weight,
        load_weight=linear.load_weight,
        nodes=tuple(node.outputs[0].name for node in linear.nodes),
        **more,  # type: ignore[arg-type]
    )


# --- the linear op ---------------------------------------------------------------------------


def read_linear(graph: ModelGraph, node: gs.Node) -> Linear | Reason:
    """Reads a Gemm, MatMul or Conv whose weight is constant."""
    return _read_conv(graph, node) if node.op == "Conv" else _read_matrix(graph, node)


def _weight(graph: ModelGraph, tensor: gs.Tensor) -> ConstantRef | Reason:
    constant = constant_of(graph, tensor)
    if constant is None:
        return Reason("computed-weight", f"its weight '{tensor.name}' is computed, not constant")
    if isinstance(constant, ConstantRef) and constant.dtype != np.float32:
        return Reason("dtype", f"its weight '{tensor.name}' is {constant.dtype}, not float32")
    return constant


def _read_matrix(graph: ModelGraph, node: gs.Node) -> Linear | Reason:
    gemm = node.op == "Gemm"
    weight = _weight(graph, node.inputs[1])
    left = constant_of(graph, node.inputs[0])
    if isinstance(left, ConstantRef):
        if isinstance(weight, ConstantRef):
            return Reason("constant-input", "both operands are constant")
        return Reason("weight-on-the-left", "the constant is the left operand: only X W is staged")
    if isinstance(weight, Reason):
        return weight
    if len(weight.shape) != 2:
        return Reason("weight-rank", f"its weight has {len(weight.shape)} dimensions, not 2")
    transposed = bool(gemm and node.attrs.get("transB", 0))
    outputs, groups = weight.shape if transposed else weight.shape[::-1]
    if not gemm and graph.rank(node.inputs[0].name) == 1:
        return Reason("input-rank", "its input is a vector without a leading dimension")
    alpha, beta = (_factor(node, name) if gemm else 1.0 for name in ("alpha", "beta"))
    if alpha is None or beta is None:
        return Reason("odd-attributes", "its alpha or beta is no finite number")
    linear = Linear(
        node=node,
        input=node.inputs[0],
        outputs=outputs,
        groups=groups,
        weight=weight.name,
        read_weight=lambda: _as_groups(weight.load() if transposed else weight.load().T),
        scale=np.full(outputs, alpha),
        bias=np.zeros(outputs),
        tensor=node.outputs[0],
        transposed_input=bool(gemm and node.attrs.get("transA", 0)),
        nodes=[node],
    )
    if gemm and len(node.inputs) > 2 and node.inputs[2].name:
        return _gemm_addend(graph, linear, node.inputs[2], beta)
    return _size_problem(linear) or linear


def _factor(node: gs.Node, name: str) -> float | None:
    value = node.attrs.get(name, 1.0)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _gemm_addend(graph: ModelGraph, linear: Linear, addend: gs.Tensor, beta: float) -> Linear | Reason:
    values = small_constant(graph, addend)
    if values is not None:
        folded = _fold_bias(graph, linear, values * beta if beta != 1 else values)
        if folded is None:
            return Reason("gemm-c", f"its constant C '{addend.name}' differs from row to row")
        return _size_problem(folded) or folded
    if isinstance(constant_of(graph, addend), Reason):
        return Reason("overridable-weight", f"its bias '{addend.name}' is a graph input that callers may set")
    if beta != 1 or not graph.same_shape(addend.name, linear.tensor.name):
        return Reason("gemm-c", f"its computed C '{addend.name}' is scaled or broadcast")
    return _size_problem(linear) or dataclasses.replace(linear, offset=addend.name)


def _as_groups(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight, np.float32).reshape(*weight.shape, 1)


def _size_problem(linear: Linear) -> Reason | None:
    # A Conv of one channel cannot be cut into chunks, but its exact kernel may be faster.
    if linear.groups < (1 if linear.conv else 2):
        return Reason("too-small", f"it sums over {linear.groups} group: nothing to stage")
    if linear.outputs < 1:
        return Reason("too-small", "it has no outputs")
    return None


def _read_conv(graph: ModelGraph, node: gs.Node) -> Linear | Reason:
    weight = _weight(graph, node.inputs[1])
    if isinstance(weight, Reason):
        return weight
    if node.attrs.get("group", 1) != 1:
        return Reason("grouped-conv", f"a grouped Conv (group = {node.attrs['group']}) is not staged")
    if len(weight.shape) not in (3, 4):
        return Reason("conv-rank", f"a {len(weight.shape) - 2}-D Conv is not staged (1-D and 2-D are)")
    outputs, groups, *kernel = weight.shape
    geometry = _geometry(graph, node, tuple(kernel))
    if isinstance(geometry, Reason):
        return geometry
    padded = fold_pad(graph, node, geometry)
    data, nodes = node.inputs[0], [node]
    if padded is not None:
        data, geometry, pad = padded
        nodes.append(pad)
    bias = np.zeros(outputs)
    if len(node.inputs) > 2 and node.inputs[2].name:
        values = small_constant(graph, node.inputs[2])
        if values is None:
            return Reason("computed-bias", f"its bias '{node.inputs[2].name}' is not constant")
        bias = values.astype(np.float64)
    taps = math.prod(kernel)
    linear = Linear(
        node=node,
        input=data,
        outputs=outputs,
        groups=groups,
        weight=weight.name,
        read_weight=lambda: np.ascontiguousarray(weight.load(), np.float32).reshape(outputs, groups, taps),
        scale=np.ones(outputs),
        bias=bias,
        tensor=node.outputs[0],
        conv=geometry,
        nodes=nodes,
        separate_pad=padded is not None,
    )
    return _size_problem(linear) or linear


def _geometry(graph: ModelGraph, node: gs.Node, kernel: tuple[int, ...]) -> ConvGeometry | Reason:
    rank = len(kernel)
    odd = _odd_attributes(node, kernel)
    if odd is not None:
        return odd
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(node.attrs.get("pads") or (0,) * (2 * rank))
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    else:
        shape = graph.shapes.get(node.inputs[0].name)
        begins, ends = [], []
        for axis in range(rank):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            size = shape[2 + axis] if shape is not None and len(shape) == rank + 2 else None
            if strides[axis] == 1:
                total = reach - 1
            elif isinstance(size, int):
                total = max((math.ceil(size / strides[axis]) - 1) * strides[axis] + reach - size, 0)
            else:
                return Reason(
                    "auto-pad", f"auto_pad = {auto} with a stride and an input size that is not fixed"
                )
            half, rest = total // 2, total - total // 2
            begins.append(half if auto == "SAME_UPPER" else rest)
            ends.append(rest if auto == "SAME_UPPER" else half)
        pads = (*begins, *ends)
    if any(p < 0 for p in pads):
        return Reason("negative-pads", "negative pads are not staged")
    return ConvGeometry(kernel, strides, dilations, pads)


def _odd_attributes(node: gs.Node, kernel: tuple[int, ...]) -> Reason | None:
    """Why a Conv's attributes are none that a Conv can have."""
    rank = len(kernel)
    shape = node.attrs.get("kernel_shape")
    for name, length, least in (("strides", rank, 1), ("dilations", rank, 1), ("pads", 2 * rank, None)):
        values = node.attrs.get(name) or ()
        whole = isinstance(values, (list, tuple)) and all(isinstance(value, int) for value in values)
        if not whole or (values and len(values) != length) or any(abs(value) >= 2**31 for value in values):
            return Reason("odd-attributes", f"its {name} are not {length} sizes")
        if least is not None and min(values, default=least) < least:
            return Reason("odd-attributes", f"its {name} are not positive")
    if shape and tuple(shape) != kernel:
        return Reason("odd-attributes", "its kernel_shape is not its weight's")
    return None


# --- what follows it -------------------------------------------------------------------------


def follow(graph: ModelGraph, linear: Linear, *, offset: bool = True) -> Linear:
    """Folds what follows a linear op: constant Adds, BatchNormalization, one computed Add.

    Args:
        graph: The graph.
        linear: From :func:`read_linear`.
        offset: Whether a computed tensor may be added (the head has no use for it).

    Returns:
        The linear op with everything folded, ``stop`` saying why the walk ended there.
    """
    while True:
        node = only_reader(graph, linear.tensor)
        if isinstance(node, Reason):
            return dataclasses.replace(linear, stop=node)
        step = _fold(graph, linear, node, offset)
        if step is None:
            text = (
                f"its result goes to {node.op} '{node.name or node.outputs[0].name}', not to a ReLU or ArgMax"
            )
            return dataclasses.replace(linear, stop=Reason("other-activation", text))
        if isinstance(step, Reason):
            return dataclasses.replace(linear, stop=step)
        linear = dataclasses.replace(step, nodes=[*linear.nodes, node], tensor=node.outputs[0])


def only_reader(graph: ModelGraph, tensor: gs.Tensor) -> gs.Node | Reason:
    """The one node that reads ``tensor``, or why there is not exactly one."""
    if tensor.name in graph.outputs:
        return Reason("graph-output", f"its result '{tensor.name}' is an output of the model")
    count = graph.readers(tensor)
    if count != 1:
        return Reason("several-readers", f"its result '{tensor.name}' is read in {count} places")
    readers = [node for node in tensor.outputs if any(t is tensor for t in node.inputs)]
    if len(readers) != 1 or not graph.holds(readers[0]):
        return Reason("subgraph-reader", f"its result '{tensor.name}' is read inside a subgraph")
    return readers[0]


def _fold(graph: ModelGraph, linear: Linear, node: gs.Node, offset: bool) -> Linear | Reason | None:
    if node.domain:
        return None
    if node.op in ("Identity", "Dropout"):
        if node.op == "Dropout" and (len(node.outputs) > 1 and graph.readers(node.outputs[1])):
            return Reason("dropout-mask", "the mask of its Dropout is read")
        if (
            len(node.inputs) > 2
            and node.inputs[2].name
            and np.any(small_constant(graph, node.inputs[2]) != 0)
        ):
            return Reason("training", "its Dropout is in training mode")
        return linear
    if node.op == "Add":
        other = node.inputs[1] if node.inputs[0] is linear.tensor else node.inputs[0]
        if other is linear.tensor:
            return None
        values = small_constant(graph, other)
        if values is not None:
            folded = _fold_bias(graph, linear, values)
            return folded or Reason("bias-shape", f"the constant '{other.name}' is not one value per output")
        # An Add that no ReLU can follow (a residual stream) is no offset: say that, not its shape.
        return _fold_offset(graph, linear, node, other) if offset and _goes_on(graph, node) else None
    if node.op == "BatchNormalization":
        return _fold_batch_norm(graph, linear, node)
    return None


def _goes_on(graph: ModelGraph, node: gs.Node) -> bool:
    after = only_reader(graph, node.outputs[0])
    return not isinstance(after, Reason) and after.op in _BEFORE_RELU


def _fold_bias(graph: ModelGraph, linear: Linear, values: np.ndarray) -> Linear | None:
    """Adds a constant that has one value per output (or one for all)."""
    if values.dtype != np.float32:
        return None
    axis = -1 - len(linear.conv.kernel) if linear.conv else -1
    rank = _rank(graph, linear)
    if values.ndim > 1 and (rank is None or values.ndim > rank):
        return None
    if values.size == 1:
        return dataclasses.replace(linear, bias=linear.bias + float(values.reshape(())))
    if values.ndim < -axis or values.shape[axis] != linear.outputs or values.size != linear.outputs:
        return None
    return dataclasses.replace(linear, bias=linear.bias + values.reshape(-1).astype(np.float64))


def _rank(graph: ModelGraph, linear: Linear) -> int | None:
    if linear.conv:
        return 2 + len(linear.conv.kernel)
    return 2 if linear.node.op == "Gemm" else graph.rank(linear.tensor.name)


def _fold_offset(graph: ModelGraph, linear: Linear, node: gs.Node, other: gs.Tensor) -> Linear | Reason:
    if linear.offset is not None:
        return Reason("two-offsets", "more than one computed tensor is added before the ReLU")
    if not graph.same_shape(other.name, linear.tensor.name):
        return Reason(
            "offset-shape", f"the added tensor '{other.name}' is not known to have the output's shape"
        )
    return dataclasses.replace(linear, offset=other.name)


def _fold_batch_norm(graph: ModelGraph, linear: Linear, node: gs.Node) -> Linear | Reason:
    if linear.offset is not None:
        return Reason("norm-after-offset", "a BatchNormalization follows an added tensor")
    if linear.conv is None and _rank(graph, linear) != 2:
        return Reason("norm-axis", "its BatchNormalization does not run over the output axis")
    if node.attrs.get("training_mode", 0) or sum(1 for t in node.outputs if t.name) > 1:
        return Reason("training", "its BatchNormalization is in training mode")
    found = [small_constant(graph, tensor) for tensor in node.inputs[1:5]]
    parameters = [p for p in found if p is not None and p.dtype == np.float32 and p.size == linear.outputs]
    if len(parameters) < len(found):
        return Reason("norm-parameters", "its BatchNormalization has computed or odd parameters")
    gamma, beta, mean, variance = (p.astype(np.float64).reshape(-1) for p in parameters)
    factor = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return dataclasses.replace(linear, scale=linear.scale * factor, bias=(linear.bias - mean) * factor + beta)
