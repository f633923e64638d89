"""The convolution that multiplies no zeros, with every set of kernels, against the numpy oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import sparse_conv_threshold

from .cases import relaxed, run, spoil
from .test_block_conv import block_inputs, compare

OP = "SparseConvThreshold"


def sparse_inputs(seed=0, *, zeros=0.5, **case):
    """Inputs and attributes of a site whose checks decide a fair share, and a share of whose input is zero."""
    inputs, attributes = block_inputs(seed, **case)
    rng = np.random.default_rng([seed, 1])
    x, checks = inputs["X"], inputs["scale"].shape
    return {
        "X": np.where(rng.random(x.shape) < zeros, np.float32(0), x),
        **{name: inputs[name] for name in ("order", "ends")},
        "W": np.ascontiguousarray(np.moveaxis(inputs["W"], 1, -1)),
        **{name: inputs[name] for name in ("bias", "offset", "max", "scale")},
        "limit": rng.standard_normal(checks).astype(np.float32) * np.float32(0.5) - np.float32(0.3),
    }, attributes


def check(library, inputs, attributes, threads=1):
    with np.errstate(all="ignore"):
        want = sparse_conv_threshold(*inputs.values(), **attributes)
    y, survivors = run(library, OP, inputs, threads, **attributes)
    checks = len(inputs["ends"]) - 1
    work, wanted = survivors[checks:], want.survivors[checks:]
    # A decision within rounding can change all work of an output in the chunks after it.
    sizes = np.diff([0, *inputs["ends"]]) * (inputs["W"][..., 0].size // inputs["ends"][-1])
    slack = np.concatenate([[0], want.unsure.sum(axis=(1, 2))]) * sizes
    assert (abs(work - wanted) <= slack).all(), (work, wanted)
    want.survivors = want.survivors[:checks]
    compare(want, y, survivors[:checks])
    return work


#: Shapes that take different ways through the kernel.
CASES = [
    {"size": (32, 32), "pads": (1, 1, 1, 1), "outputs": 32, "full": True},
    {"size": (8, 8), "pads": (1, 1, 1, 1), "outputs": 70, "groups": 40},
    {"size": (4, 4), "pads": (1, 1, 1, 1), "outputs": 150, "clipped": True},
    {"size": (17, 15), "strides": (2, 2), "pads": (1, 1, 1, 1), "outputs": 48},
    {"size": (9, 9), "kernel": (1, 1), "outputs": 17},
    {"size": (16, 18), "strides": (2, 3), "dilations": (2, 1), "pads": (2, 0, 1, 1)},
    {"size": (600,), "kernel": (40,), "strides": (4,), "dilations": (1,), "pads": (20, 19), "outputs": 33},
    {"size": (1,), "kernel": (40,), "strides": (1,), "dilations": (1,), "pads": (39, 0), "outputs": 4},
    {"size": (5, 5), "kernel": (5, 5), "outputs": 1, "groups": 2, "chunks": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 1.0])
def test_shapes(library, case, zeros):
    inputs, attributes = sparse_inputs(zeros=zeros, batch=2, **case)
    work = check(library, inputs, attributes)
    assert zeros < 1 or not work.any()


@settings(relaxed, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), rank=st.sampled_from([1, 2]))
def test_any_shape(library, data, seed, rank):
    draw = lambda values: data.draw(st.sampled_from(values))
    kernel = tuple(draw([1, 2, 3, 5]) for _ in range(rank))
    dilations = tuple(draw([1, 1, 2]) for _ in range(rank))
    pads = tuple(draw([0, 1, 2, 9]) for _ in range(2 * rank))
    reach = [dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[rank + a] for a in range(rank)]
    inputs, attributes = sparse_inputs(
        seed,
        zeros=draw([0.0, 0.3, 0.9]),
        batch=draw([0, 1, 3]),
        groups=draw([2, 3, 9, 40]),
        outputs=draw([1, 5, 16, 33, 64, 81]),
        size=tuple(max(1, reach[a]) + draw([0, 1, 5, 12]) for a in range(rank)),
        kernel=kernel,
        strides=tuple(draw([1, 1, 2, 3]) for _ in range(rank)),
        dilations=dilations,
        pads=pads,
        chunks=draw([2, 3, 4]),
        full=draw([True, False]),
        clipped=draw([True, False]),
    )
    if draw([False, False, True]):
        inputs["X"] = spoil(np.random.default_rng(seed), inputs["X"])
    check(library, inputs, attributes)


def test_threads_change_nothing(best_library):
    for case in CASES[:4]:
        inputs, attributes = sparse_inputs(batch=3, **case)
        one, two = (run(best_library, OP, inputs, threads, **attributes) for threads in (1, 2))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_a_zero_of_x_is_not_multiplied(library):
    """Weights that meet zeros alone do not matter, not even infinite ones."""
    inputs, attributes = sparse_inputs(outputs=20)
    inputs["X"][:, 3] = 0
    want = run(library, OP, inputs, **attributes)
    inputs["W"][list(inputs["order"]).index(3)] = np.inf
    got = run(library, OP, inputs, **attributes)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_limits_without_end_decide_nothing_or_all(library):
    inputs, attributes = sparse_inputs()
    inputs["limit"][:] = -np.inf
    y, survivors = run(library, OP, inputs, **attributes)
    assert survivors[:2].tolist() == [y.size, y.size]
    inputs["limit"][:] = np.inf
    y, survivors = run(library, OP, inputs, **attributes)
    assert not y.any() and not survivors[:2].any() and survivors[2] > 0 and not survivors[3:].any()


def f(*shape):
    return np.zeros(shape, np.float32)


BAD = {
    "rank of X": ("X", f(1, 8, 6)),
    "X smaller than the kernel": ("X", f(1, 8, 2, 6)),
    "another G": ("X", f(1, 7, 6, 6)),
    "one group": ("X", f(1, 1, 6, 6)),
    "repeated order": ("order", np.array([0, 1, 2, 3, 4, 5, 6, 6])),
    "one chunk": ("ends", np.array([8])),
    "ends do not end": ("ends", np.array([2, 4, 7])),
    "W the other way round": ("W", f(5, 8, 3, 3)),
    "W without a kernel": ("W", f(8, 5)),
    "W with an empty kernel": ("W", f(8, 0, 3, 5)),
    "W without outputs": ("W", f(8, 3, 3, 0)),
    "short bias": ("bias", f(4)),
    "offset of another size": ("offset", f(1, 5, 4, 3)),
    "two max": ("max", f(2)),
    "scale of one check": ("scale", f(1, 5)),
    "limit as a vector": ("limit", f(5)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs(best_library, name):
    inputs, attributes = sparse_inputs()
    where, value = BAD[name]
    with pytest.raises(Exception, match=f"{OP}: "):
        run(best_library, OP, {**inputs, where: value}, **attributes)


@pytest.mark.parametrize("bad", [{"strides": [0, 1]}, {"pads": [0, 0]}, {"pads": [2**30] * 4}], ids=str)
def test_bad_attributes(best_library, bad):
    inputs, attributes = sparse_inputs()
    with pytest.raises(Exception, match=OP):
        run(best_library, OP, inputs, **attributes | bad)
