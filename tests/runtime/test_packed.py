"""Weights that are constants, and the dense products that kernels turn to where many rows leave little to skip."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exprune_cli.functions import OPS

from .breakage import break_once
from .cases import relaxed
from .ops import Call, model, open_session, valid
from .quantized import case

#: Shares of a ReLU's outputs or inputs that are not 0: skipping pays, may pay, does not.
ALIVE = (0.05, 0.3, 0.6, 1.0)


def sparse_call(rng: np.random.Generator, rows: int, depth: int, columns: int, alive: float) -> Call:
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    x[rng.random(x.shape) >= alive] = 0
    w = rng.standard_normal((depth, columns)).astype(np.float32)
    return Call("SparseGemm", {"X": x, "W": w, "bias": rng.standard_normal(columns).astype(np.float32)})


def relu_call(rng: np.random.Generator, rows: int, groups: int, outputs: int, alive: float) -> Call:
    x = rng.standard_normal((rows, groups)).astype(np.float32)
    weight = (rng.standard_normal((outputs, groups)) / np.sqrt(groups)).astype(np.float32)
    inputs = case("Gemm", x, weight, rng)
    dead = rng.random(outputs) >= alive
    inputs["bias"] = np.where(dead, -9, 3 * rng.random(outputs)).astype(np.float32)
    return Call("QuantizedGemmBound", inputs)


def run(library: str, call: Call, threads: int = 1, constants: bool = True) -> list[np.ndarray]:
    session = open_session(model(call, constants=constants, function=False), library, threads)
    return session.run(None, {"X": call.inputs["X"]} if constants else call.inputs)


@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from([0, 1, 2, 3, 7, 12, 13, 64, 65, 150]),
    depth=st.sampled_from([1, 17, 100, 600, 1100]),
    columns=st.sampled_from([1, 7, 32, 33, 300]),
    alive=st.sampled_from(ALIVE),
    threads=st.sampled_from([1, 3]),
)
def test_a_row_of_a_sparse_product_is_the_same_alone(library, seed, rows, depth, columns, alive, threads):
    """Whether zeros are skipped or multiplied, sums run over the same numbers in the same order."""
    call = sparse_call(np.random.default_rng(seed), rows, depth, columns, alive)
    y, survivors = run(library, call, threads)
    x, w, bias = (call.inputs[name] for name in ("X", "W", "bias"))
    exact = x.astype(np.float64) @ w + bias
    assert (np.abs(y - exact) <= 1e-5 * (np.abs(x).astype(np.float64) @ np.abs(w) + np.abs(bias))).all()
    assert survivors.tolist() == [np.count_nonzero(x)]
    for row in range(min(rows, 2)):
        alone = Call(call.op, {**call.inputs, "X": x[row : row + 1]})
        np.testing.assert_array_equal(y[row : row + 1], run(library, alone)[0])


@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from([1, 2, 3, 7, 12, 13, 64, 65, 150]),
    groups=st.sampled_from([1, 17, 100, 600, 1100]),
    outputs=st.sampled_from([1, 7, 32, 33, 300]),
    alive=st.sampled_from(ALIVE),
    full=st.booleans(),
    ceiling=st.sampled_from([np.inf, 0.4]),
)
def test_a_relu_in_full(library, seed, rows, groups, outputs, alive, full, ceiling):
    rng = np.random.default_rng(seed)
    call = relu_call(rng, rows, groups, outputs, alive)
    call.inputs["max"][0] = ceiling
    if full:
        call.inputs["offset"] = (0.1 * rng.standard_normal((rows, outputs))).astype(np.float32)
    y, survivors = run(library, call, threads=2)
    x, w = call.inputs["X"].astype(np.float64), call.inputs["W"].astype(np.float64)
    exact = x @ w.T + call.inputs["bias"] + call.inputs["offset"]
    scale = np.abs(x) @ np.abs(w.T) + np.abs(call.inputs["bias"]) + np.abs(call.inputs["offset"])
    assert (np.abs(y - np.clip(exact, 0, ceiling)) <= 1e-5 * scale).all()
    assert np.count_nonzero(y) <= survivors[0] <= y.size


@pytest.mark.parametrize("make", [sparse_call, relu_call])
def test_special_numbers_in_full(library, make):
    """A NaN stays one; an infinite input is multiplied like any other."""
    call = make(np.random.default_rng(0), 16, 40, 70, 1.0)
    call.inputs["X"][3, 5], call.inputs["X"][7, 1] = np.nan, np.inf
    y = run(library, call)[0]
    assert np.isnan(y[3]).all()
    assert np.isin(y[7], [0, np.inf, -np.inf]).all()
    assert np.isfinite(np.delete(y, [3, 7], axis=0)).all()


@pytest.mark.parametrize("make", [sparse_call, relu_call])
def test_weights_that_change_are_not_kept(library, make):
    """The same session, weights from the graph's inputs: the second run has others."""
    first, second = (make(np.random.default_rng(seed), 30, 40, 70, 1.0) for seed in (0, 1))
    session = open_session(model(first, function=False), library)
    session.run(None, first.inputs)
    again = session.run(None, second.inputs)[0]
    np.testing.assert_allclose(again, run(library, second)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [sparse_call, relu_call])
def test_first_runs_at_the_same_time(best_library, make):
    """Each packs the weights; one copy is kept."""
    call = make(np.random.default_rng(0), 40, 200, 300, 1.0)
    session = open_session(model(call, constants=True, function=False), best_library, threads=2)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: session.run(None, {"X": call.inputs["X"]})[0], range(16)))
    for other in results:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("op", OPS)
def test_constants_are_inputs_like_others(best_library, op):
    """An op gives the same for initializers as for the graph's inputs, and refuses the same."""
    refused = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        call = valid(op, rng)
        promised = break_once(call, rng) if seed % 2 else True
        try:
            expected = run(best_library, call, constants=False)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has one class per code
            with pytest.raises(type(error)):
                run(best_library, call)
            refused += 1
            continue
        results = run(best_library, call)
        for a, b in zip(results[:-1], expected[:-1], strict=True):
            if not promised:  # codes of other weights: what they decide is nobody's promise
                assert a.shape == b.shape
                continue
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert refused
