"""Every op: a random valid call of it, a model of it with its function, and what its inputs are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from exprune_cli.functions import OPS, function_proto
from exprune_cli.planning.bound import bound_parameters

from . import quantized
from .cases import KINDS, random_site
from .test_block_conv import block_inputs, exact_inputs, inputs_of
from .test_low_rank import case as low_rank_case
from .test_panel_conv import panel_inputs
from .test_sparse_conv import sparse_inputs

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
#: What the sound bounds rest on: with other values there the result is nobody's promise.
PROMISES = {"radius", "slack", "codes", "scale", "error", "norm"}
HEADS = {op for op in OPS if "ArgMax" in op or "TopK" in op}


@dataclass
class Call:
    """One run of one op: inputs in order, and the node's attributes."""

    op: str
    inputs: dict[str, np.ndarray]
    attributes: dict = field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        """Whether the op's function is the dense layer."""
        return self.op.endswith("Bound") or self.op in ("SparseGemm", "ConvRelu", "ConvReluPanel")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the op's outputs."""
        if self.op == "QuantizedTopKBound":
            return ("values", "indices", "survivors")
        return ("index" if self.op in HEADS else "Y", "survivors")


def valid(op: str, rng: np.random.Generator) -> Call:
    """A random call that the op must take."""
    seed = int(rng.integers(2**31))
    rows = int(rng.choice([0, 1, 2, 4, 5, 16, 17, 40]))
    outputs = int(rng.choice([1, 3, 16, 33, 70, 300]))
    groups = int(rng.choice([2, 3, 16, 31, 64, 130]))
    flags = {"keepdims": int(rng.integers(2)), "select_last_index": int(rng.integers(2))}
    if op == "SparseGemm":
        x = rng.standard_normal((rows, groups)).astype(np.float32)
        x[rng.random(x.shape) < 0.8] = 0
        w = rng.standard_normal((groups, outputs)).astype(np.float32)
        return Call(op, {"X": x, "W": w, "bias": w[0].copy()})
    if op.startswith("Quantized"):
        kind = op[len("Quantized") : -len("Bound")]
        sizes = {"rows": rows, "outputs": outputs, "groups": groups, "bits": int(rng.choice([6, 8]))}
        inputs = quantized.good(kind, seed=seed, k=int(rng.integers(1, 65)), **sizes)
        return Call(op, inputs, flags if kind == "ArgMax" else {})
    if op.startswith("LowRank"):
        kind = op[len("LowRank") : -len("Threshold")]
        rank, full = int(rng.integers(2, 12)), bool(rng.integers(2))
        inputs = low_rank_case(kind, seed, (rows,), outputs=outputs, groups=groups, rank=rank, full=full)
        return Call(op, inputs, flags if op in HEADS else {})
    if op in ("ConvRelu", "PrefixConvBlock", "DynamicPrefixConvBlock"):
        shape = {**_conv(rng), "block": int(rng.choice([1, 5, 16, 64]))}
        more = {"batch": min(rows, 5), "outputs": min(outputs, 33), "groups": min(groups, 16)}
        full, clipped = bool(rng.integers(2)), bool(rng.integers(2))
        inputs, attributes = block_inputs(seed, **shape, **more, full=full, clipped=clipped)
        return Call(op, inputs_of(op, inputs), attributes)
    if op == "SparseConvThreshold":
        more = {"batch": min(rows, 5), "outputs": min(outputs, 33), "groups": min(groups, 16)}
        full, clipped = bool(rng.integers(2)), bool(rng.integers(2))
        inputs, attributes = sparse_inputs(seed, **_conv(rng), **more, full=full, clipped=clipped)
        return Call(op, inputs, attributes)
    if op in ("ConvReluPanel", "PrefixConvPanel"):
        more = {"batch": min(rows, 5), "outputs": min(outputs, 33), "groups": min(groups, 16)}
        full, clipped = bool(rng.integers(2)), bool(rng.integers(2))
        inputs, attributes = panel_inputs(seed, **_conv(rng), **more, full=full, clipped=clipped)
        return Call(op, exact_inputs(inputs) if op == "ConvReluPanel" else inputs, attributes)
    return _prefix(op, rng, rows, outputs, groups, flags)


def _conv(rng: np.random.Generator) -> dict:
    rank = int(rng.integers(1, 3))
    pick = lambda *choices: tuple(int(rng.choice(choices)) for _ in range(rank))
    shape = {"size": pick(5, 7, 12), "kernel": pick(1, 2, 3), "strides": pick(1, 1, 2)}
    pads = tuple(int(rng.integers(0, 3)) for _ in range(2 * rank))
    return {**shape, "dilations": pick(1, 1, 2), "pads": pads}


def _prefix(op: str, rng: np.random.Generator, rows: int, outputs: int, groups: int, flags: dict) -> Call:
    family = next(f for f in ("Gemm", "Conv", "ArgMax") if op.startswith("Prefix" + f))
    kind = next(k for k in KINDS if op.endswith(k))
    attributes: dict = {}
    kernel: tuple[int, ...] = ()
    shape: tuple[int, ...] = (rows, groups)
    if family == "Conv":
        conv = _conv(rng)
        outputs, groups, kernel = min(outputs, 33), min(groups, 16), conv["kernel"]
        shape = (min(rows, 3), groups, *conv["size"])
        attributes = {k: list(conv[k]) for k in ("strides", "dilations", "pads")}
    site = random_site(rng, family, kind, outputs, groups, int(np.prod(kernel, dtype=int)), 4)
    inputs = {
        "X": rng.standard_normal(shape).astype(np.float32),
        **{k: v.reshape(*v.shape[:2], *kernel) if k.startswith("W_") else v for k, v in site.inputs.items()},
    }
    if family != "ArgMax":
        inputs |= {"offset": np.zeros(1, np.float32), "max": np.array([np.inf], np.float32)}
    parameters = site.parameters
    if kind == "Bound":
        ends = [int(e) for e in site.ends[:-1]]
        parameters = bound_parameters(site.weight, site.order, ends, one_sided=False)
    attributes |= {"z": site.z} if kind == "Stats" else {}
    attributes |= flags if family == "ArgMax" else {}
    return Call(op, {**inputs, **parameters}, attributes)


def model(call: Call, *, constants: bool = False, function: bool = True) -> bytes:
    """The call's node; its inputs, but for X with ``constants``, are inputs of the graph."""
    types = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64, np.dtype(np.uint8): TensorProto.UINT8}
    node = helper.make_node(call.op, list(call.inputs), call.outputs, domain="com.exprune", **call.attributes)
    fed = [n for n in call.inputs if n == "X" or not constants]
    integer = ("index", "indices", "survivors")
    graph = helper.make_graph(
        [node],
        "call",
        [helper.make_tensor_value_info(n, types[call.inputs[n].dtype], None) for n in fed],
        [helper.make_tensor_value_info(n, INT64 if n in integer else FLOAT, None) for n in call.outputs],
        [onnx.numpy_helper.from_array(v, n) for n, v in call.inputs.items() if n not in fed],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.exprune", 1)]
    functions = [function_proto(call.op, 17)] if function else []
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)
    return made.SerializeToString()


def open_session(
    data: bytes, library: str | None, threads: int = 1, arena: bool = True
) -> ort.InferenceSession:
    """A session with this library, or (None) on the functions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.enable_cpu_mem_arena = arena
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
