"""Every term of the sound bounds, one at a time: parameters are made by hand so that one term decides.

An output whose value is short of the reach by a bit survives, one beyond it does not. See the docstrings of
``exprune_cli/planning/bound.py`` and ``quantized.py`` for what the terms are for.
"""

from __future__ import annotations

import numpy as np
import pytest

from exprune_cli.planning.quantized import pack

from .cases import run
from .quantized import run_quantized

F = np.float32


def decided(library: str, *, partial=0.0, radius=0.0, slack=0.0, bias=0.0, offset=0.0, x=(1.0, 1.0), head=1):
    """Whether a PrefixGemmBound of one output decides it; ``partial`` is the weight of the first input."""
    groups = len(x)
    weight = np.zeros((1, groups), F)
    weight[0, 0] = partial
    inputs = {
        "X": np.array([x], F),
        "order": np.arange(groups),
        "ends": np.array([head, groups]),
        "W_head": weight[:, :head],
        "W_tail": weight[:, head:],
        "bias": np.array([bias], F),
        "offset": np.array([offset], F),
        "max": np.array([np.inf], F),
        "radius": np.array([[radius]], F),
        "slack": np.array([[slack]], F),
    }
    return run(library, "PrefixGemmBound", inputs)[1][0] == 0


def conv_decided(library: str, **case) -> bool:
    """As :func:`decided`, of a convolution of one position."""
    x = np.array([case.pop("x", (1.0, 1.0))], F)[..., None]
    weight = np.zeros((1, x.shape[1], 1), F)
    weight[0, 0] = case.pop("partial", 0.0)
    inputs = {
        "X": x,
        "order": np.arange(x.shape[1]),
        "ends": np.array([1, x.shape[1]]),
        "W_head": weight[:, :1],
        "W_tail": weight[:, 1:],
        "bias": np.array([case.pop("bias", 0.0)], F),
        "offset": np.array([case.pop("offset", 0.0)], F),
        "max": np.array([np.inf], F),
        "radius": np.array([[case.pop("radius", 0.0)]], F),
        "slack": np.array([[case.pop("slack", 0.0)]], F),
    }
    assert not case
    return run(library, "PrefixConvBound", inputs, strides=[1], pads=[0, 0], dilations=[1])[1][0] == 0


UNIT = 2.0**-24
#: What is beyond the reach by a bit, and what is not.
TERMS = {
    "the tail": ({"radius": 2, "partial": -2.001}, {"radius": 2, "partial": -1.999}),
    "slack": ({"slack": 1, "partial": -1.4144, "head": 1}, {"slack": 1, "partial": -1.414}),
    "the reach's own rounding": (
        {"radius": 1, "partial": -(1 + 2e-5)},
        {"radius": 1, "partial": -(1 + 5e-6)},
    ),
    # (8 u + 8e-8 (n + 4)) (|bias| + |offset|), of which each of the four parts is more than the gap
    "the rounding of bias and offset": (
        {"bias": -1, "offset": 1 - 36 * UNIT},
        {"bias": -1, "offset": 1 - 30 * UNIT},
    ),
    "underflow": ({"bias": -2e-30}, {"bias": -0.9e-30}),
    # From a reach of 5e31 on, the dense sums might overflow.
    "overflow": ({"radius": 4e31, "partial": -1e32}, {"radius": 6e31, "partial": -1e32}),
}


@pytest.mark.parametrize("layer", [decided, conv_decided])
@pytest.mark.parametrize("term", TERMS)
def test_terms_of_the_prefix_bound(library, term, layer):
    beyond, within = ({k: v for k, v in case.items() if k != "head"} for case in TERMS[term])
    assert layer(library, **beyond)
    assert not layer(library, **within)


def test_sums_too_long_for_a_bound(library):
    """From 2^22 terms on nothing is decided: the rounding of bias and offset would be more than stated."""
    for groups, expected in ((2**22 - 1, True), (2**22, False)):
        x = np.zeros(groups, F)
        assert decided(library, x=x, head=groups - 1, bias=-1) == expected, groups


def quantized_decided(library: str, x, *, error=0.0, norm=0.0, bias=-1.0) -> bool:
    """Whether a QuantizedGemmBound of one output decides it for the row ``x``."""
    x = np.array([x], F)
    inputs = {
        "X": x,
        "codes": pack(np.full(x.shape, 128, np.uint8), 8),
        "scale": np.zeros(1, F),
        "error": np.array([error], F),
        "norm": np.array([norm], F),
        "W": np.zeros(x.shape, F),
        "bias": np.array([bias], F),
        "offset": np.zeros(1, F),
        "max": np.array([np.inf], F),
    }
    return run_quantized(library, "Gemm", inputs)[1][0] == 0


@pytest.mark.parametrize(
    ("beyond", "within"),
    [
        pytest.param({"error": 1, "bias": -2.002}, {"error": 1, "bias": -1.998}, id="error times ||x||"),
        # x has codes without a rest: what is left of its error is 1e-6 of its norm
        pytest.param({"norm": 1, "bias": -4e-6}, {"norm": 1, "bias": -1.5e-6}, id="x's own rounding"),
    ],
)
def test_terms_of_the_quantized_bound(library, beyond, within):
    x = (127 / 127, -1.0, 1.0, -1.0)
    assert quantized_decided(library, x, **beyond)
    assert not quantized_decided(library, x, **within)


def test_the_norm_of_x_is_rounded_up_with_its_length(library):
    """Sums of G squares in float err by about G units: 6e-8 (G + 64); bias takes 8e-8 (G + 4) beside it."""
    if library.endswith("scalar.so"):
        pytest.skip("the oracle sums in double precision")
    x = np.ones(4096, F)
    assert quantized_decided(library, x, error=1, bias=-64 * (1 + 8e-4))
    assert not quantized_decided(library, x, error=1, bias=-64 * (1 + 4.6e-4))


@pytest.mark.parametrize(("size", "expected"), [(1e-31, False), (1e-29, True), (1e29, True), (1e31, False)])
def test_rows_out_of_range_are_not_estimated(library, size, expected):
    """Steps and norms stay normal numbers from 1e-30 to 1e30; other rows survive whole."""
    assert quantized_decided(library, np.full(8, size, F)) == expected
