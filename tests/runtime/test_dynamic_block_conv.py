"""Convs in blocks whose channels are chosen per image: the choice itself. Shapes are those of ``test_block_conv``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import dynamic_prefix_conv_block, energy_order

from .cases import random_ends, relaxed, run
from .ops import Call, model, open_session
from .test_block_conv import CASES, LONG, block_inputs, compare, f, inputs_of

OP = "DynamicPrefixConvBlock"


def dynamic_inputs(seed=0, **sizes):
    """Inputs of the op and its attributes, for images whose orders differ."""
    inputs, attributes = block_inputs(seed, **sizes)
    return inputs_of(OP, inputs), attributes


def function(inputs, attributes):
    """What the op's function gives."""
    return open_session(model(Call(OP, inputs, attributes)), None).run(None, inputs)


def orders(inputs):
    return [tuple(energy_order(image, inputs["weight_energy"])) for image in inputs["X"]]


@pytest.mark.parametrize("case", CASES[:4] + CASES[6:9], ids=str)
@pytest.mark.parametrize("batch", [2, 5])
def test_every_image_has_its_own_order(library, case, batch):
    """A batch of images gives what each gives alone."""
    inputs, attributes = dynamic_inputs(**case, batch=batch)
    assert len(set(orders(inputs))) == batch
    y, survivors = run(library, OP, inputs, **attributes)
    total = np.zeros_like(survivors)
    for i in range(batch):
        one = {**inputs, "X": inputs["X"][i : i + 1]}
        if inputs["offset"].size > 1:
            one["offset"] = inputs["offset"][i : i + 1]
        alone, left = run(library, OP, one, **attributes)
        np.testing.assert_array_equal(alone[0], y[i])
        total += left
    np.testing.assert_array_equal(total, survivors)


def test_the_order_is_that_of_the_energies(library):
    """As a fixed order would have it, for an image whose energies give that order."""
    for case in (CASES[0], CASES[6], CASES[9]):
        inputs, attributes = dynamic_inputs(**case)
        (order,) = orders(inputs)
        fixed = {"X": inputs["X"], "order": np.array(order, np.int64)} | inputs
        del fixed["weight_energy"]
        fixed["W"] = inputs["W"][list(order)]
        y, survivors = run(library, OP, inputs, **attributes)
        want, left = run(library, "PrefixConvBlock", fixed, **attributes)
        np.testing.assert_allclose(y, want, atol=2e-5)
        np.testing.assert_array_equal(survivors, left)


def test_channels_of_one_energy_are_taken_by_index(library):
    """Two channels of the same energy, of which the first one says 'negative' and the other one 'positive'."""
    inputs, attributes = dynamic_inputs(groups=4, outputs=1, kernel=(1, 1), chunks=2)
    x = inputs["X"] = np.ones_like(inputs["X"])
    inputs |= {"ends": np.array([1, 4]), "scale": f(1, 1) + 1, "shift": f(1, 1), "bias": f(1), "offset": f(1)}
    inputs |= {"limit": f(1, 1) + np.float32(1e-6), "weight_energy": np.array([1, 2, 1, 2], np.float32)}
    for first, other in ((-1, 1), (1, -1)):
        inputs["W"] = np.array([0.5, first, 0.5, other], np.float32).reshape(4, 1, 1, 1)
        y, survivors = run(library, OP, inputs, **attributes)
        np.testing.assert_array_equal(y, np.full_like(y, first > 0))
        assert survivors.tolist() == [x[0, 0].size if first > 0 else 0]
        np.testing.assert_array_equal(function(inputs, attributes)[0], y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_channels_that_are_not_finite_come_first(library, value):
    """What they spoil is seen by the first check; NaN survives it."""
    inputs, attributes = dynamic_inputs(batch=3, size=(8, 8), block=4, pads=(1, 1, 1, 1))
    inputs["X"][1, 5, 3, 3] = value
    inputs["limit"][:] = 1e30
    assert orders(inputs)[1][0] == 5
    with np.errstate(all="ignore"):
        want = dynamic_prefix_conv_block(*inputs.values(), **attributes)
    y, survivors = run(library, OP, inputs, **attributes)
    compare(want, y, survivors)
    assert survivors[-1] > 0 and not y[[0, 2]].any()
    assert np.isnan(y[1]).any() if np.isnan(value) else np.isinf(y[1]).any()
    compare(want, *function(inputs, attributes))


@settings(relaxed, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(2, 70),
    batch=st.integers(1, 6),
    pixels=st.sampled_from([1, 3, 4, 15, 16, 17, 33, 64, 100]),
    spoiled=st.lists(st.sampled_from([np.nan, np.inf, 3e38, 1e-30, 0.0]), max_size=3),
    factors=st.lists(st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e38, 1e-38]), max_size=3),
)
def test_any_energies(library, seed, groups, batch, pixels, spoiled, factors):
    """Each output is one channel, and decided where that is not in the prefix: its estimate is then the bias alone."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-2, -1, 1, 2], (batch, groups, pixels)).astype(np.float32)  # with ties
    energies = rng.integers(1, 4, groups).astype(np.float32)
    for values, array in ((spoiled, x.reshape(-1)), (factors, energies)):
        for value in values:
            array[rng.integers(array.size)] = value
    ends = random_ends(rng, groups, int(rng.integers(2, 5)))
    checks = len(ends) - 1
    inputs = {
        "X": x,
        "weight_energy": energies,
        "ends": ends,
        "W": np.eye(groups, dtype=np.float32).reshape(groups, groups, 1),
        "bias": f(groups) + 1,
        "offset": f(1),
        "max": np.array([np.inf], np.float32),
        "scale": f(checks, groups) + np.float32(1e10),
        "shift": f(checks, groups),
        "limit": f(checks, groups) + np.float32(2 * pixels),
        "block": np.array([pixels]),
    }
    attributes = {"strides": [1], "dilations": [1], "pads": [0, 0]}
    with np.errstate(all="ignore"):
        want = dynamic_prefix_conv_block(*inputs.values(), **attributes)
    y, survivors = run(library, OP, inputs, **attributes)
    compare(want, y, survivors)


BAD_DYNAMIC = {
    "short energies": ("weight_energy", f(7)),
    "long energies": ("weight_energy", f(9)),
    "no energies": ("weight_energy", f(0)),
    "energies as a matrix": ("weight_energy", f(1, 8)),
    "one energy": ("weight_energy", np.array(1, np.float32)),
    "another G": ("X", f(1, 7, 6, 6)),
    "one group": ("X", f(1, 1, 6, 6)),
    "no groups": ("X", f(1, 0, 6, 6)),
    "W of another G": ("W", f(7, 5, 3, 3)),
    "ends do not end": ("ends", np.array([2, 4, 7])),
}


@pytest.mark.parametrize("name", BAD_DYNAMIC)
def test_bad_inputs(library, name):
    inputs, attributes = dynamic_inputs()
    where, value = BAD_DYNAMIC[name]
    with pytest.raises(Exception, match=f"{OP}: "):
        run(library, OP, {**inputs, where: value}, **attributes)


def test_a_session_sees_other_images(best_library):
    """Orders are those of the images of this run, with as many and with fewer of them."""
    for seed, batch in ((0, 4), (1, 1), (2, 6), (3, 2)):
        inputs, attributes = dynamic_inputs(seed, **LONG, batch=batch)
        with np.errstate(all="ignore"):
            want = dynamic_prefix_conv_block(*inputs.values(), **attributes)
        compare(want, *run(best_library, OP, inputs, **attributes))


def test_images_without_elements(library):
    """Nothing but padding: any order will do, and none is kept for images that take no memory themselves."""
    inputs, attributes = dynamic_inputs(groups=6, size=(4, 4), pads=(1, 1, 1, 1))
    inputs["X"] = f(3, 6, 4, 0)
    attributes["pads"] = [1, 2, 1, 2]
    with np.errstate(all="ignore"):
        want = dynamic_prefix_conv_block(*inputs.values(), **attributes)
    compare(want, *run(library, OP, inputs, **attributes))
