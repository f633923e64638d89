"""Cases for the ops with a quantised estimate, a runner, and what they must compute."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from exprune_cli.functions import function_proto
from exprune_cli.planning.quantized import quantized_parameters

LAYER = ("X", "codes", "scale", "error", "norm", "W", "bias")
INPUTS = {"Gemm": (*LAYER, "offset", "max"), "ArgMax": LAYER, "TopK": (*LAYER, "k")}
OUTPUTS = {"Gemm": ("Y",), "ArgMax": ("index",), "TopK": ("values", "indices")}
_TYPES = {
    "codes": TensorProto.UINT8,
    "k": TensorProto.INT64,
    "index": TensorProto.INT64,
    "indices": TensorProto.INT64,
}


def good(kind: str, *, seed=0, rows=3, outputs=40, groups=64, bits=8, k=3) -> dict[str, np.ndarray]:
    """Inputs of a random case; some outputs of the Gemm end above 0, most below."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((outputs, groups)) / np.sqrt(groups)).astype(np.float32)
    return case(kind, rng.standard_normal((rows, groups)).astype(np.float32), weight, rng, bits=bits, k=k)


def case(
    kind: str, x: np.ndarray, weight: np.ndarray, rng, *, bits: int = 8, k: int = 3
) -> dict[str, np.ndarray]:
    """Inputs for this data and weight."""
    bias = (rng.standard_normal(len(weight)) * 0.3 - (0.7 if kind == "Gemm" else 0)).astype(np.float32)
    inputs = {"X": x, **quantized_parameters(weight, bits), "W": weight, "bias": bias}
    if kind == "Gemm":
        inputs |= {"offset": np.zeros(1, np.float32), "max": np.array([np.inf], np.float32)}
    if kind == "TopK":
        inputs["k"] = np.array([min(k, len(weight))], np.int64)
    return inputs


_RANKS = {"codes": 2, "W": 2, "scale": 1, "error": 1, "norm": 1, "bias": 1, "max": 1, "k": 1, "survivors": 1}


def model(kind: str, attributes=(), survivors: bool = True, opset: int = 17, rank: int | None = None):
    """One node whose inputs are all graph inputs, with its function; ``rank`` of X declares all ranks."""
    op = f"Quantized{kind}Bound"
    outputs = [*OUTPUTS[kind], *(["survivors"] if survivors else [])]
    types = {**_TYPES, "survivors": TensorProto.INT64}

    def values(names):
        for n in names:
            size = rank and _RANKS.get(n, 1 if n == "offset" else rank - 1 if n == "index" else rank)
            yield helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), size and [None] * size)

    node = helper.make_node(op, INPUTS[kind], outputs, domain="com.exprune", **dict(attributes))
    graph = helper.make_graph([node], "case", [*values(INPUTS[kind])], [*values(outputs)])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.exprune", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function_proto(op, opset)])


@lru_cache(maxsize=64)
def _session(library, kind, attributes, survivors, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(library)
    data = model(kind, attributes, survivors).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_quantized(library, kind, inputs, *, threads=1, survivors=True, **attributes):
    """Runs an op, natively or (``library`` None) as its function."""
    if kind == "ArgMax":
        attributes = {"keepdims": 0, "select_last_index": 0, **attributes}
    return _session(library, kind, tuple(sorted(attributes.items())), survivors, threads).run(None, inputs)


def scores(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the layer computes before its ReLU or ArgMax, in double, ``[..., N]``."""
    with np.errstate(all="ignore"):
        return inputs["X"].astype(np.float64) @ inputs["W"].T.astype(np.float64) + inputs["bias"]


def computed(library: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The same as a library computes it, with a Gemm's offset: the oracle in double, kernels in float and in the order
    of ONNX Runtime's product: from the bias on, blocks of 256 groups, one group after the other."""
    offset = inputs.get("offset", np.zeros(1, np.float32))
    if "scalar" in library:
        return scores(inputs) + offset
    x, weight = inputs["X"].astype(np.float64), inputs["W"].astype(np.float64)
    total = np.broadcast_to(inputs["bias"] + offset, (*x.shape[:-1], len(weight)))
    with np.errstate(all="ignore"):
        for first in range(0, x.shape[-1], 256):
            block = np.zeros(total.shape, np.float32)
            for g in range(first, min(first + 256, x.shape[-1])):
                block = (block + x[..., g, None] * weight[:, g]).astype(np.float32)
            total = total + block
    return total


def most_code(library: str, rows: int, inputs: dict[str, np.ndarray]) -> float:
    """Steps in the largest ``|x|``: of one or two planes of 8 bits (``kTwoPlaneRows`` and ``kCachedCodes`` in
    ``runtime/kernels``), or of one of 16 bits."""
    groups, codes = inputs["X"].shape[-1], inputs["W"].size
    if "vnni" in library or "scalar" in library:
        return 127 * 254 if rows <= 4 else 127
    if "avx" in library and bits_of(inputs) == 8:
        return min(32767, (2**31 - 1) // (128 * groups))
    return 127 * 254 if rows <= 2 and codes > 2**21 else 127


def bits_of(inputs: dict[str, np.ndarray]) -> int:
    """Of the codes of the weights."""
    blocks = -(-inputs["X"].shape[-1] // 16)
    return inputs["codes"].shape[1] // (32 * blocks)


def reach(library: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """At least the bound on an estimate's error, ``[..., N]``; x's own codes taken at their worst."""
    x = inputs["X"].astype(np.float64)
    groups = x.shape[-1]
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    rows = int(np.prod(x.shape[:-1]))
    step = np.abs(x).max(axis=-1, keepdims=True) / most_code(library, rows, inputs)
    rest = step / 2 * np.sqrt(groups) + 1e-6 * norm
    magnitude = np.abs(inputs["bias"]) + np.abs(inputs.get("offset", np.zeros(1)))
    rounding = (1e-6 + 8e-8 * (groups + 4)) * magnitude + 1e-30
    return (inputs["error"] * norm + inputs["norm"] * rest + rounding) * (1 + 1e-3)


def f(*shape):
    return np.zeros(shape, np.float32)


#: Inputs that the ops must refuse, for :func:`good`'s default sizes.
BAD = {
    "scalar X": ("X", f()),
    "no features": ("X", f(3, 0)),
    "too many features": ("X", f(0, 70000)),
    "another G": ("W", f(40, 63)),
    "weights of another rank": ("W", f(40, 64, 1)),
    "no outputs": ("W", f(0, 64)),
    "short codes": ("codes", np.zeros((2, 1024), np.uint8)),
    "narrow codes": ("codes", np.zeros((3, 1023), np.uint8)),
    "flat codes": ("codes", np.zeros(3 * 1024, np.uint8)),
    "long scale": ("scale", f(41)),
    "a matrix of errors": ("error", f(1, 40)),
    "no norms": ("norm", f(0)),
    "short bias": ("bias", f(1)),
    "no k": ("k", np.zeros(0, np.int64)),
    "k of 0": ("k", np.array([0], np.int64)),
    "negative k": ("k", np.array([-1], np.int64)),
    "k above the classes": ("k", np.array([41], np.int64)),
    "huge k": ("k", np.array([2**62], np.int64)),
}
