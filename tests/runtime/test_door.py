"""Bad shapes, values and attributes: an exception that names the op and the input, never a crash."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import random_site, run

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
CONV = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}


def gemm_inputs():
    site = random_site(np.random.default_rng(0), "Gemm", "Threshold", 5, 8, 1, 3)
    inputs = {k: v[..., 0] if k.startswith("W_") else v for k, v in site.inputs.items()}
    inputs["ends"] = np.array([2, 4, 8])
    return {
        "X": np.ones((3, 8), np.float32),
        **inputs,
        "W_head": np.ones((5, 2), np.float32),
        "W_tail": np.ones((5, 6), np.float32),
        "offset": np.zeros(1, np.float32),
        "max": np.array([np.inf], np.float32),
        **site.parameters,
    }


def conv_inputs():
    inputs = gemm_inputs()
    inputs["X"] = np.ones((1, 8, 6, 6), np.float32)
    inputs["W_head"], inputs["W_tail"] = np.ones((5, 2, 3, 3), np.float32), np.ones((5, 6, 3, 3), np.float32)
    return inputs


def f(*shape):
    return np.zeros(shape, np.float32)


def i(*values):
    return np.array(values, np.int64)


BAD_GEMM = {
    "scalar X": ("X", f()),
    "another G": ("X", f(3, 9)),
    "no groups": ("X", f(3, 0)),
    "huge empty X": ("X", f(2**30, 2**30, 0)),
    "short order": ("order", i(0, 1, 2)),
    "order of two dims": ("order", np.arange(8).reshape(2, 4)),
    "order out of range": ("order", i(0, 1, 2, 3, 4, 5, 6, 8)),
    "negative order": ("order", i(0, 1, 2, 3, 4, 5, 6, -1)),
    "repeated order": ("order", i(0, 1, 2, 3, 4, 5, 6, 6)),
    "wild order": ("order", i(INT_MIN, INT_MAX, 2, 3, 4, 5, 6, 7)),
    "one chunk": ("ends", i(8)),
    "no chunk": ("ends", i()),
    "scalar ends": ("ends", np.array(8)),
    "ends do not end": ("ends", i(2, 4, 7)),
    "ends go on": ("ends", i(2, 4, 9)),
    "ends fall": ("ends", i(4, 2, 8)),
    "ends repeat": ("ends", i(2, 2, 8)),
    "ends from zero": ("ends", i(0, 4, 8)),
    "wild ends": ("ends", i(INT_MIN, INT_MAX, 8)),
    "head too narrow": ("W_head", f(5, 1)),
    "head of no outputs": ("W_head", f(0, 2)),
    "head of another rank": ("W_head", f(5, 2, 1)),
    "head too tall": ("W_head", f(6, 2)),
    "tail too wide": ("W_tail", f(5, 7)),
    "tail too short": ("W_tail", f(4, 6)),
    "tail a vector": ("W_tail", f(30)),
    "bias too long": ("bias", f(6)),
    "bias a matrix": ("bias", f(1, 5)),
    "offset of no shape": ("offset", f(3, 4)),
    "offset empty": ("offset", f(0)),
    "offset of another rank": ("offset", f(15)),
    "max of two": ("max", f(2)),
    "max empty": ("max", f(0)),
    "scale of one check": ("scale", f(1, 5)),
    "limit a vector": ("limit", f(10)),
}


@pytest.mark.parametrize("name", BAD_GEMM)
def test_gemm(best_library, name):
    where, value = BAD_GEMM[name]
    with pytest.raises(Exception, match="PrefixGemmThreshold: ") as caught:
        run(best_library, "PrefixGemmThreshold", {**gemm_inputs(), where: value})
    if where == "X" and "G" not in name and "huge" not in name:
        assert "X" in str(caught.value)
    # And the same session goes on.
    y, _ = run(best_library, "PrefixGemmThreshold", gemm_inputs())
    assert y.shape == (3, 5)


BAD_CONV = {
    "rank of 1-D": ("X", f(1, 8, 6)),
    "rank of 3-D": ("X", f(1, 8, 6, 6, 6)),
    "smaller than the kernel": ("X", f(1, 8, 2, 6)),
    "another G": ("X", f(1, 7, 6, 6)),
    "empty kernel": ("W_head", f(5, 2, 0, 3)),
    "kernel without dims": ("W_head", f(5, 2)),
    "another kernel": ("W_tail", f(5, 6, 3, 1)),
    "offset of another size": ("offset", f(1, 5, 4, 3)),
    "a plane too large": ("X", f(0, 8, 2**17, 2**17)),
}


@pytest.mark.parametrize("name", BAD_CONV)
def test_conv(best_library, name):
    where, value = BAD_CONV[name]
    with pytest.raises(Exception, match="PrefixConvThreshold: "):
        run(best_library, "PrefixConvThreshold", {**conv_inputs(), where: value}, **CONV)
    y, _ = run(best_library, "PrefixConvThreshold", conv_inputs(), **CONV)
    assert y.shape == (1, 5, 4, 4)


BAD_ATTRIBUTES = [
    {"strides": [0, 1]},
    {"strides": [-1, 1]},
    {"strides": [INT_MAX, 1]},
    {"strides": [1]},
    {"strides": [1, 1, 1]},
    {"dilations": [0, 1]},
    {"dilations": [1, INT_MIN]},
    {"pads": [-1, 0, 0, 0]},
    {"pads": [INT_MAX, 0, INT_MAX, 0]},
    {"pads": [0, 0]},
    {"pads": [0] * 5},
]


@pytest.mark.parametrize("attributes", BAD_ATTRIBUTES, ids=str)
def test_conv_attributes(best_library, attributes):
    with pytest.raises(Exception, match="PrefixConvThreshold"):
        run(best_library, "PrefixConvThreshold", conv_inputs(), **{**CONV, **attributes})


def test_missing_attributes(best_library):
    with pytest.raises(Exception, match="strides"):
        run(best_library, "PrefixConvThreshold", conv_inputs())
    inputs = gemm_inputs()
    del inputs["scale"], inputs["limit"]
    with pytest.raises(Exception, match="PrefixGemmStats: attribute z"):
        run(best_library, "PrefixGemmStats", inputs)
    with pytest.raises(Exception, match="PrefixGemmStats: attribute z"):
        run(best_library, "PrefixGemmStats", inputs, z=float("nan"))


def test_an_output_far_too_large(best_library):
    attributes = {**CONV, "pads": [2**30, 2**30, 2**30, 2**30]}
    with pytest.raises(Exception, match="PrefixConvThreshold: X"):
        run(best_library, "PrefixConvThreshold", conv_inputs(), **attributes)


def test_dilation_beyond_the_input(best_library):
    with pytest.raises(Exception, match="smaller than the kernel"):
        run(best_library, "PrefixConvThreshold", conv_inputs(), **{**CONV, "dilations": [2**31 - 1, 1]})


def test_a_kernel_over_nothing_but_padding(best_library):
    inputs = conv_inputs()
    inputs["X"] = f(1, 8, 0, 6)
    inputs["limit"][:] = -np.inf
    y, survivors = run(best_library, "PrefixConvThreshold", inputs, **{**CONV, "pads": [2, 0, 2, 0]})
    assert y.shape == (1, 5, 2, 4) and survivors.tolist() == [40, 40]
    assert np.allclose(y, np.maximum(inputs["bias"], 0)[None, :, None, None])


@pytest.mark.parametrize(
    "inputs",
    [
        {"X": f(2, 3), "W": f(4, 5), "bias": f(5)},
        {"X": f(2, 3), "W": f(3, 5), "bias": f(4)},
        {"X": f(2, 3), "W": f(3), "bias": f(3)},
        {"X": f(), "W": f(1, 5), "bias": f(5)},
        {"X": f(2, 3), "W": f(3, 5), "bias": f(1, 5)},
    ],
)
def test_sparse(best_library, inputs):
    with pytest.raises(Exception, match="SparseGemm: "):
        run(best_library, "SparseGemm", inputs)


def test_argmax(best_library):
    inputs = gemm_inputs()
    del inputs["offset"], inputs["max"], inputs["limit"]
    inputs.update(shift=f(2, 5), margin=f(2, 5))
    index, _ = run(best_library, "PrefixArgMaxThreshold", inputs)
    assert index.shape == (3, 1)
    for name, value in {"X": f(), "margin": f(5), "ends": i(8), "bias": f(1)}.items():
        with pytest.raises(Exception, match="PrefixArgMaxThreshold: "):
            run(best_library, "PrefixArgMaxThreshold", {**inputs, name: value})


def test_wrong_types_are_refused_when_loading(best_library):
    from .cases import model, session

    data = model("PrefixGemmThreshold", constants={"order": np.zeros(8, np.float32)})
    with pytest.raises(Exception, match="PrefixGemmThreshold|order|[Tt]ype"):
        session(best_library, data)
