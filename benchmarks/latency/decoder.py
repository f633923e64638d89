"""A language model's decode step at a size that people serve, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np
from onnx import TensorProto, helper

from benchmarks.latency.case import Case, Feeds, save

PAST = 64  # tokens in the caches


def decoder(width: int, hidden: int, layers: int, heads: int, tokens: int, alive: float) -> Case:
    """Pre-norm blocks of attention with a cache and a ReLU feed-forward part, a head, ArgMax.

    As exported without shape arithmetic, and with the position embedding left out: one token, its caches of
    :data:`PAST` tokens, and a share ``alive`` of every ReLU's outputs above zero.
    """
    size = width // heads

    def build(path: Path) -> None:
        rng = np.random.default_rng(3)
        arrays, nodes, ends = _constants(width, heads), [], ([], [])
        shift = NormalDist().inv_cdf(alive)
        positive = np.maximum(rng.standard_normal(100_000) + shift, 0)

        def normal(*shape: int, scale: float) -> np.ndarray:
            return rng.standard_normal(shape, np.float32) * np.float32(scale)

        def op(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
            nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}", **attributes))
            return output

        def linear(x: str, name: str, inputs: int, outputs: int, scale: float, bias: float = 0.0) -> str:
            arrays[f"{name}/W"] = normal(inputs, outputs, scale=scale / np.sqrt(inputs))
            arrays[f"{name}/b"] = np.full(outputs, bias, np.float32)
            return op("Add", [op("MatMul", [x, f"{name}/W"], f"{name}/product"), f"{name}/b"], name)

        arrays["embedding"] = normal(tokens, width, scale=1.0)
        x = op("Gather", ["embedding", "token"], "embedded")
        for name in ("past_keys", "past_values"):
            parts = [f"{name}{i}" for i in range(layers)]
            nodes.append(helper.make_node("Split", [name], parts, f"{name}/Split", axis=0))
        for i in range(layers):
            y = op("LayerNormalization", [x, "one", "zero"], f"norm{i}a")
            query, key, value = (linear(y, f"{n}{i}", width, width, 1.0) for n in ("query", "key", "value"))
            query, key, value = (op("Reshape", [v, "split"], f"{v}/heads") for v in (query, key, value))
            for new, past, end in ((key, "past_keys", ends[0]), (value, "past_values", ends[1])):
                op(
                    "Concat",
                    [op("Squeeze", [f"{past}{i}", "first"], f"{past}{i}/own"), new],
                    f"{new}/all",
                    axis=2,
                )
                end.append(op("Unsqueeze", [f"{new}/all", "first"], f"{new}/kept"))
            turned = op("Transpose", [f"{key}/all"], f"turned{i}", perm=[0, 1, 3, 2])
            scores = op("Mul", [op("MatMul", [query, turned], f"scores{i}"), "scale"], f"scaled{i}")
            mixed = op("MatMul", [op("Softmax", [scores], f"share{i}", axis=-1), f"{value}/all"], f"mixed{i}")
            merged = op("Reshape", [mixed, "merge"], f"merged{i}")
            x = op("Add", [x, linear(merged, f"project{i}", width, width, 0.5)], f"attended{i}")
            y = op("LayerNormalization", [x, "one", "zero"], f"norm{i}b")
            active = op("Relu", [linear(y, f"up{i}", width, hidden, 1.0, shift)], f"relu{i}")
            x = op(
                "Add",
                [x, linear(active, f"down{i}", hidden, width, 0.5 / np.sqrt((positive**2).mean()))],
                f"x{i}",
            )
        arrays["head"] = normal(width, tokens, scale=1 / np.sqrt(width))
        scores = op("MatMul", [op("LayerNormalization", [x, "one", "zero"], "last"), "head"], "logits")
        op("ArgMax", [scores], "next", axis=-1, keepdims=0)
        for name, end in zip(("keys", "values"), ends, strict=True):
            op("Concat", end, name, axis=0)
        past, now = ([layers, "batch", heads, length, size] for length in ("past", "total"))
        inputs = [helper.make_tensor_value_info("token", TensorProto.INT64, ["batch", 1])]
        inputs += [
            helper.make_tensor_value_info(f"past_{n}", TensorProto.FLOAT, past) for n in ("keys", "values")
        ]
        outputs = [helper.make_tensor_value_info("next", TensorProto.INT64, ["batch", 1])]
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, now) for n in ("keys", "values")]
        save(nodes, inputs, outputs, arrays, path)

    def feeds(batch: int, seed: int) -> Iterator[Feeds]:
        rng = np.random.default_rng(seed)
        while True:
            keys, values = rng.standard_normal((2, layers, batch, heads, PAST, size), np.float32)
            yield {"token": rng.integers(tokens, size=(batch, 1)), "past_keys": keys, "past_values": values}

    name = f"decoder {layers} x {width}-{hidden}, {tokens // 1000}k tokens, {alive:.0%} alive"
    return Case(name, build, feeds, (1, 2, 4, 16, 64), checks=100, fused=True)


def _constants(width: int, heads: int) -> dict[str, np.ndarray]:
    size = width // heads
    return {
        "one": np.ones(width, np.float32),
        "zero": np.zeros(width, np.float32),
        "scale": np.array(size**-0.5, np.float32),
        "split": np.array([0, heads, 1, size], np.int64),
        "merge": np.array([0, 1, width], np.int64),
        "first": np.array([0], np.int64),
    }
