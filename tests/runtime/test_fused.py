"""The fused operators: kernel, function and numpy agree, and bad inputs are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from exprune_cli.functions import FUSED_MIN_OPSET, FUSED_OPS, fused_function_proto

from .breakage import break_once
from .cases import relaxed
from .fused import (
    OUTPUTS,
    attention,
    attention_inputs,
    embedding,
    embedding_inputs,
    inputs_of,
    model,
    norm,
    norm_inputs,
    session,
    wanted_of,
)
from .ops import Call

#: Float rounding of some hundred additions of numbers of size 1.
CLOSE = 4e-6


def close(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=CLOSE, atol=CLOSE * max(1, np.abs(b).max(initial=0)))


@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([1, 2, 5, 0]),
    length=st.sampled_from([1, 1, 0, 3]),
    heads=st.sampled_from([1, 3, 12]),
    size=st.sampled_from([1, 7, 16, 32, 65]),
    past=st.sampled_from([0, 1, 15, 16, 17, 70]),
    layers=st.sampled_from([0, 1, 3]),
)
def test_attention(library, seed, batch, length, heads, size, past, layers):
    inputs = attention_inputs(seed, batch, length, heads, size, past, layers)
    op = "StackedCachedAttention" if layers else "CachedAttention"
    got = session(library, op).run(None, inputs)
    close(got, attention(inputs))
    for a, b in zip(got, session(library, op, 2).run(None, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    if batch and length and past:  # ONNX's Reshape and Softmax have their own ideas of nothing
        close(session(None, op).run(None, inputs), attention(inputs))


@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    lead=st.sampled_from([(), (1,), (2, 1), (0,), (3, 40)]),
    width=st.sampled_from([1, 2, 15, 16, 33, 160, 768]),
)
def test_residual_norm(library, seed, lead, width):
    inputs = norm_inputs(seed, (*lead, width))
    got = session(library, "ResidualNorm").run(None, inputs)
    close(got, norm(inputs))
    for a, b in zip(got, session(library, "ResidualNorm", 2).run(None, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    if 0 not in lead:
        close(session(None, "ResidualNorm").run(None, inputs), norm(inputs))


@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([1, 2, 0]),
    length=st.sampled_from([1, 1, 0, 3]),
    width=st.sampled_from([1, 15, 16, 33, 160]),
    past=st.sampled_from([0, 1, 8]),
    axis=st.sampled_from([0, 2, 3]),
)
def test_token_embedding(library, seed, batch, length, width, past, axis):
    inputs = embedding_inputs(seed, batch, length, width, past, axis)
    (wanted,) = embedding(inputs)
    for backend in (library, None):
        np.testing.assert_array_equal(session(backend, "TokenEmbedding").run(None, inputs)[0], wanted)


@pytest.mark.parametrize("past", [9, 40])
def test_beyond_the_last_position(best_library, past):
    """A Slice there is empty: so is its sum with one position, and there is none with several."""
    for backend in (best_library, None):
        (y,) = session(backend, "TokenEmbedding").run(None, embedding_inputs(1, past=past))
        assert y.shape == (2, 0, 40)
        with pytest.raises(Exception, match="TokenEmbedding: positions has no row|Add"):
            session(backend, "TokenEmbedding").run(None, embedding_inputs(1, length=2, past=past))


def test_large_scores_and_nothing_lost(library):
    """Scores of thousands: exponentials neither overflow nor vanish all."""
    inputs = attention_inputs(1, size=32, past=40)
    inputs["scale"] = np.array([300], np.float32)
    got = session(library, "CachedAttention").run(None, inputs)
    wanted = attention(inputs)
    assert np.isfinite(got[0]).all()
    # A score's rounding, times its size of some thousands, is a share of its exponential.
    np.testing.assert_allclose(got[0], wanted[0], atol=5e-3)


@pytest.mark.parametrize("where", ["X", "past_key", "past_value"])
def test_not_a_number_spoils_its_own_head(library, where):
    inputs = attention_inputs(2, batch=1, heads=2)
    inputs[where].reshape(-1)[0] = np.nan
    (y, *_) = session(library, "CachedAttention").run(None, inputs)
    wanted = attention(inputs)[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(wanted))
    assert np.isnan(y).any() and not np.isnan(y).all()


def test_not_a_number_spoils_its_own_row(library):
    inputs = norm_inputs(3, (4, 33))
    inputs["X"][1, 2] = np.nan
    normed, _ = session(library, "ResidualNorm").run(None, inputs)
    np.testing.assert_array_equal(np.isnan(normed).all(-1), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(normed).any(-1), [False, True, False, False])


BAD = {
    "no cache's rank": ("past_key", np.zeros((2, 3, 8), np.float32)),
    "another batch": ("past_key", np.zeros((3, 3, 5, 8), np.float32)),
    "another size": ("past_value", np.zeros((2, 3, 5, 7), np.float32)),
    "another past": ("past_value", np.zeros((2, 3, 4, 8), np.float32)),
    "no heads": ("heads", np.array([0], np.int64)),
    "heads that do not divide": ("heads", np.array([5], np.int64)),
    "two scales": ("scale", np.zeros(2, np.float32)),
    "a short bias": ("bias", np.zeros(3, np.float32)),
    "a flat X": ("X", np.zeros((2, 72), np.float32)),
    "no features": ("X", np.zeros((2, 1, 0), np.float32)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_attention(best_library, name):
    where, value = BAD[name]
    named = {"heads that do not divide": "X", "no features": "X"}.get(name, where)
    with pytest.raises(Exception, match=f"CachedAttention: {named} "):
        session(best_library, "CachedAttention").run(None, {**attention_inputs(0), where: value})


@pytest.mark.parametrize("layer", [-1, 3])
def test_no_such_layer(best_library, layer):
    inputs = {**attention_inputs(0, layers=3), "layer": np.array([layer], np.int64)}
    with pytest.raises(Exception, match="layer is .*, expected 0 to 2"):
        session(best_library, "StackedCachedAttention").run(None, inputs)


@pytest.mark.parametrize("where", ["Y", "bias", "scale", "shift"])
def test_bad_residual_norm(best_library, where):
    inputs = {**norm_inputs(0), where: np.zeros((2, 3), np.float32)}
    with pytest.raises(Exception, match=f"ResidualNorm: {where} "):
        session(best_library, "ResidualNorm").run(None, inputs)


BAD_EMBEDDING = {
    "a flat token": ("token", np.zeros(2, np.int64)),
    "no such token": ("token", np.array([[30]])),
    "no such token from the end": ("token", np.array([[-31]])),
    "another width": ("positions", np.zeros((9, 39), np.float32)),
    "a flat table": ("table", np.zeros(40, np.float32)),
    "no such axis": ("axis", np.array([4])),
    "two axes": ("axis", np.array([0, 1])),
}


@pytest.mark.parametrize("name", BAD_EMBEDDING)
def test_bad_token_embedding(best_library, name):
    where, value = BAD_EMBEDDING[name]
    with pytest.raises(Exception, match=f"TokenEmbedding: {where} "):
        session(best_library, "TokenEmbedding").run(None, {**embedding_inputs(0), where: value})


@pytest.mark.parametrize("op", FUSED_OPS)
def test_broken_calls_are_refused_or_run(best_library, op):
    """Shapes, sizes and numbers go wrong at random: an error or a result, and the next call is right."""
    refused = 0
    for number in range(300):
        rng = np.random.default_rng(number)
        inputs = inputs_of(op, number)
        call = Call(op, dict(inputs))
        break_once(call, rng)
        try:
            session(best_library, op).run(None, call.inputs)
        except Exception:  # noqa: BLE001 - ONNX Runtime has one class per code
            refused += 1
    assert refused > 30
    close(session(best_library, op).run(None, inputs), wanted_of(op, inputs))


@pytest.mark.parametrize("opset", [FUSED_MIN_OPSET, 18, 21])
@pytest.mark.parametrize("op", FUSED_OPS)
def test_function(op, opset):
    inputs = inputs_of(op, 4)
    wanted = wanted_of(op, inputs)
    close(session(None, op, opset=opset).run(None, inputs), wanted)
    close(ReferenceEvaluator(model(op, opset)).run(None, inputs), wanted)
    assert OUTPUTS[op] == tuple(fused_function_proto(op, opset).output)


def test_no_function_of_old_opsets_and_other_names():
    with pytest.raises(ValueError, match="opset 16"):
        fused_function_proto("ResidualNorm", FUSED_MIN_OPSET - 1)
    with pytest.raises(ValueError, match="no op"):
        fused_function_proto("Nothing", 17)
