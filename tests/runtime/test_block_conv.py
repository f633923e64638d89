"""The convolution in blocks and the exact one, with every set of kernels, against the numpy oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import ORACLES, ROUNDING, prefix_conv_block

from .cases import random_ends, relaxed, run, spoil


def block_inputs(
    seed=0,
    *,
    batch=1,
    groups=8,
    outputs=5,
    size=(6, 6),
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(1, 1),
    pads=(0, 0, 0, 0),
    block=16,
    chunks=3,
    full=False,
    clipped=False,
):
    """Inputs and attributes of a ``PrefixConvBlock`` that decides a fair share of its blocks."""
    rng = np.random.default_rng(seed)
    real = lambda *s: rng.standard_normal(s).astype(np.float32)
    rank = len(kernel)
    out = [
        (size[a] + pads[a] + pads[rank + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    ]
    ends = random_ends(rng, groups, chunks)
    checks = len(ends) - 1
    inputs = {
        "X": real(batch, groups, *size),
        "order": rng.permutation(groups).astype(np.int64),
        "ends": ends,
        "W": real(groups, outputs, *kernel) / np.float32(np.sqrt(groups * np.prod(kernel))),
        "bias": real(outputs) * np.float32(0.3),
        "offset": real(batch, outputs, *out) if full else real(1) * np.float32(0.1),
        "max": np.array([0.7 if clipped else np.inf], np.float32),
        "scale": abs(real(checks, outputs)) + np.float32(0.5),
        "shift": real(checks, outputs) * np.float32(0.5),
        "limit": abs(real(checks, outputs)) * np.float32(0.5 * block),
        "block": np.array([block], np.int64),
    }
    return inputs, {"strides": list(strides), "dilations": list(dilations), "pads": list(pads)}


#: All that a ``PrefixConvBlock``'s inputs can be made those of.
BLOCK_OPS = ("PrefixConvBlock", "DynamicPrefixConvBlock", "ConvRelu")


def exact_inputs(inputs):
    """Those of a ``ConvRelu``."""
    return {name: inputs[name] for name in ("X", "W", "bias", "offset", "max")}


def inputs_of(op, inputs):
    """Those of one of ``BLOCK_OPS``; for the dynamic one, of images that differ in their channels' energies."""
    if op == "ConvRelu":
        return exact_inputs(inputs)
    if op == "PrefixConvBlock":
        return inputs
    x, w = inputs["X"], inputs["W"]
    size = np.exp(np.random.default_rng(len(w)).standard_normal(x.shape[:2])).astype(np.float32)
    own = {
        "X": x * size.reshape(*size.shape, *[1] * (x.ndim - 2)),
        "weight_energy": np.square(w).reshape(len(w), -1).sum(axis=1),
    }
    return own | {name: value for name, value in inputs.items() if name not in ("X", "order")}


def compare(want, y, survivors):
    """Whether an op gave what the oracle says, but for decisions within rounding."""
    slack = want.unsure.sum(axis=(1, 2)) if len(want.unsure) else np.zeros(0)
    assert survivors.shape == want.survivors.shape
    assert (abs(survivors - want.survivors) <= slack).all(), (survivors, want.survivors)
    assert y.shape == want.output.shape and y.dtype == np.float32
    by_row = np.moveaxis(want.output, 1, -1).reshape(-1, y.shape[1])
    got = np.moveaxis(y, 1, -1).reshape(by_row.shape)
    finite = by_row[np.isfinite(by_row)]
    unit = max(1.0, abs(finite).max(initial=0))
    with np.errstate(invalid="ignore"):
        same = (got == by_row) | (np.isnan(got) & np.isnan(by_row)) | (abs(got - by_row) <= 1e-5 * unit)
    unsure = want.unsure[-1] if len(want.unsure) else np.zeros(same.shape, bool)
    assert (same | unsure).all(), (got[~same], by_row[~same])


def check(library, inputs, attributes, threads=1):
    for op in BLOCK_OPS:
        own = inputs_of(op, inputs)
        with np.errstate(all="ignore"):
            want = ORACLES[op](*own.values(), **attributes)
        compare(want, *run(library, op, own, threads, **attributes))


#: Shapes that take different ways through the kernels.
LONG = {"kernel": (40,), "size": (150,), "pads": (20, 19), "strides": (1,), "dilations": (1,), "block": 64}
CASES = [
    LONG | {"outputs": 33},
    LONG | {"strides": (4,), "size": (600,)},
    LONG | {"strides": (3,), "dilations": (2,), "size": (300,)},
    LONG | {"size": (8,), "pads": (20, 20), "outputs": 40},
    LONG | {"size": (1,), "pads": (39, 0), "kernel": (40,)},
    {"kernel": (20, 1), "size": (90, 1), "pads": (10, 0, 9, 0), "block": 32},
    {"size": (32, 32), "pads": (1, 1, 1, 1), "block": 64, "full": True},
    {"size": (8, 8), "pads": (1, 1, 1, 1), "outputs": 70, "groups": 40},
    {"size": (4, 4), "pads": (1, 1, 1, 1), "outputs": 50, "clipped": True},
    {"size": (17, 15), "strides": (2, 2), "pads": (1, 1, 1, 1), "block": 100},
    {"size": (16, 18), "strides": (2, 3), "dilations": (2, 1), "pads": (2, 0, 1, 1), "block": 7},
    {"size": (9, 9), "kernel": (1, 1), "block": 1},
    {"size": (9, 9), "kernel": (1, 1), "strides": (2, 2), "block": 1000},
    {"size": (7, 60), "kernel": (1, 5), "strides": (1, 8), "block": 16},
    {"size": (5, 5), "kernel": (5, 5), "outputs": 1, "groups": 2, "chunks": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_shapes(library, case, batch):
    inputs, attributes = block_inputs(**case, batch=batch)
    check(library, inputs, attributes)


@settings(relaxed, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), rank=st.sampled_from([1, 2]))
def test_any_shape(library, data, seed, rank):
    draw = lambda values: data.draw(st.sampled_from(values))
    kernel = tuple(draw([1, 2, 3, 5, 18][: 5 if rank == 1 else 4]) for _ in range(rank))
    strides = tuple(draw([1, 1, 2, 3]) for _ in range(rank))
    dilations = tuple(draw([1, 1, 2]) for _ in range(rank))
    pads = tuple(draw([0, 1, 2, 9]) for _ in range(2 * rank))
    reach = [dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[rank + a] for a in range(rank)]
    inputs, attributes = block_inputs(
        seed,
        batch=draw([0, 1, 2, 5]),
        groups=draw([2, 3, 9, 40]),
        outputs=draw([1, 5, 16, 33]),
        size=tuple(max(1, reach[a]) + draw([0, 1, 5, 12]) for a in range(rank)),
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        block=draw([1, 8, 13, 16, 32, 64, 200]),
        chunks=draw([2, 3, 4]),
        full=draw([True, False]),
        clipped=draw([True, False]),
    )
    if draw([False, False, True]):
        inputs["X"] = spoil(np.random.default_rng(seed), inputs["X"])
    check(library, inputs, attributes)


def test_threads_change_nothing(best_library):
    for case in CASES[:4] + CASES[6:8]:
        inputs, attributes = block_inputs(**case, batch=3)
        for op in BLOCK_OPS:
            own = inputs_of(op, inputs)
            one, two = (run(best_library, op, own, threads, **attributes) for threads in (1, 2))
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])


def test_a_session_sees_other_shapes(library):
    """What a node remembers of a shape is not used for another one."""
    for height, width in ((6, 6), (9, 4), (6, 6), (4, 9), (36, 1)):
        inputs, attributes = block_inputs(size=(height, width), pads=(1, 1, 1, 1))
        check(library, inputs, attributes)


def test_padding_is_not_multiplied(library):
    """Taps that only see padding contribute nothing, whatever their weights."""
    inputs, attributes = block_inputs(**LONG | {"size": (8,), "pads": (20, 20)}, groups=3)
    inputs["W"][..., :10] = 1e30
    inputs["limit"][:] = 0
    want = inputs | {"W": inputs["W"].copy()}
    want["W"][..., :10] = 0
    got, expected = (run(library, "PrefixConvBlock", each, **attributes)[0] for each in (inputs, want))
    np.testing.assert_array_equal(got, expected)


def test_a_limit_of_zero_decides_nothing_and_infinity_all(library):
    inputs, attributes = block_inputs()
    inputs["limit"][:] = 0
    y, survivors = run(library, "PrefixConvBlock", inputs, **attributes)
    assert (survivors == y.size).all()
    inputs["limit"][:] = np.inf
    y, survivors = run(library, "PrefixConvBlock", inputs, **attributes)
    assert not y.any() and not survivors.any()


def test_a_score_within_rounding_of_its_limit_is_unsure():
    inputs, attributes = block_inputs()
    want = prefix_conv_block(*inputs.values(), **attributes)
    assert want.rounding.min() >= 0 and ROUNDING > 0
    assert want.unsure.mean() < 0.02 and 0 < want.survivors[-1] < want.output.size


def f(*shape):
    return np.zeros(shape, np.float32)


def i(*values):
    return np.array(values, np.int64)


BAD_BLOCKS = {
    "rank of X": ("X", f(1, 8, 6)),
    "X smaller than the kernel": ("X", f(1, 8, 2, 6)),
    "another G": ("X", f(1, 7, 6, 6)),
    "one group": ("X", f(1, 1, 6, 6)),
    "short order": ("order", i(0, 1, 2)),
    "repeated order": ("order", i(0, 1, 2, 3, 4, 5, 6, 6)),
    "wild order": ("order", i(-(2**63), 2**63 - 1, 2, 3, 4, 5, 6, 7)),
    "one chunk": ("ends", i(8)),
    "ends do not end": ("ends", i(2, 4, 7)),
    "W the other way round": ("W", f(5, 8, 3, 3)),
    "W without a kernel": ("W", f(8, 5)),
    "W with an empty kernel": ("W", f(8, 5, 0, 3)),
    "W without outputs": ("W", f(8, 0, 3, 3)),
    "short bias": ("bias", f(4)),
    "offset of another size": ("offset", f(1, 5, 4, 3)),
    "two max": ("max", f(2)),
    "scale of one check": ("scale", f(1, 5)),
    "shift of other outputs": ("shift", f(2, 4)),
    "limit as a vector": ("limit", f(5)),
    "no block": ("block", i()),
    "two blocks": ("block", i(16, 16)),
    "scalar block": ("block", np.array(16)),
    "block of nothing": ("block", i(0)),
    "negative block": ("block", i(-(2**63))),
    "block too large": ("block", i(2**31)),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_bad_inputs(best_library, name):
    inputs, attributes = block_inputs()
    where, value = BAD_BLOCKS[name]
    for op in BLOCK_OPS:
        own = inputs_of(op, inputs)
        if where in own and not (op == "ConvRelu" and name == "one group"):
            with pytest.raises(Exception, match=f"{op}: "):
                run(best_library, op, {**own, where: value}, **attributes)


@pytest.mark.parametrize("op", BLOCK_OPS)
@pytest.mark.parametrize(
    "bad", [{"strides": [0, 1]}, {"pads": [0, 0]}, {"dilations": [1, 2**63 - 1]}], ids=str
)
def test_bad_attributes(best_library, op, bad):
    inputs, attributes = block_inputs()
    with pytest.raises(Exception, match=op):
        run(best_library, op, inputs_of(op, inputs), **attributes | bad)


def test_padding_far_too_large(best_library):
    inputs, attributes = block_inputs()
    with pytest.raises(Exception, match="PrefixConvBlock: "):
        run(best_library, "PrefixConvBlock", inputs, **attributes | {"pads": [2**30] * 4})
