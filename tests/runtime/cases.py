"""Sessions of one staged node, with every input fed, and random sites to feed them with."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper

from .oracle import Staged

#: How generated cases run here: sessions take their time, and the library is a fixture.
relaxed = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

STAGED = ("X", "order", "ends", "W_head", "W_tail", "bias")
PARAMETERS = {
    "Gemm": {"Threshold": ("scale", "limit"), "Stats": (), "Bound": ("radius", "slack")},
    "ArgMax": {"Threshold": ("scale", "shift", "margin"), "Stats": (), "Bound": ("radius", "slack")},
}
PARAMETERS["Conv"] = PARAMETERS["Gemm"]
#: Ops with other inputs than the staged families'.
INPUTS = {
    "SparseGemm": ("X", "W", "bias"),
    "ConvRelu": ("X", "W", "bias", "offset", "max"),
    "SparseConvThreshold": ("X", "order", "ends", "W", "bias", "offset", "max", "scale", "limit"),
    "PrefixConvBlock": (
        *("X", "order", "ends", "W", "bias", "offset", "max"),
        *("scale", "shift", "limit", "block"),
    ),
    "DynamicPrefixConvBlock": (
        *("X", "weight_energy", "ends", "W", "bias", "offset", "max"),
        *("scale", "shift", "limit", "block"),
    ),
    "ConvReluPanel": ("X", "W", "bias", "offset", "max"),
    "PrefixConvPanel": (
        *("X", "order", "ends", "W", "bias", "offset", "max"),
        *("scale", "shift", "limit", "channels"),
    ),
}
KINDS = ("Threshold", "Stats", "Bound")


def input_names(op: str) -> tuple[str, ...]:
    """An op's inputs in order."""
    if op in INPUTS:
        return INPUTS[op]
    family, kind = next((f, op[len("Prefix" + f) :]) for f in PARAMETERS if op.startswith("Prefix" + f))
    finish = () if family == "ArgMax" else ("offset", "max")
    return (*STAGED, *finish, *PARAMETERS[family][kind])


def model(op: str, attributes=(), outputs: int = 2, shapes=None, constants=None) -> bytes:
    """One node whose inputs are all graph inputs, but for ``constants``; ``shapes`` declares shapes."""
    names = input_names(op)
    first = TensorProto.INT64 if "ArgMax" in op else TensorProto.FLOAT
    constants, shapes = constants or {}, shapes or {}
    graph = helper.make_graph(
        [helper.make_node(op, names, ["Y", "survivors"][:outputs], domain="com.exprune", **dict(attributes))],
        "case",
        [
            helper.make_tensor_value_info(
                n,
                TensorProto.INT64 if n in ("order", "ends", "block", "channels") else TensorProto.FLOAT,
                shapes.get(n),
            )
            for n in names
            if n not in constants
        ],
        [
            helper.make_tensor_value_info("Y", first, None),
            helper.make_tensor_value_info("survivors", TensorProto.INT64, None),
        ][:outputs],
        [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.exprune", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def session(library: str, data: bytes, threads: int = 1) -> ort.InferenceSession:
    """A session on this model with this library."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=64)
def _session(library, op, attributes, text, outputs, threads):
    """``text`` tells 1.0 from 1, which are one key."""
    return session(library, model(op, attributes, outputs), threads)


def run(library: str, op: str, inputs: dict, threads: int = 1, outputs: int = 2, **attributes):
    """Runs an op; sessions are kept for the next run."""
    frozen = tuple(
        (k, tuple(v) if isinstance(v, (list, tuple)) else v) for k, v in sorted(attributes.items())
    )
    return _session(library, op, frozen, repr(frozen), outputs, threads).run(None, inputs)


def random_ends(rng, groups: int, chunks: int) -> np.ndarray:
    """Increasing ends of as many chunks as asked for, or as there is room for."""
    chunks = max(2, min(chunks, groups))
    inner = rng.choice(np.arange(1, groups), size=chunks - 1, replace=False)
    return np.array([*sorted(inner), groups], np.int64)


def random_site(rng, family: str, kind: str, outputs: int, groups: int, taps: int, chunks: int) -> Staged:
    """A site whose checks decide a fair share of the outputs."""
    ends = random_ends(rng, groups, chunks)
    shape = (len(ends) - 1, outputs)
    real = lambda *s: rng.standard_normal(s).astype(np.float32)
    fan = math.sqrt(groups * taps)
    parameters = {
        "scale": np.abs(real(*shape)) + np.float32(0.5),
        "limit": real(*shape) * np.float32(0.5) - np.float32(0.5),
        "shift": real(*shape) * np.float32(0.1),
        "margin": np.abs(real(*shape)) * np.float32(0.3),
        "radius": np.abs(real(*shape)) * np.float32(0.2 / fan),
        "slack": np.abs(real(*shape)) * np.float32(1e-5),
    }
    wanted = PARAMETERS[family][kind]
    return Staged(
        weight=real(outputs, groups, taps) / np.float32(fan),
        bias=real(outputs) * np.float32(0.3),
        order=rng.permutation(groups).astype(np.int64),
        ends=ends,
        parameters={name: parameters[name] for name in wanted},
        z=float(np.float32(rng.uniform(-2.0, 0.2))),
    )


def spoil(rng, x: np.ndarray) -> np.ndarray:
    """A copy with a NaN, an infinity and some zeros in it."""
    x = x.copy()
    flat = x.reshape(-1)
    for value in (np.nan, np.inf, 0.0, 0.0):
        if flat.size:
            flat[rng.integers(flat.size)] = value
    return x
