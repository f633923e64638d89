"""The ops with a quantised estimate: the dense layer's results, and bounds that hold and bite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .cases import relaxed
from .quantized import BAD, case, computed, f, good, reach, run_quantized, scores

seeds = st.integers(0, 2**32 - 1)
KINDS = ("Gemm", "ArgMax", "TopK")
#: Ways to draw weights: what the codes of a row make of them differs most.
SPREADS = {
    "normal": lambda rng, *s: rng.standard_normal(s),
    "one large": lambda rng, *s: np.where(rng.random(s) < 1 / s[1], 100.0, 0.01) * rng.standard_normal(s),
    "wide": lambda rng, *s: np.exp(4 * rng.standard_normal(s)) * rng.choice([-1, 1], s),
    "sparse": lambda rng, *s: rng.standard_normal(s) * (rng.random(s) < 0.1),
    "tiny": lambda rng, *s: 1e-38 * rng.standard_normal(s),
    "huge": lambda rng, *s: 1e36 * rng.standard_normal(s),
}


def tolerance(inputs):
    """What two float sums of the same products may differ by."""
    x, w = np.abs(inputs["X"]).astype(np.float64), np.abs(inputs["W"]).astype(np.float64)
    return 1e-6 * (x @ w.T + np.abs(inputs["bias"])) + 1e-44


@relaxed
@given(
    seed=seeds,
    rows=st.sampled_from([0, 1, 2, 4, 5, 9, 17, 64, 70, 130]),
    outputs=st.sampled_from([1, 5, 16, 65, 255, 257, 600]),
    groups=st.sampled_from([1, 2, 17, 64, 130, 256, 300, 700]),
    bits=st.sampled_from([6, 8]),
    full=st.booleans(),
    ceiling=st.sampled_from([np.inf, 0.4]),
    spread=st.sampled_from(sorted(SPREADS)),
    large=st.booleans(),
)
def test_gemm(library, seed, rows, outputs, groups, bits, full, ceiling, spread, large):
    rng = np.random.default_rng(seed)
    weight = (SPREADS[spread](rng, outputs, groups) / np.sqrt(groups)).astype(np.float32)
    x = SPREADS["one large" if large else "normal"](rng, rows, groups).astype(np.float32)
    inputs = case("Gemm", x, weight, rng, bits=bits)
    inputs["max"][0] = ceiling
    if full:
        inputs["offset"] = rng.standard_normal((rows, outputs)).astype(np.float32)
    y, survivors = run_quantized(library, "Gemm", inputs)
    value = scores(inputs) + inputs["offset"]
    wanted = np.clip(computed(library, inputs), 0, ceiling)
    with np.errstate(invalid="ignore"):
        good_enough = np.abs(y - wanted) <= tolerance(inputs) + 1e-6 * np.abs(inputs["offset"])
    good_enough |= (wanted > np.finfo(np.float32).max) & np.isposinf(y)
    assert y.shape == (rows, outputs) and good_enough.all()
    alive = value > tolerance(inputs) + 1e-6 * np.abs(inputs["offset"])
    undecided = ~(value + 2 * reach(library, inputs) < 0)
    assert alive.sum() <= survivors[0]
    # A call that gives up on the codes computes everything.
    assert survivors[0] <= undecided.sum() or survivors[0] >= 0.5 * value.size


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("bits", [6, 8])
def test_codes_at_their_ends(library, rows, bits):
    """The largest products that there are, all of one sign: nothing saturates."""
    weight = np.repeat(np.float32([[1], [-1]]), 160, axis=1).repeat(32, axis=0)
    inputs = case("Gemm", np.ones((rows, 160), np.float32), weight, np.random.default_rng(0), bits=bits)
    inputs["bias"][:] = np.where(weight[:, 0] > 0, -159, 159)
    y, survivors = run_quantized(library, "Gemm", inputs)
    np.testing.assert_array_equal(y, np.tile(np.float32([1, 0]).repeat(32), (rows, 1)))
    sure = np.abs(scores(inputs)) > 2 * reach(library, inputs)
    assert survivors[0] <= (~sure | (y > 0)).sum()


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_gemm_whose_codes_come_from_memory(library, rows):
    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((8200, 257)).astype(np.float32)
    inputs = case("Gemm", rng.standard_normal((rows, 257)).astype(np.float32), weight, rng, bits=8)
    y, survivors = run_quantized(library, "Gemm", inputs)
    value = scores(inputs) + inputs["offset"]
    assert (np.abs(y - np.maximum(computed(library, inputs), 0)) <= tolerance(inputs)).all()
    assert (value > tolerance(inputs)).sum() <= survivors[0]
    assert survivors[0] <= (value + 2 * reach(library, inputs) >= 0).sum()


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(
    seed=seeds,
    rows=st.sampled_from([1, 2, 5, 9, 20]),
    outputs=st.sampled_from([3, 70, 513, 1500]),
    groups=st.sampled_from([2, 40, 256, 300]),
    bits=st.sampled_from([6, 8]),
    k=st.sampled_from([1, 2, 10, 64]),
    last=st.integers(0, 1),
)
def test_ties_of_exact_scores(library, kind, seed, rows, outputs, groups, bits, k, last):
    """Small integers: sums are exact, and there are many equal scores and equal rows."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-3, 4, (outputs, groups)).astype(np.float32)
    weight[rng.integers(outputs, size=outputs // 3)] = weight[0]
    inputs = case(kind, rng.integers(-2, 3, (rows, groups)).astype(np.float32), weight, rng, bits=bits, k=k)
    inputs["bias"] = rng.integers(-2, 3, outputs).astype(np.float32)
    value = scores(inputs)
    if kind == "Gemm":
        y, _ = run_quantized(library, kind, inputs)
        np.testing.assert_array_equal(y, np.maximum(value, 0))
    elif kind == "ArgMax":
        index, _ = run_quantized(library, kind, inputs, select_last_index=last)
        wanted = outputs - 1 - value[:, ::-1].argmax(1) if last else value.argmax(1)
        np.testing.assert_array_equal(index, wanted)
    else:
        values, indices, _ = run_quantized(library, kind, inputs)
        order = np.argsort(-value, axis=1, kind="stable")[:, : inputs["k"][0]]
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(values, np.take_along_axis(value, order, 1))


@relaxed
@given(
    seed=seeds,
    lead=st.sampled_from([(1,), (3,), (2, 5), (0,), (30,)]),
    outputs=st.sampled_from([1, 2, 64, 700, 2000]),
    groups=st.sampled_from([3, 64, 300]),
    bits=st.sampled_from([6, 8]),
    k=st.sampled_from([1, 5, 64]),
    spread=st.sampled_from(sorted(SPREADS)),
)
def test_top_k(library, seed, lead, outputs, groups, bits, k, spread):
    rng = np.random.default_rng(seed)
    weight = SPREADS[spread](rng, outputs, groups).astype(np.float32)
    inputs = case(
        "TopK", rng.standard_normal((*lead, groups)).astype(np.float32), weight, rng, bits=bits, k=k
    )
    values, indices, survivors = run_quantized(library, "TopK", inputs)
    k = int(inputs["k"][0])
    value, close = scores(inputs).reshape(-1, outputs), tolerance(inputs).reshape(-1, outputs)
    assert values.shape == indices.shape == (*lead, k)
    rows = np.arange(len(value))[:, None]
    index = indices.reshape(-1, k)
    wanted = computed(library, inputs).reshape(value.shape)[rows, index]
    off = np.abs(values.reshape(-1, k) - wanted)
    assert ((off <= close[rows, index]) | (values.reshape(-1, k) == wanted)).all()
    assert (np.diff(values, axis=-1) <= 0).all()
    if value.size:
        kth = -np.sort(-value, axis=1)[:, k - 1, None]
        assert (value[rows, index] >= kth - 2 * close.max(axis=1, keepdims=True)).all()
        assert (np.diff(np.sort(index, axis=1), axis=1) > 0).all()
        bound = 2 * reach(library, inputs).reshape(value.shape)
        undecided = value + bound >= kth - bound.max(axis=1, keepdims=True)
        assert len(value) * k <= survivors[0] <= max(undecided.sum(), 1)


@relaxed
@given(
    seed=seeds,
    outputs=st.sampled_from([2, 70, 2000]),
    groups=st.sampled_from([3, 64, 300]),
    rows=st.sampled_from([1, 7]),
)
def test_argmax_is_the_first_of_top_k(library, seed, outputs, groups, rows):
    inputs = good("TopK", seed=seed, rows=rows, outputs=outputs, groups=groups, bits=6, k=1)
    _, indices, _ = run_quantized(library, "TopK", inputs)
    del inputs["k"]
    index, survivors = run_quantized(library, "ArgMax", inputs, keepdims=1)
    np.testing.assert_array_equal(index, indices)
    assert rows > 1 or survivors[0] != 1  # one class that is left is not computed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-40])
@pytest.mark.parametrize("where", ["X", "W"])
def test_odd_numbers_give_the_dense_result(library, kind, value, where):
    inputs = good(kind, rows=3, outputs=70, groups=40)
    if where == "X":
        inputs["X"][1, 7] = value
    else:
        inputs["W"][11, 7] = value
        inputs |= {
            k: v
            for k, v in case(kind, inputs["X"], inputs["W"], np.random.default_rng(1)).items()
            if k != "bias"
        }
    native, dense = run_quantized(library, kind, inputs), run_quantized(None, kind, inputs)
    for a, b in zip(native[:-1], dense[:-1], strict=True):
        if kind == "TopK" and np.isnan(value):  # the order among NaNs is nobody's
            a, b = a[[0, 2]], b[[0, 2]]
            if where == "W":
                continue
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    if kind == "Gemm" and where == "X" and abs(value) != 1e-40:
        assert native[-1][0] >= 70  # no bound holds for this row


def test_most_outputs_are_decided_early(library):
    """The bounds are not merely sound: with 8 bits they leave little more than what is alive. The layer is large enough
    for two planes of X."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3000, 768)).astype(np.float32)
    x = rng.standard_normal((1, 768)).astype(np.float32)
    inputs = case("Gemm", x, weight / np.float32(np.sqrt(768)), rng)
    inputs["bias"][:] = -1.645
    y, survivors = run_quantized(library, "Gemm", inputs)
    assert (y > 0).sum() <= survivors[0] <= 1.8 * (y > 0).sum()
    inputs = case("ArgMax", x, weight, rng, bits=6)
    assert run_quantized(library, "ArgMax", inputs)[1][0] <= 200


def test_a_layer_full_of_survivors_is_computed_densely(library):
    inputs = good("Gemm", rows=2, outputs=600, groups=64)
    inputs["bias"][:256] = 10
    inputs["bias"][256:] = -10
    y, survivors = run_quantized(library, "Gemm", inputs)
    np.testing.assert_allclose(y, np.maximum(scores(inputs), 0), rtol=1e-5)
    if "scalar" not in library:
        assert survivors[0] == 2 * 600


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 24])
def test_threads_and_company_change_nothing(library, kind, rows):
    inputs = good(kind, rows=rows, outputs=3000, groups=300, bits=6)
    once = run_quantized(library, kind, inputs)
    twice = run_quantized(library, kind, inputs, threads=2)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a, b)
    alone = [run_quantized(library, kind, {**inputs, "X": inputs["X"][r : r + 1]})[0][0] for r in range(rows)]
    np.testing.assert_array_equal(np.array(alone), once[0])
    assert len(run_quantized(library, kind, inputs, survivors=False)) == len(once) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", sorted(BAD))
def test_door(library, kind, what):
    where, value = BAD[what]
    if where == "k" and kind != "TopK":
        pytest.skip("has no k")
    with pytest.raises(Exception, match=f"Quantized{kind}Bound: {where}"):
        run_quantized(library, kind, {**good(kind), where: value})


def test_door_of_the_relu(library):
    for where, value in (("offset", f(3, 39)), ("offset", f(0)), ("max", f(2))):
        with pytest.raises(Exception, match=f"QuantizedGemmBound: {where}"):
            run_quantized(library, "Gemm", {**good("Gemm"), where: value})


def test_wild_parameters_do_not_crash(library):
    """Any numbers may stand in a file: results may be wrong, memory must not be."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        inputs = good(kind, rows=5, outputs=300, groups=300, bits=6)
        inputs["codes"] = rng.integers(0, 256, inputs["codes"].shape).astype(np.uint8)
        for name in ("scale", "error", "norm"):
            inputs[name] = rng.choice([np.nan, np.inf, -np.inf, -1.0, 0.0, 1e38], 300).astype(np.float32)
        results = run_quantized(library, kind, inputs)
        index = results[0] if kind == "ArgMax" else results[1] if kind == "TopK" else np.zeros(1)
        assert ((0 <= index) & (index < 300)).all()


@pytest.mark.parametrize("rows", [1, 4, 70])
def test_threads_change_nothing(library, rows):
    """Which thread takes which outputs is chance: results and counts must not show it."""
    inputs = good("Gemm", rows=rows, outputs=1100, groups=700)
    inputs["offset"] = np.full(1, -0.5, np.float32)
    one, two = (run_quantized(library, "Gemm", inputs, threads=threads) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
