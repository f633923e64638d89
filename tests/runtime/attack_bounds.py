"""Looks for outputs that a sound bound prunes although the dense layer, in some order of summation, keeps them.

``python -m tests.runtime.attack_bounds --outputs N [--seed S]`` tries N outputs with every set of kernels that
this processor has. Offsets and biases are chosen after the exact values, so that nearly every output stands at its cut:
its value plus what a float sum may err by is just above 0, and a bound that forgets a rounding would prune it. What
was pruned shows because the weights of the finish are NaN: a survivor is a NaN, a pruned output 0. Heads get classes
that are all tied up to that error.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from exprune_cli.planning.bound import bound_parameters, gamma
from exprune_cli.planning.quantized import quantized_parameters

from .cases import run
from .conftest import ISAS, load_copy
from .quantized import run_quantized

#: Weights and inputs that make sums hard: see :func:`_draw`.
STYLES = ("normal", "wide", "cancelling", "one huge", "boundary", "tiny", "large", "positive", "sparse")
_PRUNED = 256  # outputs that are certainly decided: else a kernel takes all the rest for survivors
_ACCURATE = 1 - 1e-6  # of float64 sums, as a share of the float32 error


def _draw(rng: np.random.Generator, style: str, rows: int, columns: int) -> np.ndarray:
    """``[rows, columns]`` float32 in a style."""
    base = rng.standard_normal((rows, columns))
    if style == "wide":
        base *= 10.0 ** rng.uniform(-9, 9, base.shape)
    elif style == "cancelling":
        half = columns // 2
        base[:, half : 2 * half] = -base[:, :half] * (1 + 1e-6 * rng.standard_normal((rows, half)))
    elif style == "one huge":
        base[np.arange(rows), rng.integers(columns, size=rows)] *= 1e6
    elif style == "boundary":
        base = (rng.integers(-127, 127, base.shape) + 0.5) / 127 + rng.choice([0, 1e-7], base.shape)
        base[:, 0] = 1
    elif style == "tiny":
        base *= 10.0 ** rng.uniform(-44, -18)
    elif style == "large":
        base *= 10.0 ** rng.uniform(10, 18)
    elif style == "positive":
        base = np.abs(base)
    elif style == "sparse":
        base[rng.random(base.shape) < 0.7] = 0
    return base.astype(np.float32)


def _along(rng: np.random.Generator, weight: np.ndarray, rows: int) -> np.ndarray:
    """Rows of the weights: Cauchy-Schwarz is tight for an x along them."""
    return (weight[rng.integers(len(weight), size=rows)] * np.float32(rng.choice([-1, 1]))).copy()


class Site:
    """Weights ``[N, terms]``, inputs ``[R, terms]`` and what the exact sums are; drawn if not given."""

    def __init__(
        self,
        rng: np.random.Generator,
        rows: int,
        outputs: int,
        drawn: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        if drawn is None:
            groups = int(rng.choice([2, 3, 4, 8, 16, 31, 64, 257]))
            self.weight = _draw(rng, str(rng.choice(STYLES)), outputs, groups)
            self.x = _draw(rng, str(rng.choice(STYLES)), rows, groups)
            if rng.random() < 0.3:
                self.x = _along(rng, self.weight, rows)
        else:
            self.weight, self.x = drawn
        self.groups = self.weight.shape[1]
        self.exact = self.x.astype(np.float64) @ self.weight.T.astype(np.float64)
        self.size = np.abs(self.x).astype(np.float64) @ np.abs(self.weight).T.astype(np.float64)
        self.bias = (rng.standard_normal(outputs) * np.median(self.size) * 10.0 ** rng.uniform(-3, 5)).astype(
            np.float32
        )

    def error(self, magnitude: np.ndarray) -> np.ndarray:
        """What the dense layer's float sum may err by, with |bias| + |offset|."""
        return gamma(self.groups + 2) * (self.size + magnitude) * _ACCURATE + self.groups * 2.0**-150

    def offsets(self, rng: np.random.Generator) -> np.ndarray:
        """Offsets that bring each output to its cut, but for the first ones."""
        value = self.exact + self.bias
        target = self.error(2 * np.abs(self.bias)) * rng.uniform(-1, 0.2, value.shape)
        with np.errstate(over="ignore"):
            offset = (target - value).astype(np.float32)
            offset[:, :_PRUNED] -= (2 * self.size[:, :_PRUNED] + 1e-20).astype(np.float32)
        return offset

    def broken(self, y: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Which pruned outputs the dense layer might have kept; ``y`` is NaN for survivors."""
        value = self.exact + self.bias + offset.astype(np.float64)
        reach = self.error(np.abs(self.bias) + np.abs(offset.astype(np.float64)))
        return (y == 0) & (value + reach > 0)


def prefix_gemm(library: str, rng: np.random.Generator) -> tuple[int, int, str]:
    """Outputs tried, pruned wrongly, and a word on the first of those."""
    site = Site(rng, int(rng.choice([1, 5, 40])), 2048)
    end = int(rng.integers(1, site.groups))
    order = rng.permutation(site.groups)
    one_sided = bool((site.x >= 0).all())
    parameters = bound_parameters(site.weight[:, :, None], order, [end], one_sided=one_sided)
    offset = site.offsets(rng)
    inputs = {
        "X": site.x,
        "order": order.astype(np.int64),
        "ends": np.array([end, site.groups], np.int64),
        "W_head": np.ascontiguousarray(site.weight[:, order[:end]]),
        "W_tail": np.full((2048, site.groups - end), np.nan, np.float32),
        "bias": site.bias,
        "offset": offset,
        "max": np.array([np.inf], np.float32),
        **parameters,
    }
    return _verdict(site, run(library, "PrefixGemmBound", inputs)[0], offset)


def prefix_conv(library: str, rng: np.random.Generator) -> tuple[int, int, str]:
    """As :func:`prefix_gemm`: a position of the output is a row, the kernel's window its inputs."""
    groups, outputs = int(rng.choice([2, 3, 8, 31])), 1024
    kernel = rng.integers(1, 4, 2)
    strides, pads = rng.integers(1, 3, 2), rng.integers(0, 2, 4)
    size = kernel + rng.integers(0, 4, 2)
    images = int(rng.integers(1, 3))
    weight = _draw(rng, str(rng.choice(STYLES)), outputs, groups * int(kernel.prod()))
    if rng.random() < 0.3:
        size, strides, pads = kernel, np.ones(2, int), np.zeros(4, int)
        x = _along(rng, weight, images)
    else:
        x = _draw(rng, str(rng.choice(STYLES)), images, groups * int(size.prod()))
    x = x.reshape(images, groups, *size)
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), (2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]].transpose(0, 2, 3, 1, 4, 5)
    site = Site(rng, 0, outputs, (weight, windows.reshape(-1, weight.shape[1])))
    end = int(rng.integers(1, groups))
    order = rng.permutation(groups)
    by_group = weight.reshape(outputs, groups, -1)
    one_sided = bool((x >= 0).all())
    kernels = by_group.reshape(outputs, groups, *kernel)[:, order]
    offset = site.offsets(rng)
    inputs = {
        "X": x,
        "order": order.astype(np.int64),
        "ends": np.array([end, groups], np.int64),
        "W_head": np.ascontiguousarray(kernels[:, :end]),
        "W_tail": np.full_like(kernels[:, end:], np.nan),
        "bias": site.bias,
        "offset": _as_maps(offset, windows.shape[:3]),
        "max": np.array([np.inf], np.float32),
        **bound_parameters(by_group, order, [end], one_sided=one_sided),
    }
    attributes = {"strides": strides.tolist(), "pads": pads.tolist(), "dilations": [1, 1]}
    y = run(library, "PrefixConvBound", inputs, **attributes)[0]
    return _verdict(site, y.transpose(0, 2, 3, 1).reshape(-1, outputs), offset)


def _as_maps(rows: np.ndarray, positions: tuple[int, ...]) -> np.ndarray:
    """``[R, N]`` as ``[images, N, height, width]``."""
    return np.ascontiguousarray(rows.reshape(*positions, -1).transpose(0, 3, 1, 2))


def quantized_gemm(library: str, rng: np.random.Generator) -> tuple[int, int, str]:
    """As :func:`prefix_gemm`; few rows have two planes of codes, on most processors only in large layers."""
    rows, outputs, drawn = int(rng.choice([1, 4, 24])), 2048, None
    if rng.random() < 0.02:
        rows, outputs = int(rng.integers(1, 3)), 8200
        drawn = tuple(_draw(rng, str(rng.choice(STYLES)), some, 257) for some in (outputs, rows))
    site = Site(rng, rows, outputs, drawn)
    offset = site.offsets(rng)
    inputs = {
        "X": site.x,
        **quantized_parameters(site.weight, int(rng.choice([6, 8]))),
        "W": np.full_like(site.weight, np.nan),
        "bias": site.bias,
        "offset": offset,
        "max": np.array([np.inf], np.float32),
    }
    return _verdict(site, run_quantized(library, "Gemm", inputs)[0], offset)


def _verdict(site: Site, y: np.ndarray, offset: np.ndarray) -> tuple[int, int, str]:
    broken = site.broken(y, offset)
    where = np.argwhere(broken)[:1]
    text = (
        f"G={site.groups} x={site.x[where[0][0]][:4]} w={site.weight[where[0][1]][:4]}" if len(where) else ""
    )
    return y[:, _PRUNED:].size, int(broken.sum()), text


def head(kind: str, library: str, rng: np.random.Generator) -> tuple[int, int, str]:
    """``PrefixArgMax``, ``ArgMax`` or ``TopK`` over classes that are tied up to rounding."""
    site = Site(rng, 1, 1024)
    end = int(rng.integers(1, site.groups))
    if kind == "PrefixArgMax" and rng.random() < 0.5:  # nothing is to come: what is left are the roundings
        site.x[:, end:] = 0
        site = Site(rng, 1, 1024, (site.weight, site.x))
    rows = int(rng.choice([1, 24]))
    scale = site.error(np.abs(site.exact[0]))[0]
    width = float(rng.choice([1, 1e3, 1e5]))  # in errors: at the larger ones some are pruned
    common = 0.0
    if (
        rng.random() < 0.4
    ):  # all have a large bias: then its rounding is what matters, and some of it the width
        common = scale * 1e8 * float(rng.choice([-1, 1]))
        width = 1e8 * gamma(site.groups + 2) * float(rng.choice([0.3, 3]))
    with np.errstate(over="ignore"):
        site.bias = (common + scale * width * rng.uniform(-1, 1, 1024) - site.exact[0]).astype(np.float32)
    k = int(rng.integers(1, 9)) if kind == "TopK" else 1
    inputs: dict = {"X": np.repeat(site.x, rows, axis=0)}
    if kind == "PrefixArgMax":
        order = np.arange(site.groups)
        inputs |= {"order": order, "ends": np.array([end, site.groups])}
        inputs |= {"W_head": site.weight[:, :end].copy(), "W_tail": site.weight[:, end:].copy()}
        inputs |= {"bias": site.bias}
        inputs |= bound_parameters(site.weight[:, :, None], order, [end], one_sided=False)
        *_, index, survivors = run(library, "PrefixArgMaxBound", inputs)
    else:
        codes = quantized_parameters(site.weight, int(rng.choice([6, 8])))
        inputs |= {**codes, "W": site.weight, "bias": site.bias}
        inputs |= {"k": np.array([k], np.int64)} if kind == "TopK" else {}
        *_, index, survivors = run_quantized(library, kind, inputs)
    score = site.exact[0] + site.bias
    error = site.error(np.abs(site.bias))[0]
    if not (np.isfinite(score).all() and np.abs(score).max() + site.size.max() < 1e38):
        return 0, 0, ""
    # Whoever might be among the best in some order of the sums has to be left for the finish.
    least = np.partition(score - error, -k)[-k]
    possible = int((score + error >= least).sum())
    wrong = max(0, rows * possible - int(survivors[0])) if possible > k else 0
    for row in index.reshape(rows, k):
        # A class that was left out is surely above one that was taken, whatever the order of the sums. Ours
        # and the dense layer's both err.
        out = np.setdiff1d(np.arange(1024), row)
        wrong += int((score[out] - 2 * error[out]).max() > (score[row] + 2 * error[row]).min())
    return rows * 1024, wrong, f"G={site.groups} {kind} k={k}" if wrong else ""


ATTACKS = {
    "PrefixGemmBound": prefix_gemm,
    "PrefixConvBound": prefix_conv,
    "QuantizedGemmBound": quantized_gemm,
    "PrefixArgMaxBound": partial(head, "PrefixArgMax"),
    "QuantizedArgMaxBound": partial(head, "ArgMax"),
    "QuantizedTopKBound": partial(head, "TopK"),
}


def attack(name: str, library: str, outputs: int, seed: int = 0) -> tuple[int, int, Counter]:
    """Tries so many outputs of one op: how many there were, how many wrongly pruned, and where."""
    rng = np.random.default_rng(seed)
    tried, broken, where = 0, 0, Counter()
    with np.errstate(all="ignore"):
        while tried < outputs:
            count, wrong, text = ATTACKS[name](library, rng)
            tried += count
            broken += wrong
            if wrong:
                where[text] += wrong
    return tried, broken, where


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=int, default=10_000_000, help="of all ops and sets of kernels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    libraries = {}
    for isa in ISAS[:-1]:  # the scalar kernels are an oracle, in double precision
        try:
            libraries[isa] = load_copy(folder, isa)
        except pytest.skip.Exception as reason:
            print(reason)
    share = -(-arguments.outputs // (len(libraries) * len(ATTACKS)))
    total = failures = 0
    for isa, library in libraries.items():
        for name in ATTACKS:
            start = time.perf_counter()
            tried, broken, where = attack(name, library, share, arguments.seed)
            total, failures = total + tried, failures + broken
            print(
                f"{isa:12}{name:24}{tried:12} outputs {broken:8} broken {time.perf_counter() - start:8.1f} s"
            )
            for text, count in where.most_common(3):
                print(f"    {count} x {text}")
    shutil.rmtree(folder)
    print(f"{total} outputs, {failures} wrongly pruned")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
