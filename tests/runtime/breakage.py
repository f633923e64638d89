"""Subtly broken calls of the ops: one thing wrong with a shape, a number or an attribute."""

from __future__ import annotations

import numpy as np

from .ops import PROMISES, Call

FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 1e38, -3e38, 1e20, -1.0)
INTS = (0, -1, 1, 2, 63, 64, 65, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
HUGE = (0, 1, 2**16, 2**31 - 1, 2**31, 2**33, 2**40)


def break_once(call: Call, rng: np.random.Generator) -> bool:
    """Changes one thing in place; whether the op's result is still a promise if it takes the call."""
    choices = [_reshape, _numbers, _empty, _numbers, _numbers]
    if call.attributes:
        choices.append(_attribute)
    return choices[rng.integers(len(choices))](call, rng)


def _pick(call: Call, rng: np.random.Generator) -> str:
    return str(rng.choice(list(call.inputs)))


def _reshape(call: Call, rng: np.random.Generator) -> bool:
    name = _pick(call, rng)
    value = call.inputs[name]
    how = rng.integers(6)
    if how == 0:
        value = value[None]
    elif how == 1:
        value = value.reshape(-1)
    elif how == 2:
        value = value.reshape(-1)[:1].reshape(()) if value.size else value
    elif how == 3:
        value = value.T
    elif value.ndim and max(value.shape) < 2**16:
        axis = int(rng.integers(value.ndim))
        size = value.shape[axis]
        value = value.take(range(size - 1), axis) if how == 4 and size else np.repeat(value, 2, axis)
    changed = value.shape == call.inputs[name].shape and not np.array_equal(value, call.inputs[name])
    call.inputs[name] = np.ascontiguousarray(value).reshape(value.shape)
    return (name not in PROMISES or _is_parameter(call, name)) and not (changed and _is_bounded(call, name))


def _is_bounded(call: Call, name: str) -> bool:
    """What bounds weights was made for others, or for other chunks."""
    return name.startswith(("W", "order", "ends")) and call.op.endswith("Bound")


def _is_parameter(call: Call, name: str) -> bool:
    """``scale`` is a test's parameter in some ops, and part of a bound in others."""
    return name == "scale" and not call.op.startswith("Quantized")


def _numbers(call: Call, rng: np.random.Generator) -> bool:
    name = _pick(call, rng)
    value = call.inputs[name] = call.inputs[name].copy()
    flat = value.reshape(-1)
    if value.dtype == np.float32 and not rng.integers(4):
        flat[rng.random(flat.size) < 0.5] = rng.choice(FLOATS)  # bounds that contradict each other
    for _ in range(int(rng.integers(1, 4)) if flat.size else 0):
        at = rng.integers(flat.size)
        if value.dtype == np.float32:
            flat[at] = rng.choice(FLOATS)
        elif value.dtype == np.uint8:
            flat[at] = rng.integers(256)
        elif rng.integers(2):
            flat[at] = min(max(int(flat[at]) + int(rng.integers(-2, 3)), -(2**62)), 2**62)
        else:
            flat[at] = INTS[rng.integers(len(INTS))]
    if name == "W" and call.op in ("ConvRelu", "ConvReluPanel", "SparseGemm", "SparseConvThreshold"):
        # Such weights are refused by the rules: a product with a skipped zero would be a NaN.
        return bool(np.isfinite(value).all())
    if (
        call.op.endswith(("PrefixConvBlock", "PrefixConvPanel"))
        and name == "W"
        and not np.isfinite(value).all()
    ):
        return False
    return (name not in PROMISES or _is_parameter(call, name)) and not _is_bounded(call, name)


def _empty(call: Call, rng: np.random.Generator) -> bool:
    """Dimensions far beyond what could be in memory, beside one of zero."""
    name = _pick(call, rng)
    shape = [int(rng.choice(HUGE)) for _ in range(max(1, call.inputs[name].ndim))]
    shape[int(rng.integers(len(shape)))] = 0
    call.inputs[name] = np.zeros(shape, call.inputs[name].dtype) if _fits(shape) else call.inputs[name][:0]
    return True


def _fits(shape: list[int]) -> bool:
    """NumPy multiplies the sizes that are not 0."""
    product = 1
    for size in shape:
        product *= max(size, 1)
    return product < 2**60


def _attribute(call: Call, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(call.attributes)))
    value = call.attributes[name]
    how = rng.integers(5)
    if how == 0:
        del call.attributes[name]
    elif how == 1:
        call.attributes[name] = [1.0, 2.0] if rng.integers(2) else "text"
    elif isinstance(value, list):
        value = [*value]
        if how == 2:
            value = value[:-1] if len(value) > 1 and rng.integers(2) else [*value, 1]
        else:
            value[int(rng.integers(len(value)))] = int(INTS[rng.integers(len(INTS))])
        call.attributes[name] = value
    elif isinstance(value, float):
        call.attributes[name] = float(rng.choice(FLOATS))
    else:
        call.attributes[name] = int(INTS[rng.integers(len(INTS))])
    return True
