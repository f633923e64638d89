"""What a hostile model can try beyond bad shapes: memory, time, attributes, inputs that change between runs."""

from __future__ import annotations

import time

import numpy as np
import pytest

from .cases import model, run, session
from .ops import Call, open_session
from .ops import model as make_model
from .quantized import good, run_quantized
from .test_block_conv import block_inputs, exact_inputs, inputs_of
from .test_door import CONV, conv_inputs, f, gemm_inputs
from .test_low_rank import case as low_rank_case
from .test_low_rank import run as run_low_rank
from .test_panel_conv import panel_inputs

STRIDED = {"strides": [2, 2], "dilations": [1, 1], "pads": [0, 0, 0, 0]}


@pytest.mark.parametrize("op", ["ConvRelu", "PrefixConvBlock", "DynamicPrefixConvBlock"])
def test_a_kernel_that_changes_between_runs(library, op):
    """Kernels of 1 and 2 with a stride of 2 make outputs of the same size: a remembered plan fits one of them."""
    shared = session(library, model(op, STRIDED))
    for size in (2, 1, 2, 1):
        inputs, _ = block_inputs(kernel=(size, size), strides=(2, 2), size=(6, 6))
        inputs = inputs_of(op, inputs)
        fresh = session(library, model(op, STRIDED)).run(None, inputs)
        for a, b in zip(shared.run(None, inputs), fresh, strict=True):
            np.testing.assert_array_equal(a, b)


def test_rows_and_columns_that_change_between_runs(library):
    """A column is turned into a row, but its stride and its dilation stay its own."""
    attributes = {"strides": [2, 3], "dilations": [1, 2], "pads": [0, 0, 0, 0]}
    shared = session(library, model("ConvRelu", attributes))
    rng = np.random.default_rng(0)
    for shape, kernel in (((9, 1), (3, 1)), ((1, 9), (1, 3))) * 2:
        inputs = {
            "X": rng.standard_normal((1, 4, *shape)).astype(np.float32),
            "W": rng.standard_normal((4, 3, *kernel)).astype(np.float32),
            "bias": f(3),
            "offset": f(1),
            "max": np.array([np.inf], np.float32),
        }
        fresh = session(library, model("ConvRelu", attributes)).run(None, inputs)
        np.testing.assert_array_equal(shared.run(None, inputs)[0], fresh[0])


@pytest.mark.parametrize("op", ["ConvRelu", "PrefixConvBlock", "DynamicPrefixConvBlock"])
def test_a_kernel_far_beyond_its_input(library, op):
    """A plan for a reach of 2^25 positions would take gigabytes, for 36 inputs and 24 outputs."""
    far = 2**24
    attributes = {"strides": [1, 1], "dilations": [far, 1], "pads": [far, 0, far, 0]}
    inputs, _ = block_inputs()
    inputs = inputs_of(op, inputs)
    if library.endswith("scalar.so"):
        assert run(library, op, inputs, **attributes)[0].shape == (1, 5, 6, 4)
        return
    with pytest.raises(Exception, match=f"{op}: not enough memory"):
        run(library, op, inputs, **attributes)


@pytest.mark.parametrize("op", ["ConvReluPanel", "PrefixConvPanel"])
def test_panels_with_a_kernel_far_beyond_the_input(library, op):
    """Nothing is planned for the reach, only for the outputs."""
    far = 2**24
    attributes = {"strides": [1, 1], "dilations": [far, 1], "pads": [far, 0, far, 0]}
    inputs, _ = panel_inputs()
    inputs = exact_inputs(inputs) if op == "ConvReluPanel" else inputs
    assert run(library, op, inputs, **attributes)[0].shape == (1, 21, 6, 4)


def test_many_rows_of_nothing(library):
    start = time.process_time()
    inputs = {"X": f(2**33, 0), "W": f(0, 0), "bias": f(0)}
    y, survivors = run(library, "SparseGemm", inputs)
    assert y.shape == (2**33, 0) and survivors.tolist() == [0]
    assert time.process_time() - start < 1


def test_time_grows_with_the_rows(best_library):
    """And not with their square, which is half a minute here."""
    inputs = good("TopK", outputs=2, groups=4, rows=2**19, k=2)
    start = time.process_time()
    run_quantized(best_library, "TopK", inputs)
    assert time.process_time() - start < 10


HEADS = {
    "PrefixArgMaxThreshold": lambda library, **a: run(library, "PrefixArgMaxThreshold", _head(), **a),
    "QuantizedArgMaxBound": lambda library, **a: run_quantized(library, "ArgMax", good("ArgMax"), **a),
    "LowRankArgMaxThreshold": lambda library, **a: run_low_rank(
        library, "ArgMax", low_rank_case("ArgMax", 0), **a
    ),
}


def _head():
    inputs = gemm_inputs()
    del inputs["offset"], inputs["max"], inputs["limit"]
    return {**inputs, "shift": f(2, 5), "margin": f(2, 5)}


@pytest.mark.parametrize("op", HEADS)
@pytest.mark.parametrize("name", ["keepdims", "select_last_index"])
@pytest.mark.parametrize("value", [2, -1, 2**63 - 1, 1.0, "1", (1, 0), (1.0, 2.0)], ids=str)
def test_flags_that_are_none(best_library, op, name, value):
    with pytest.raises(Exception, match=f"{op}: attribute {name} must be"):
        HEADS[op](best_library, **{name: value})


@pytest.mark.parametrize("name", ["strides", "dilations", "pads"])
@pytest.mark.parametrize("value", [1, 1.0, "1", (1.0, 1.0)], ids=str)
@pytest.mark.parametrize(
    "op",
    [
        *("PrefixConvThreshold", "ConvRelu", "PrefixConvBlock", "DynamicPrefixConvBlock"),
        *("ConvReluPanel", "PrefixConvPanel"),
    ],
)
def test_geometry_of_another_type(best_library, op, name, value):
    inputs = conv_inputs() if op == "PrefixConvThreshold" else inputs_of(op, block_inputs()[0])
    inputs = panel_inputs()[0] if op.endswith("Panel") else inputs
    inputs = exact_inputs(inputs) if op == "ConvReluPanel" else inputs
    with pytest.raises(Exception, match=f"{op}: attribute"):
        run(best_library, op, inputs, **{**CONV, name: value})


@pytest.mark.parametrize("value", [1, "1", (1.0,)], ids=str)
def test_z_of_another_type(best_library, value):
    inputs = gemm_inputs()
    del inputs["scale"], inputs["limit"]
    with pytest.raises(Exception, match="PrefixGemmStats: attribute z"):
        run(best_library, "PrefixGemmStats", inputs, z=value)


@pytest.mark.parametrize("value", [np.nan, -1.0, -np.inf])
def test_an_upper_end_below_the_lower_one(best_library, value):
    bad = {"max": np.array([value], np.float32)}
    block, attributes = block_inputs()
    with pytest.raises(Exception, match="PrefixGemmThreshold: max"):
        run(best_library, "PrefixGemmThreshold", {**gemm_inputs(), **bad})
    with pytest.raises(Exception, match="PrefixConvBlock: max"):
        run(best_library, "PrefixConvBlock", {**block, **bad}, **attributes)
    with pytest.raises(Exception, match="QuantizedGemmBound: max"):
        run_quantized(best_library, "Gemm", {**good("Gemm"), **bad})
    with pytest.raises(Exception, match="LowRankGemmThreshold: max"):
        run_low_rank(best_library, "Gemm", {**low_rank_case("Gemm", 0), **bad})


def test_the_lowest_code(library):
    """A code of 0, which no plan makes, is -128 times the scale with either sign of x."""
    inputs = good("Gemm", rows=2, outputs=16, groups=16)
    inputs |= {"codes": np.zeros_like(inputs["codes"]), "W": f(16, 16) - 128, "scale": f(16) + 1}
    inputs |= {"error": f(16) + np.float32(0.1), "norm": f(16) + 512, "bias": f(16)}
    inputs["X"] = np.array([[-1.0] * 16, [1.0] * 16], np.float32)
    y, survivors = run_quantized(library, "Gemm", inputs)
    assert (y[0] == 2048).all() and (y[1] == 0).all() and survivors.tolist() == [16]


def test_negative_margins(library):
    """The holder of the best lower end stays, as it does in the function."""
    rng = np.random.default_rng(0)
    inputs = {**_head(), "X": rng.standard_normal((9, 8)).astype(np.float32)}
    inputs |= {"W_head": rng.standard_normal((5, 2)).astype(np.float32), "margin": f(2, 5) - 1}
    call = Call("PrefixArgMaxThreshold", inputs, {"keepdims": 1, "select_last_index": 0})
    expected = open_session(make_model(call), None).run(None, inputs)
    for a, b in zip(open_session(make_model(call), library).run(None, inputs), expected, strict=True):
        np.testing.assert_array_equal(a, b)
