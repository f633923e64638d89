"""How often a certificate is wrong: many random splits of one model's cached outputs.

A small network is planned once, on samples of its own. Every step of the knob is run once over a pool
of further samples, and its losses are kept. Then the pool is split at random, again and again: one
part certifies, as ``optimize --max-drop X --confidence P`` does, and the drop of the certified step
is looked up on the other part. With exchangeable samples it exceeds X in at most 1 - P of the splits:

    python benchmarks/validity.py

Where samples are views of few originals, that is so if originals are counted (``group`` in the data), and
not if samples are:

    python benchmarks/validity.py --views 20 --calibration 300
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from exprune_cli.certify import betting_p_value, furthest
from exprune_cli.data import open_data
from exprune_cli.match import match
from exprune_cli.measure import Baseline
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.planning.planner import plan
from exprune_cli.search import Gate, evaluate

INPUTS, WIDTH, CLASSES, DIRECTIONS = 64, 96, 10, 6
#: Shares of samples whose label is not what the network says.
MISLABELLED = 0.15
#: How far a view is from its original, in terms of how far apart two originals are.
_DISTANCE = 0.05


@dataclass(frozen=True)
class Outcome:
    """What the splits came to for one allowed drop.

    Attributes:
        max_drop: The allowed drop.
        splits: How many.
        certified: Splits in which a step was certified.
        exceeded: Splits in which the certified step's drop on the other part was larger than allowed.
        limit: The share of wrong splits that is to be expected at most: the risk, and three standard
            errors of a share of so many splits.
    """

    max_drop: float
    splits: int
    certified: int
    exceeded: int
    limit: float

    @property
    def valid(self) -> bool:
        """Whether no more splits are wrong than was promised."""
        return self.exceeded <= self.limit * self.splits


def network(seed: int = 0) -> onnx.ModelProto:
    """An MLP with a residual and an ArgMax; its weights are random, its inputs lie near a plane."""
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, {INPUTS}] x) => (int64[N] y) {{
          a = Gemm (x, w1, b1)
          r = Relu (a)
          m = MatMul (r, w2)
          c = Add (m, r)
          e = Relu (c)
          f = Gemm (e, w3, b3)
          y = ArgMax <axis: int = 1, keepdims: int = 0> (f)
        }}"""
    )
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (INPUTS, WIDTH),
        "b1": (WIDTH,),
        "w2": (WIDTH, WIDTH),
        "w3": (WIDTH, CLASSES),
        "b3": (CLASSES,),
    }
    for name, shape in shapes.items():
        value = rng.standard_normal(shape) / np.sqrt(shape[0])
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return proto


def samples(count: int, seed: int) -> np.ndarray:
    """``[count, INPUTS]`` float32."""
    mix = np.random.default_rng(0).standard_normal((DIRECTIONS, INPUTS))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, DIRECTIONS)) @ mix + 0.3 * rng.standard_normal((count, INPUTS))
    return x.astype(np.float32)


def cached_losses(pool: int, planned: int = 2000, views: int = 1) -> np.ndarray:
    """``[steps, pool]`` losses of every step of the knob on samples that the plans have not seen.

    With ``views`` so many samples in a row are views of one original.
    """
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        onnx.save(network(), path / "model.onnx")
        model = load(path / "model.onnx")
        for name, count, seed in (("plan", planned, 1), ("pool", pool, 2)):
            (path / name).mkdir()
            each = views if name == "pool" else 1
            original = samples(count // each, seed)
            wrong, other = rng.random(len(original)) < MISLABELLED, rng.integers(0, CLASSES, len(original))
            label = np.repeat(np.where(wrong, other, _classes(original)), each)
            x = np.repeat(original, each, axis=0)
            if each > 1:
                noise = _DISTANCE * original.std() * rng.standard_normal(x.shape)
                x = (x + noise).astype(np.float32)
            np.savez(path / name / "all.npz", x=x, label=label)
        sites = match(model).sites
        steps = plan(sites, observe(model, sites, open_data(path / "plan", model.proto)), "calibrated")
        data = open_data(path / "pool", model.proto)
        baseline, gate = Baseline(model.proto), Gate(0.0, None, "accuracy")
        return np.stack([evaluate(model, sites, step, data, gate, baseline).losses for step in steps])


def _classes(x: np.ndarray) -> np.ndarray:
    w = {t.name: numpy_helper.to_array(t) for t in network().graph.initializer}
    r = np.maximum(x @ w["w1"] + w["b1"], 0)
    return (np.maximum(r @ w["w2"] + r, 0) @ w["w3"] + w["b3"]).argmax(axis=1)


def experiment(
    losses: np.ndarray,
    max_drop: float,
    confidence: float,
    splits: int,
    calibration: int,
    seed: int = 0,
    views: int = 1,
    by_group: bool = True,
) -> Outcome:
    """Splits the pool again and again; no original has views on both sides.

    Args:
        losses: ``[steps, pool]``, from the safest to the boldest step.
        max_drop: The allowed drop.
        confidence: Of the certificate.
        splits: How many splits.
        calibration: Originals whose samples are the part that certifies.
        seed: Of the splits.
        views: Samples in a row that are of one original.
        by_group: Whether originals are counted, each with its mean loss; if not, samples are.
    """
    grouped = losses.reshape(len(losses), -1, views)
    means = grouped.mean(axis=2)
    rng = np.random.default_rng(seed)
    certified = exceeded = 0
    for _ in range(splits):
        order = rng.permutation(means.shape[1])
        ours, theirs = order[:calibration], order[calibration:]
        counted = means[:, ours] if by_group else grouped[:, ours].reshape(len(losses), -1)
        step = furthest(
            range(len(losses)),
            lambda step, counted=counted: betting_p_value(counted[step], max_drop) <= 1 - confidence,
        )
        if step is not None:
            certified += 1
            exceeded += bool(means[step, theirs].mean() > max_drop)
    risk = 1 - confidence
    limit = risk + 3 * np.sqrt(risk * (1 - risk) / splits)
    return Outcome(max_drop, splits, certified, exceeded, float(limit))


def allowed_drops(losses: np.ndarray, least: float = 0.003) -> list[float]:
    """Drops that are hard to certify rightly: a little below what some step really loses, more than ``least``."""
    means = np.unique(losses.mean(axis=1))
    return [float(mean) - 1e-4 for mean in means[means > least][:6]]


def main() -> None:
    parser_ = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser_.add_argument("--splits", type=int, default=1000)
    parser_.add_argument("--pool", type=int, default=12_000)
    parser_.add_argument("--calibration", type=int, default=2000)
    parser_.add_argument("--confidence", type=float, default=0.95)
    parser_.add_argument("--views", type=int, default=1, help="samples that are views of one original")
    args = parser_.parse_args()
    losses = cached_losses(args.pool, views=args.views)
    print("| counted | allowed drop | splits | certified | exceeded | at most |")
    print("| --- | --: | --: | --: | --: | --: |")
    valid = True
    for by_group in (True, False)[: 1 if args.views == 1 else 2]:
        for drop in allowed_drops(losses, 5 / args.calibration):
            found = experiment(
                losses,
                drop,
                args.confidence,
                args.splits,
                args.calibration,
                views=args.views,
                by_group=by_group,
            )
            valid &= found.valid or not by_group
            share = found.exceeded / found.splits
            counted = "samples" if args.views == 1 or not by_group else "originals"
            print(
                f"| {counted} | {drop:.2%} | {found.splits} | {found.certified} | {share:.1%} | {found.limit:.1%} |"
            )
    raise SystemExit(0 if valid else 1)


if __name__ == "__main__":
    main()
