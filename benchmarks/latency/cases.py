"""The models: large heads, chains of feed-forward layers, the language model's decode step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.latency.case import Case, Feeds, save
from benchmarks.latency.decoder import decoder
from benchmarks.latency.limit import without_sites

ROOT = Path(__file__).resolve().parents[2]
STEP = ROOT / "sample_models" / "relu_lm"


def head(classes: int, width: int) -> Case:
    """A linear head with an ArgMax. Of its inputs, a third points at one class, a third near a tie of
    two classes (1e-5 apart), a third at random; some classes have an exact duplicate."""

    def weights() -> np.ndarray:
        rng = np.random.default_rng(1)
        weight = rng.standard_normal((classes, width), np.float32)
        twins = rng.permutation(classes)[: classes // 100 * 2].reshape(2, -1)
        weight[twins[1]] = weight[twins[0]]
        return weight

    def build(path: Path) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "W"], ["scores"], "head"),
            helper.make_node("ArgMax", ["scores"], ["index"], axis=-1, keepdims=0),
        ]
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
        results = [helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"])]
        save(nodes, values, results, {"W": np.ascontiguousarray(weights().T)}, path)

    def feeds(batch: int, seed: int) -> Iterator[Feeds]:
        rng, weight = np.random.default_rng(seed), weights()
        while True:
            x = rng.standard_normal((batch, width)).astype(np.float32)
            for row in range(batch):
                kind = rng.integers(3)
                first, second = rng.integers(classes, size=2)
                if kind == 1:
                    x[row] += 0.3 * weight[first]
                elif kind == 2:
                    x[row] = near_tie(weight, first, second)
            yield {"x": x}

    return Case(f"head {classes // 1000}k x {width}", build, feeds, (1, 2, 4, 16, 64))


def near_tie(weight: np.ndarray, first: int, second: int) -> np.ndarray:
    """An input whose two best classes are 1e-5 of their score apart, where such a one is found."""
    a, b = weight[first].astype(np.float64), weight[second].astype(np.float64)
    gap = a - b
    middle = a + b
    middle -= gap * (middle @ gap) / (gap @ gap) if gap.any() else 0
    score = middle @ a
    step = gap * (1e-5 * score / (gap @ gap)) if gap.any() else 0
    return (middle + step).astype(np.float32)


def ffn(width: int, hidden: int, layers: int, alive: float) -> Case:
    """A chain of feed-forward layers as in a transformer: ``x + W2 relu(W1 norm(x) + b)``, with a share
    ``alive`` of the ReLU's outputs above zero."""
    shift = NormalDist().inv_cdf(alive)

    def build(path: Path) -> None:
        rng = np.random.default_rng(2)
        positive = np.maximum(rng.standard_normal(100_000) + shift, 0)
        scale = 1 / np.sqrt(hidden * (positive**2).mean())
        nodes, arrays, current = [], {"one": np.ones(width, np.float32)}, "x"
        for i in range(layers):
            arrays[f"up{i}"] = rng.standard_normal((width, hidden), np.float32) / np.float32(np.sqrt(width))
            arrays[f"shift{i}"] = np.full(hidden, shift, np.float32)
            arrays[f"down{i}"] = rng.standard_normal((hidden, width), np.float32) * np.float32(scale)
            arrays[f"bias{i}"] = np.zeros(width, np.float32)
            nodes += [
                helper.make_node("LayerNormalization", [current, "one"], [f"norm{i}"], f"norm_{i}"),
                helper.make_node("MatMul", [f"norm{i}", f"up{i}"], [f"product{i}"], f"up_{i}"),
                helper.make_node("Add", [f"product{i}", f"shift{i}"], [f"hidden{i}"], f"add_up_{i}"),
                helper.make_node("Relu", [f"hidden{i}"], [f"relu{i}"], f"relu_{i}"),
                helper.make_node("MatMul", [f"relu{i}", f"down{i}"], [f"result{i}"], f"down_{i}"),
                helper.make_node("Add", [f"result{i}", f"bias{i}"], [f"out{i}"], f"add_down_{i}"),
                helper.make_node("Add", [current, f"out{i}"], [f"x{i}"], f"add_{i}"),
            ]
            current = f"x{i}"
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
        results = [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", width])]
        save(nodes, values, results, arrays, path)

    def feeds(batch: int, seed: int) -> Iterator[Feeds]:
        rng = np.random.default_rng(seed)
        while True:
            yield {"x": rng.standard_normal((batch, width)).astype(np.float32)}

    name = f"ffn {width}-{hidden}, {alive:.0%} alive"
    return Case(name, build, feeds, (1, 2, 4, 16, 64), metric="cosine", exact=False, checks=20)


def decode_step() -> Case:
    """The language model's decode step: greedy decoding from random first tokens, with its own caches."""
    model = STEP / "relu_lm_step.onnx"

    def build(path: Path) -> None:
        path.write_bytes(model.read_bytes())

    def feeds(batch: int, seed: int) -> Iterator[Feeds]:
        rng = np.random.default_rng(seed)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        shape = [size if isinstance(size, int) else 0 for size in session.get_inputs()[1].shape]
        shape[1] = batch
        while True:
            token = rng.integers(6000, size=(batch, 1))
            keys = values = np.zeros(shape, np.float32)
            for _ in range(50):
                inputs = {"token": token, "past_keys": keys, "past_values": values}
                yield inputs
                token, keys, values = session.run(["next", "keys", "values"], inputs)

    return Case(
        "relu_lm decode step",
        build,
        feeds,
        (1, 2, 4, 16, 64),
        checks=2000,
        fused=True,
        limit=without_sites,
    )


def cases(quick: bool) -> list[Case]:
    """All cases; with ``quick`` small ones."""
    if quick:
        return [head(4000, 64), ffn(64, 256, 2, 0.05), decoder(64, 256, 2, 4, 4000, 0.05), decode_step()]
    shares = (0.02, 0.05, 0.1, 0.2, 0.5)
    return [
        head(50_000, 768),
        head(250_000, 768),
        *(ffn(768, 3072, 12, share) for share in shares),
        *(ffn(2048, 8192, 2, share) for share in shares),
        decode_step(),
        decoder(768, 3072, 12, 12, 50_272, 0.05),
    ]
