"""Cases for the ops: random inputs of a given shape, models that hold one op, runners, comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from oracle import ORACLES, Outcome

from exprune_cli.functions import DOMAIN, VERSION, function_proto

LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
IR_VERSION = 8
#: The ops that work in chunks, and the sparse consumer; the others have tests of their own.
CHUNKED = tuple(ORACLES)


@dataclass
class Case:
    """One op with its inputs, in the op's order, and its attributes."""

    op: str
    inputs: dict[str, np.ndarray]
    attributes: dict[str, object] = field(default_factory=dict)

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """What the model is fed; an offset of one element is an initializer."""
        return {
            name: a for name, a in self.inputs.items() if name == "X" or (name == "offset" and a.size != 1)
        }

    def oracle(self) -> Outcome:
        """What must come out of the op with its kernel; see :func:`compare` for functions."""
        with np.errstate(all="ignore"):
            return ORACLES[self.op](*self.inputs.values(), **self.attributes)


def _ends(rng: np.random.Generator, groups: int, chunks: int) -> np.ndarray:
    inner = rng.choice(np.arange(1, groups), size=min(chunks, groups) - 1, replace=False)
    return np.array([*sorted(inner), groups], np.int64)


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def make_case(
    op: str,
    seed: int = 0,
    *,
    lead: Sequence[int] = (5,),
    outputs: int = 6,
    groups: int = 12,
    chunks: int = 3,
    ends: Sequence[int] | None = None,
    full_offset: bool = False,
    ceiling: float = math.inf,
    size: Sequence[int] = (6, 5),
    kernel: Sequence[int] = (3, 3),
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    z: float = -0.8,
    keepdims: int = 0,
    select_last_index: int = 0,
) -> Case:
    """A random case. ``lead`` are the leading dimensions, the batch alone for a Conv."""
    rng = np.random.default_rng(seed)
    if op == "SparseGemm":
        x = np.maximum(_floats(rng, *lead, groups), 0)
        return Case(op, {"X": x, "W": _floats(rng, groups, outputs), "bias": _floats(rng, outputs)})
    conv = "Conv" in op
    taps = tuple(kernel) if conv else ()
    x = _floats(rng, lead[0], groups, *size) if conv else _floats(rng, *lead, groups)
    ends = _ends(rng, groups, chunks) if ends is None else np.array(ends, np.int64)
    weights = _floats(rng, outputs, groups, *taps) / np.float32(math.sqrt(groups * math.prod(taps)))
    checks, head = len(ends) - 1, int(ends[0])
    if op.endswith(("ConvRelu", "PrefixConvBlock", "ConvReluPanel", "PrefixConvPanel")):
        return _block_case(rng, op, x, weights, ends, full_offset, ceiling, strides, dilations, pads)
    inputs = {"X": x, "order": rng.permutation(groups).astype(np.int64), "ends": ends}
    if op == "SparseConvThreshold":
        inputs["X"] = np.where(x < 0.2, np.float32(0), x)
        inputs["W"] = np.ascontiguousarray(np.moveaxis(weights, 0, -1))
    else:
        inputs["W_head"] = np.ascontiguousarray(weights[:, :head])
        inputs["W_tail"] = np.ascontiguousarray(weights[:, head:])
    inputs["bias"] = _floats(rng, outputs) * np.float32(0.2)
    attributes: dict[str, object] = {}
    if conv:
        rank = len(kernel)
        attributes = {
            "strides": list(strides or [1] * rank),
            "dilations": list(dilations or [1] * rank),
            "pads": list(pads if pads is not None else [1] * 2 * rank),
        }
    if "ArgMax" in op:
        attributes |= {"keepdims": keepdims, "select_last_index": select_last_index}
    else:
        inputs["offset"] = np.zeros(1, np.float32)
        inputs["max"] = np.array([ceiling], np.float32)
        if full_offset:
            inputs["offset"] = _floats(rng, *_output_shape(op, inputs, attributes))
    if op.endswith("Stats"):
        attributes["z"] = float(np.float32(z))
    elif op.endswith("Bound"):
        flat = weights.reshape(outputs, groups, -1)
        rest = [np.sqrt((flat[:, e:].astype(np.float64) ** 2).sum(axis=(1, 2))) for e in ends[:-1]]
        inputs["radius"] = (np.array(rest) * (1 + 1e-6)).astype(np.float32)
        inputs["slack"] = np.full((checks, outputs), 1e-5, np.float32)
    elif "ArgMax" in op:
        inputs["scale"] = 1 + abs(_floats(rng, checks, outputs)) * np.float32(0.3)
        inputs["shift"] = _floats(rng, checks, outputs) * np.float32(0.2)
        inputs["margin"] = abs(_floats(rng, checks, outputs)) * np.float32(0.4)
    else:
        inputs["scale"] = 1 + abs(_floats(rng, checks, outputs)) * np.float32(0.3)
        inputs["limit"] = _floats(rng, checks, outputs) * np.float32(0.3)
    return Case(op, inputs, attributes)


def _block_case(rng, op, x, weights, ends, full_offset, ceiling, strides, dilations, pads) -> Case:
    outputs, groups, *kernel = weights.shape
    rank, checks = len(kernel), len(ends) - 1
    inputs = {
        "X": x,
        "W": np.ascontiguousarray(np.moveaxis(weights, 0, 1)),
        "bias": _floats(rng, outputs) * np.float32(0.2),
        "offset": np.zeros(1, np.float32),
        "max": np.array([ceiling], np.float32),
    }
    attributes: dict[str, object] = {
        "strides": list(strides or [1] * rank),
        "dilations": list(dilations or [1] * rank),
        "pads": list(pads if pads is not None else [1] * 2 * rank),
    }
    if full_offset:
        inputs["offset"] = _floats(rng, *_output_shape(op, inputs, attributes))
    if op.endswith("Panel"):
        return _panel_case(rng, op, inputs, ends, attributes)
    if op == "ConvRelu":
        return Case(op, inputs, attributes)
    run = int(rng.integers(1, 20))
    first = {"X": inputs.pop("X"), "order": rng.permutation(groups).astype(np.int64), "ends": ends}
    if op == "DynamicPrefixConvBlock":
        size = np.exp(_floats(rng, *x.shape[:2])).reshape(*x.shape[:2], *[1] * rank)
        energies = np.square(inputs["W"]).reshape(groups, -1).sum(axis=1)
        first = {"X": x * size, "weight_energy": energies, "ends": ends}
    more = {
        "scale": 1 + abs(_floats(rng, checks, outputs)) * np.float32(0.3),
        "shift": _floats(rng, checks, outputs) * np.float32(0.3),
        "limit": abs(_floats(rng, checks, outputs)) * np.float32(0.5 * run),
        "block": np.array([run], np.int64),
    }
    return Case(op, first | inputs | more, attributes)


def _panel_case(rng, op, inputs, ends, attributes) -> Case:
    """The same in panels of 16 outputs, whose order is that of ``channels``."""
    groups, outputs, *kernel = inputs["W"].shape
    checks, panels = len(ends) - 1, -(-outputs // 16)
    channels = np.arange(outputs) if op == "ConvReluPanel" else rng.permutation(outputs)
    rows = np.zeros((16 * panels, groups, *kernel), np.float32)
    rows[:outputs] = np.moveaxis(inputs["W"], 0, 1)[channels]
    turned = np.moveaxis(rows.reshape(panels, 16, groups, *kernel), (1, 2), (-1, -2))
    inputs["W"] = np.ascontiguousarray(turned)
    if op == "ConvReluPanel":
        return Case(op, inputs, attributes)
    first = {"X": inputs.pop("X"), "order": rng.permutation(groups).astype(np.int64), "ends": ends}
    more = {
        "scale": 1 + abs(_floats(rng, checks, outputs)) * np.float32(0.3),
        "shift": _floats(rng, checks, outputs) * np.float32(0.3),
        "limit": abs(_floats(rng, checks, panels)) * np.float32(0.5 * min(outputs, 16)),
        "channels": channels.astype(np.int64),
    }
    return Case(op, first | inputs | more, attributes)


def _output_shape(op: str, inputs: dict[str, np.ndarray], attributes: dict[str, object]) -> tuple[int, ...]:
    x, n = inputs["X"], inputs["bias"].size
    if "Conv" not in op:
        return (*x.shape[:-1], n)
    kernel = inputs["W" if "W" in inputs else "W_head"].shape[2:]
    if op == "SparseConvThreshold":
        kernel = inputs["W"].shape[1:-1]
    rank = len(kernel)
    strides, dilations, pads = (attributes[k] for k in ("strides", "dilations", "pads"))
    out = [
        (x.shape[2 + a] + pads[a] + pads[rank + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    ]
    return (x.shape[0], n, *out)


def op_node(case: Case) -> onnx.NodeProto:
    outputs = ["index" if "ArgMax" in case.op else "Y", "survivors"]
    return helper.make_node(
        case.op, list(case.inputs), outputs, name="staged", domain=DOMAIN, **case.attributes
    )


def op_model(case: Case, opset: int, branch: bool = False) -> onnx.ModelProto:
    """A model of one staged node; with ``branch``, inside the then-branch of an If."""
    feeds = case.feeds
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(a.ndim)])
        for name, a in feeds.items()
    ]
    weights = [numpy_helper.from_array(a, name) for name, a in case.inputs.items() if name not in feeds]
    node = op_node(case)
    kind = TensorProto.INT64 if "ArgMax" in case.op else TensorProto.FLOAT
    if "ArgMax" in case.op:
        rank = case.inputs["X"].ndim - 1 + case.attributes["keepdims"]
    else:
        rank = case.inputs["X"].ndim
    result = helper.make_tensor_value_info(node.output[0], kind, [f"out{axis}" for axis in range(rank)])
    count = helper.make_tensor_value_info("survivors", TensorProto.INT64, ["checks"])
    nodes = [node]
    if branch:
        inner = helper.make_graph([node], "taken", [], [result, count])
        empty = [
            helper.make_node("Constant", [], ["n0"], value=numpy_helper.from_array(np.zeros(1, np.int64))),
            helper.make_node("Cast", ["n0"], ["r0"], to=kind),
        ]
        other = helper.make_graph(
            empty,
            "other",
            [],
            [
                helper.make_tensor_value_info("r0", kind, None),
                helper.make_tensor_value_info("n0", TensorProto.INT64, None),
            ],
        )
        # the condition depends on an input, or optimisers would take the branch away
        nodes = [
            helper.make_node("Shape", ["X"], ["x_shape"]),
            helper.make_node("Size", ["x_shape"], ["x_rank"]),
            helper.make_node("Cast", ["x_rank"], ["has_rank"], to=TensorProto.BOOL),
            helper.make_node(
                "If", ["has_rank"], [node.output[0], "survivors"], then_branch=inner, else_branch=other
            ),
        ]
    graph = helper.make_graph(nodes, "g", inputs, [result, count], weights)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[function_proto(case.op, opset)],
        ir_version=IR_VERSION,
    )


def run_ort(
    model: onnx.ModelProto, case: Case, level: str = "all", options: ort.SessionOptions | None = None
):
    options = options or ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, case.feeds)


def run_reference(model: onnx.ModelProto, case: Case):
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, case.feeds)


def run_inlined(model: onnx.ModelProto, case: Case):
    import onnx.inliner

    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    onnx.checker.check_model(inlined, full_check=True)
    return run_ort(inlined, case)


RUNNERS = {
    "ort-disable": lambda m, c: run_ort(m, c, "disable"),
    "ort-basic": lambda m, c: run_ort(m, c, "basic"),
    "ort-all": lambda m, c: run_ort(m, c, "all"),
    "reference": run_reference,
    "inlined": run_inlined,
}


def _as_rows(case: Case, values: np.ndarray) -> np.ndarray:
    """``[R, N]`` as the oracle counts rows."""
    values = np.moveaxis(values, 1, -1) if "Conv" in case.op else values
    return values.reshape(-1, case.inputs["bias"].size)


def compare(
    case: Case, got: Sequence[np.ndarray], *, kernel: bool = False, tolerance: float = 1e-5
) -> Outcome:
    """Assert that ``got`` is what the oracle says, up to decisions that rounding can change.

    Args:
        kernel: Whether a lossless op's survivors are those of its test (a native kernel), not all.
        tolerance: Of ``Y``, relative to the larger of 1 and the largest finite ``|Y|``.
    """
    want = case.oracle()
    output, survivors = got
    assert survivors.dtype == np.int64
    lossless = case.op.endswith("Bound") and not kernel
    assert not case.op.startswith("ConvRelu") or survivors.shape == (0,)
    if lossless:
        everything = want.distance.shape[1] * want.distance.shape[2]
        assert survivors.tolist() == [everything] * len(want.survivors)
    else:
        slack = _survivor_slack(case, want)
        assert survivors.shape == want.survivors.shape
        assert (abs(survivors - want.survivors) <= slack).all(), (survivors, want.survivors, slack)
    assert output.shape == want.output.shape, (output.shape, want.output.shape)
    # without a kernel a lossless op decides nothing, so nothing is unsure but a head's ties
    unsure = want.unsure[-1] if len(want.unsure) else np.zeros((1, 1), bool)
    if "ArgMax" in case.op:
        assert output.dtype == np.int64
        sure = ~unsure.any(axis=-1)
        index, expected = output.reshape(-1), want.output.reshape(-1)
        assert ((index == expected) | (expected == -1) | ~sure).all(), (index, expected)
        return want
    assert output.dtype == np.float32
    y, expected = _as_rows(case, output), _as_rows(case, want.output)
    finite = np.isfinite(expected)
    unit = max(1.0, abs(expected[finite]).max(initial=0))
    with np.errstate(invalid="ignore"):
        same = (y == expected) | (np.isnan(y) & np.isnan(expected)) | (abs(y - expected) <= tolerance * unit)
    assert (same | unsure).all(), (y[~same], expected[~same])
    return want


def _survivor_slack(case: Case, want: Outcome) -> np.ndarray:
    """How many survivors rounding can add or take away, per check."""
    unsure = want.unsure
    if "ArgMax" in case.op:  # one decision can decide the row
        unsure = np.broadcast_to(unsure.any(axis=-1, keepdims=True), unsure.shape)
    slack = unsure.sum(axis=(1, 2))
    if case.op == "SparseConvThreshold":  # a decision can change all work of the chunks after it
        ends = case.inputs["ends"]
        weights = case.inputs["W"][..., 0].size // ends[-1]
        slack = np.concatenate([slack, [0], slack * np.diff(ends) * weights])
    return slack
