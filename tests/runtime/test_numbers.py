"""NaN, infinities, subnormal, huge and tiny numbers in X, weights and biases: results as the dense model's.

The lossless ops are compared with the dense layer as ONNX Runtime computes it (their function), bit patterns of NaN
and signs of 0 aside; the others with their function, which takes the same decisions.
"""

from __future__ import annotations

import numpy as np
import pytest

from exprune_cli.functions import OPS
from exprune_cli.planning.bound import bound_parameters
from exprune_cli.planning.quantized import quantized_parameters

from .ops import HEADS, Call, model, open_session, valid

SPECIAL = {
    "NaN": np.nan,
    "infinity": np.inf,
    "minus infinity": -np.inf,
    "subnormal": 1e-40,
    "minus 0": -0.0,
    "huge": 1e37,
    "very huge": -3e38,
    "tiny": -1e-30,
}
#: The rules refuse weights that are not finite for these: a product with a zero that is skipped would be a NaN.
FINITE_WEIGHTS = (
    *("SparseGemm", "SparseConvThreshold"),
    *("ConvRelu", "PrefixConvBlock", "DynamicPrefixConvBlock", "ConvReluPanel", "PrefixConvPanel"),
)
_SESSIONS: dict = {}


def call_of(op: str) -> Call:
    """A call of some size; the first valid one that has it."""
    for seed in range(1000):
        call = valid(op, np.random.default_rng(seed))
        if call.inputs["X"].size >= 200 and len(call.inputs["X"]) >= 2 and len(call.inputs["bias"]) >= 16:
            return call
    raise AssertionError(f"no call of {op} is large enough")


def planned(call: Call) -> Call:
    """The call with what a plan makes of its weights."""
    inputs = call.inputs
    if call.op.startswith("Quantized"):
        inputs |= quantized_parameters(inputs["W"], 6 if call.op in HEADS else 8)
    elif call.op.endswith("Bound"):
        ordered = np.concatenate([inputs["W_head"], inputs["W_tail"]], axis=1)
        weight = ordered.reshape(*ordered.shape[:2], -1)
        ends = [int(e) for e in inputs["ends"][:-1]]
        inputs |= bound_parameters(weight, np.arange(weight.shape[1]), ends, one_sided=False)
    return call


def results(call: Call, library: str | None):
    key = (call.op, repr(call.attributes), library)
    if key not in _SESSIONS:
        _SESSIONS[key] = open_session(model(call), library)
    return _SESSIONS[key].run(None, call.inputs)[:-1]


def places(call: Call) -> list[str]:
    weights = ["W_head", "W_tail"] if "W_head" in call.inputs else ["W"]
    return ["X", *weights, "bias", *(["offset"] if "offset" in call.inputs else [])]


@pytest.mark.parametrize("op", OPS)
def test_as_the_dense_model(library, op):
    for where in places(call_of(op)):
        for what, value in SPECIAL.items():
            if where.startswith("W") and op in FINITE_WEIGHTS and not np.isfinite(value):
                continue
            call = call_of(op)
            array = call.inputs[where] = call.inputs[where].copy()
            rng = np.random.default_rng(7)
            flat = array.reshape(-1)
            flat[rng.choice(flat.size, max(1, flat.size // 200), replace=False)] = value
            with np.errstate(all="ignore"):
                planned(call)
            compare(call, results(call, library), results(call, None), f"{what} in {where}")


def compare(call: Call, native, expected, where: str) -> None:
    """Asserts that results are equal as far as the order of float sums does not make them differ."""
    if call.op in HEADS:
        index, want = native[-1], expected[-1]
        if call.op == "QuantizedTopKBound":  # the order among NaNs, and among equals by rounding, is nobody's
            known = ~np.isnan(native[0]).any(axis=1) & ~np.isnan(expected[0]).any(axis=1)
            known &= (np.abs(expected[0]) < 1e30).all(axis=1)
            np.testing.assert_allclose(
                native[0][known], expected[0][known], rtol=1e-4, atol=1e-4, err_msg=where
            )
            return
        if "very huge" in where and not call.lossless:
            return
        assert (index == want).mean() >= (1 if call.lossless else 0.9), (where, index, want)
        return
    y, want = native[0], expected[0]
    size = np.abs(want[np.isfinite(want)]).max(initial=1.0)
    with np.errstate(invalid="ignore"):
        same = (np.abs(y - want) <= 1e-4 * size) | (y == want) | (np.isnan(y) & np.isnan(want))
    # Sums that leave the range of float are infinite or not a number, depending on their order.
    lost = np.zeros(y.shape, bool)
    if "huge" in where:
        lost = ~(np.abs(y) < 1e37) | ~(np.abs(want) < 1e37)
        if call.lossless:
            lost &= ~(np.isnan(want) & (y == 0))
    close = (y == 0) != (want == 0)
    wrong = ~same & ~lost & (~close | np.isnan(want))
    assert not wrong.any(), (where, y[wrong][:4], want[wrong][:4])
    most = 0 if call.lossless else 2 + 0.02 * same.size
    assert (~same & ~lost).sum() <= most, (where, y[~same][:4], want[~same][:4])
