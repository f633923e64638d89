"""The convolution in panels and the exact one, with every set of kernels, against the numpy oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import conv_relu_panel, prefix_conv_panel

from .cases import relaxed, run, spoil
from .test_block_conv import block_inputs, compare, exact_inputs


def panels_of(weight, channels):
    """``[ceil(N / 16), *kernel, G, 16]`` of ``[G, N, *kernel]``, with the outputs in the order of ``channels``."""
    groups, outputs, *kernel = weight.shape
    rows = np.zeros((-(-outputs // 16) * 16, groups, *kernel), np.float32)
    rows[:outputs] = np.moveaxis(weight, 0, 1)[channels]
    panels = rows.reshape(-1, 16, groups, *kernel)
    return np.ascontiguousarray(np.moveaxis(panels, (1, 2), (-1, -2)))


def panel_inputs(seed=0, *, outputs=21, limit=4.0, **case):
    """Inputs and attributes of a ``PrefixConvPanel`` that decides a fair share of its blocks."""
    rng = np.random.default_rng(seed)
    inputs, attributes = block_inputs(seed, outputs=outputs, **case)
    del inputs["block"]
    checks, panels = len(inputs["ends"]) - 1, -(-outputs // 16)
    channels = rng.permutation(outputs).astype(np.int64)
    inputs["W"] = panels_of(inputs["W"], channels)
    inputs["limit"] = abs(rng.standard_normal((checks, panels)) * limit).astype(np.float32)
    return inputs | {"channels": channels}, attributes


def check(library, inputs, attributes, threads=1):
    with np.errstate(all="ignore"):
        want = prefix_conv_panel(*inputs.values(), **attributes)
        exact = conv_relu_panel(*exact_inputs(inputs).values(), **attributes)
    compare(want, *run(library, "PrefixConvPanel", inputs, threads, **attributes))
    compare(exact, *run(library, "ConvReluPanel", exact_inputs(inputs), threads, **attributes))
    return want


SAME = (1, 1, 1, 1)
#: Shapes that take different ways through the kernels.
CASES = [
    {"size": (4, 4), "pads": SAME, "outputs": 50, "groups": 70},
    {"size": (8, 8), "pads": SAME, "outputs": 64, "groups": 40, "full": True},
    {"size": (32, 32), "pads": SAME, "outputs": 32, "groups": 33, "full": True},
    {"size": (17, 15), "strides": (2, 2), "pads": SAME, "outputs": 33},
    {"size": (16, 18), "strides": (2, 3), "dilations": (2, 1), "pads": (2, 0, 1, 1)},
    {"size": (9, 9), "kernel": (1, 1), "outputs": 16},
    {"size": (9, 9), "kernel": (1, 1), "strides": (2, 2), "outputs": 1},
    {"size": (1, 1), "pads": SAME, "outputs": 48},
    {"size": (2, 3), "pads": (2, 2, 2, 2), "kernel": (5, 5), "clipped": True},
    {"size": (100,), "kernel": (7,), "pads": (3, 3), "strides": (1,), "dilations": (1,)},
    {"size": (3,), "kernel": (9,), "pads": (8, 8), "strides": (1,), "dilations": (1,)},
    {"size": (5, 5), "kernel": (5, 5), "outputs": 1, "groups": 2, "chunks": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("limit", [0.2, 30.0])
def test_shapes(library, case, batch, limit):
    inputs, attributes = panel_inputs(**case, batch=batch, limit=limit)
    check(library, inputs, attributes)


@settings(relaxed, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), rank=st.sampled_from([1, 2]))
def test_any_shape(library, data, seed, rank):
    draw = lambda values: data.draw(st.sampled_from(values))
    kernel = tuple(draw([1, 2, 3, 5]) for _ in range(rank))
    strides = tuple(draw([1, 1, 2, 3]) for _ in range(rank))
    dilations = tuple(draw([1, 1, 2]) for _ in range(rank))
    pads = tuple(draw([0, 1, 2, 9]) for _ in range(2 * rank))
    reach = [dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[rank + a] for a in range(rank)]
    inputs, attributes = panel_inputs(
        seed,
        batch=draw([0, 1, 2, 5]),
        groups=draw([2, 3, 9, 40]),
        outputs=draw([1, 16, 33, 48]),
        size=tuple(max(1, reach[a]) + draw([0, 1, 5, 12]) for a in range(rank)),
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        chunks=draw([2, 3, 4]),
        full=draw([True, False]),
        clipped=draw([True, False]),
        limit=draw([0.1, 3.0, 30.0]),
    )
    if draw([False, False, True]):
        inputs["X"] = spoil(np.random.default_rng(seed), inputs["X"])
    check(library, inputs, attributes)


def test_a_fair_share_is_decided():
    inputs, attributes = panel_inputs(**CASES[0], limit=9.0)
    want = prefix_conv_panel(*inputs.values(), **attributes)
    assert 0 < want.survivors[-1] < want.survivors[0] < want.output.size and want.unsure.mean() < 0.02


def test_threads_change_nothing(best_library):
    for case in CASES[:4]:
        inputs, attributes = panel_inputs(**case, batch=3, limit=30.0)
        one = run(best_library, "PrefixConvPanel", inputs, 1, **attributes)
        two = run(best_library, "PrefixConvPanel", inputs, 2, **attributes)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_padding_is_not_multiplied(library):
    """Taps that only see padding contribute nothing, whatever their weights."""
    inputs, attributes = panel_inputs(size=(1, 1), pads=SAME)
    inputs["W"][:, 0] = inputs["W"][:, :, 0] = 1e30
    inputs["limit"][:] = 0
    want = inputs | {"W": inputs["W"].copy()}
    want["W"][:, 0] = want["W"][:, :, 0] = 0
    got, expected = (run(library, "PrefixConvPanel", each, **attributes)[0] for each in (inputs, want))
    np.testing.assert_array_equal(got, expected)


def test_a_limit_of_zero_decides_nothing_and_infinity_all(library):
    inputs, attributes = panel_inputs()
    inputs["limit"][:] = 0
    y, survivors = run(library, "PrefixConvPanel", inputs, **attributes)
    assert (survivors == y.size).all()
    inputs["limit"][:] = np.inf
    y, survivors = run(library, "PrefixConvPanel", inputs, **attributes)
    assert not y.any() and not survivors.any()


def test_what_is_decided_stays_zero(library):
    """An infinity in a later chunk does not reach an output that was decided before."""
    inputs, attributes = panel_inputs(size=(4, 4), pads=SAME, outputs=16, chunks=2)
    inputs["limit"][:] = 9.0
    first = set(inputs["order"][: inputs["ends"][0]])
    inputs["X"][:, [g for g in range(8) if g not in first]] = np.inf
    with np.errstate(all="ignore"):
        want = prefix_conv_panel(*inputs.values(), **attributes)
    decided = want.survivors[0]
    assert 0 < decided < want.output.size
    compare(want, *run(library, "PrefixConvPanel", inputs, **attributes))


def f(*shape):
    return np.zeros(shape, np.float32)


def i(*values):
    return np.array(values, np.int64)


BAD = {
    "rank of X": ("X", f(1, 8, 6)),
    "X smaller than the kernel": ("X", f(1, 8, 2, 6)),
    "another G": ("X", f(1, 7, 6, 6)),
    "one group": ("X", f(1, 1, 6, 6)),
    "wild order": ("order", i(-(2**63), 2**63 - 1, 2, 3, 4, 5, 6, 7)),
    "one chunk": ("ends", i(8)),
    "ends do not end": ("ends", i(2, 4, 7)),
    "W of a block convolution": ("W", f(8, 21, 3, 3)),
    "W with an empty kernel": ("W", f(2, 0, 3, 8, 16)),
    "W of one panel": ("W", f(1, 3, 3, 8, 16)),
    "W in panels of 8": ("W", f(3, 3, 3, 8, 8)),
    "W of rank 1": ("W", f(2)),
    "no bias": ("bias", f(0)),
    "short bias": ("bias", f(16)),
    "offset of another size": ("offset", f(1, 21, 4, 3)),
    "two max": ("max", f(2)),
    "scale of one check": ("scale", f(1, 21)),
    "shift of other outputs": ("shift", f(2, 20)),
    "limit per output": ("limit", f(2, 21)),
    "short channels": ("channels", i(*range(20))),
    "repeated channels": ("channels", i(*range(20), 0)),
    "wild channels": ("channels", i(*range(20), 2**63 - 1)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs(best_library, name):
    inputs, attributes = panel_inputs()
    where, value = BAD[name]
    with pytest.raises(Exception, match="PrefixConvPanel: "):
        run(best_library, "PrefixConvPanel", {**inputs, where: value}, **attributes)
    if where in exact_inputs(inputs) and name != "one group":
        with pytest.raises(Exception, match="ConvReluPanel: "):
            run(best_library, "ConvReluPanel", exact_inputs({**inputs, where: value}), **attributes)
