"""The fused operators: random calls, models of them, and what must come out."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from exprune_cli.functions import FUSED_DOMAIN, fused_function_proto

OUTPUTS = {
    "CachedAttention": ("Y", "key", "value"),
    "StackedCachedAttention": ("Y", "key", "value"),
    "ResidualNorm": ("normed", "sum"),
    "TokenEmbedding": ("Y",),
}
EPSILON = 1e-5


def attention_inputs(
    seed: int, batch: int = 2, length: int = 1, heads: int = 3, size: int = 8, past: int = 5, layers: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of an attention; with ``layers`` those of the stacked form."""
    rng = np.random.default_rng(seed)
    real = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    cache = (layers,) * bool(layers) + (batch, heads, past, size)
    inputs = {
        "X": real(batch, length, 3 * heads * size),
        "bias": real(3 * heads * size),
        "past_key": real(*cache),
        "past_value": real(*cache),
        "heads": np.array([heads], np.int64),
        "scale": np.array([size**-0.5], np.float32),
    }
    return {**inputs, "layer": np.array([seed % layers], np.int64)} if layers else inputs


def norm_inputs(seed: int, shape: tuple[int, ...] = (2, 1, 40)) -> dict[str, np.ndarray]:
    """Inputs of a ResidualNorm."""
    rng = np.random.default_rng(seed)
    real = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    vectors = {name: real(shape[-1]) for name in ("bias", "scale", "shift")}
    return {"X": real(*shape), "Y": real(*shape), **vectors}


def embedding_inputs(
    seed: int, batch: int = 2, length: int = 1, width: int = 40, past: int = 5, axis: int = 2
) -> dict[str, np.ndarray]:
    """Inputs of a TokenEmbedding, with 30 tokens and 9 positions."""
    rng = np.random.default_rng(seed)
    real = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    cache = [2, 3, 2, 3]
    cache[axis] = past
    return {
        "token": rng.integers(-30, 30, size=(batch, length)),
        "table": real(30, width),
        "positions": real(9, width),
        "past": real(*cache),
        "axis": np.array([axis], np.int64),
    }


def inputs_of(op: str, seed: int) -> dict[str, np.ndarray]:
    """Inputs of any op."""
    if "Attention" in op:
        return attention_inputs(seed, layers=2 * op.startswith("Stacked"))
    return norm_inputs(seed) if op == "ResidualNorm" else embedding_inputs(seed)


def wanted_of(op: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What any op must make of its inputs."""
    if "Attention" in op:
        return attention(inputs)
    return norm(inputs) if op == "ResidualNorm" else embedding(inputs)


def embedding(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """One addition each: nothing to be rounded differently."""
    place = inputs["past"].shape[inputs["axis"][0]]
    return [inputs["table"][inputs["token"]] + inputs["positions"][place : place + 1]]


def attention(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Attention in double precision."""
    x = inputs["X"].astype(np.float64) + inputs["bias"]
    heads, scale = int(inputs["heads"][0]), float(inputs["scale"][0])
    batch, length, width = x.shape
    parts = x.reshape(batch, length, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
    stacked = "layer" in inputs
    past = [
        inputs[name][int(inputs["layer"][0])] if stacked else inputs[name]
        for name in ("past_key", "past_value")
    ]
    key, value = (np.concatenate([old, new], 2) for old, new in zip(past, parts[1:], strict=True))
    scores = scale * parts[0] @ key.swapaxes(2, 3)
    if scores.size:
        scores = np.exp(scores - scores.max(-1, keepdims=True))
    shares = scores / scores.sum(-1, keepdims=True)
    y = (shares @ value).transpose(0, 2, 1, 3).reshape(batch, length, width // 3)
    return [y, key[None], value[None]] if stacked else [y, key, value]


def norm(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """LayerNormalization in double precision."""
    total = inputs["X"].astype(np.float64) + (inputs["Y"].astype(np.float64) + inputs["bias"])
    apart = total - total.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((apart**2).mean(-1, keepdims=True) + EPSILON)
    return [apart * scale * inputs["scale"] + inputs["shift"], total]


def model(op: str, opset: int = 17) -> bytes:
    """One node whose inputs are all graph inputs."""
    inputs = inputs_of(op, 0)
    attributes = {"epsilon": EPSILON} if op == "ResidualNorm" else {}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), OUTPUTS[op], domain=FUSED_DOMAIN, **attributes)],
        "case",
        [value(n, helper.np_dtype_to_tensor_dtype(v.dtype), None) for n, v in inputs.items()],
        [value(n, TensorProto.FLOAT, None) for n in OUTPUTS[op]],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(FUSED_DOMAIN, 1)]
    functions = [fused_function_proto(op, opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)
    return made.SerializeToString()


@lru_cache(maxsize=32)
def session(library: str | None, op: str, threads: int = 1, opset: int = 17) -> ort.InferenceSession:
    """A session of the op; without a library of its function."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model(op, opset), options, providers=["CPUExecutionProvider"])
