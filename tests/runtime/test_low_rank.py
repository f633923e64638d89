"""The ops with a low-rank estimate: kernel, function and numpy take the same decisions."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from exprune_cli.functions import function_proto

from .cases import relaxed

INPUTS = {
    "Gemm": ("X", "V", "U", "W", "bias", "offset", "max", "limit"),
    "ArgMax": ("X", "V", "U", "W", "bias", "shift", "margin"),
}
INPUTS["CascadeGemm"] = (*INPUTS["Gemm"], "U_more", "limit_more")
INPUTS["CascadeArgMax"] = (*INPUTS["ArgMax"], "U_more", "shift_more", "margin_more")
EPS = 2.0**-20


def case(kind, seed, lead=(3,), outputs=40, groups=30, rank=5, full=False, ceiling=np.inf):
    rng = np.random.default_rng(seed)
    real = lambda *s: rng.standard_normal(s).astype(np.float32)
    down, up = real(rank, groups) / np.float32(np.sqrt(groups)), real(outputs, rank)
    inputs = {
        "X": real(*lead, groups),
        "V": down,
        "U": up,
        "W": up @ down + np.float32(0.3 / np.sqrt(groups)) * real(outputs, groups),
        "bias": real(outputs) * np.float32(0.3),
    }
    if is_gemm(kind):
        inputs["offset"] = real(*lead, outputs) if full else np.zeros(1, np.float32)
        inputs |= {"max": np.array([ceiling], np.float32), "limit": real(outputs) * np.float32(0.2)}
    else:
        inputs |= {
            "shift": inputs["bias"] + real(outputs) * np.float32(0.05),
            "margin": np.abs(real(outputs)),
        }
    if kind.startswith("Cascade"):
        first = int(rng.integers(1, rank))
        inputs["U"], inputs["U_more"] = up[:, :first].copy(), up[:, first:].copy()
        if is_gemm(kind):
            inputs["limit"] -= np.float32(1)
            inputs["limit_more"] = real(outputs) * np.float32(0.2)
        else:
            inputs["margin"] += np.float32(1)
            inputs["shift_more"] = real(outputs) * np.float32(0.05)
            inputs["margin_more"] = np.abs(real(outputs))
    return inputs


def is_gemm(kind):
    return kind.endswith("Gemm")


def model(kind, rank=None, opset=17, attributes=()):
    op = f"LowRank{kind}Threshold"
    ranks = {
        "V": 2,
        "U": 2,
        "U_more": 2,
        "W": 2,
        "X": rank,
        "offset": 1,
        "Y": rank and (rank if is_gemm(kind) else rank - 1),
    }
    first = TensorProto.FLOAT if is_gemm(kind) else TensorProto.INT64

    def value(name, dtype=TensorProto.FLOAT):
        size = rank and ranks.get(name, 1)
        return helper.make_tensor_value_info(name, dtype, size and [None] * size)

    node = helper.make_node(op, INPUTS[kind], ["Y", "survivors"], domain="com.exprune", **dict(attributes))
    outputs = [value("Y", first), value("survivors", TensorProto.INT64)]
    graph = helper.make_graph([node], "case", [value(n) for n in INPUTS[kind]], outputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.exprune", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function_proto(op, opset)])


@lru_cache(maxsize=32)
def _session(library, kind, attributes, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if library:
        options.register_custom_ops_library(library)
    data = model(kind, attributes=attributes).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(library, kind, inputs, threads=1, **attributes):
    if not is_gemm(kind):
        attributes = {"keepdims": 0, "select_last_index": 0, **attributes}
    return _session(library, kind, tuple(sorted(attributes.items())), threads).run(None, inputs)


def oracle(kind, inputs):
    """What must come out, and what rounding may change: results, survivors by check, and which results are sure."""
    x = inputs["X"].astype(np.float64)
    reduced, size = x @ inputs["V"].T, np.abs(x) @ np.abs(inputs["V"]).T
    ups = [inputs[name] for name in ("U", "U_more") if name in inputs]
    whole = np.concatenate(ups, axis=1)
    size = size @ np.abs(whole).T
    full, bias = x @ inputs["W"].T.astype(np.float64), inputs["bias"].astype(np.float64)
    noise = EPS * (size + np.abs(x) @ np.abs(inputs["W"]).T + 1)
    alive, sure, counts, guess, rank = True, True, [], 0.0, 0
    for up, more in zip(ups, ("", "_more"), strict=False):
        guess = guess + reduced[..., rank : rank + up.shape[1]] @ up.T
        rank += up.shape[1]
        if is_gemm(kind):
            gap = guess + bias + inputs["offset"] - inputs["limit" + more]
            alive, sure = alive & ~(gap < 0), sure & (np.abs(gap) > noise)
            counts.append(alive.sum())
            continue
        guess = guess + inputs["shift" + more]
        low, high = guess - inputs["margin" + more], guess + inputs["margin" + more]
        bar = np.where(alive, low, -np.inf).max(axis=-1, keepdims=True)
        alive = alive & ~(high < bar)
        sure &= (np.abs(high - bar) > noise + noise.max(axis=-1, keepdims=True)).all(axis=-1)
        count = alive.sum(axis=-1)
        counts.append(np.where(count > 1, count, 0).sum())
    if is_gemm(kind):
        y = np.clip(full + bias + inputs["offset"], 0, inputs["max"][0])
        return np.where(alive, y, 0), counts, sure
    score = np.where(alive, full + bias, -np.inf)
    best = np.sort(score, axis=-1)
    if score.shape[-1] > 1:
        sure &= best[..., -1] - best[..., -2] > noise.max(axis=-1)
    return score.argmax(axis=-1), counts, sure


def compare(kind, inputs, got):
    wanted, survivors, sure = oracle(kind, inputs)
    assert got[0].shape == wanted.shape
    assert len(got[1]) == len(survivors)
    if is_gemm(kind):
        close = np.abs(got[0] - wanted) <= 1e-5 * (1 + np.abs(wanted))
        assert (close | ~sure).all()
        assert (np.abs(got[1] - survivors) <= (~sure).sum()).all()
    else:
        assert ((got[0] == wanted) | ~sure).all()
        assert (got[1] == survivors).all() or not sure.all()


@pytest.mark.parametrize("kind", sorted(INPUTS))
@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    lead=st.sampled_from([(1,), (0,), (5,), (2, 9), (20,), (40,)]),
    outputs=st.sampled_from([1, 2, 17, 300, 600]),
    groups=st.sampled_from([1, 2, 30, 130]),
    rank=st.sampled_from([2, 3, 16, 40]),
    full=st.booleans(),
    ceiling=st.sampled_from([np.inf, 0.4]),
)
def test_kernel(library, kind, seed, lead, outputs, groups, rank, full, ceiling):
    inputs = case(kind, seed, lead, outputs, groups, rank, full, ceiling)
    got = run(library, kind, inputs)
    compare(kind, inputs, got)
    for a, b in zip(got, run(library, kind, inputs, threads=2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21, 25])
@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_function(kind, opset):
    attributes = () if is_gemm(kind) else (("keepdims", 0), ("select_last_index", 0))
    proto = model(kind, rank=3, opset=opset, attributes=attributes)
    onnx.checker.check_model(proto, full_check=True)
    inputs = case(kind, opset, (2, 3))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    compare(kind, inputs, session.run(None, inputs))
    compare(kind, inputs, ReferenceEvaluator(proto).run(None, inputs))


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_nothing_open_computes_nothing(library, kind):
    inputs = case(kind, 0)
    inputs["W"][:] = np.nan
    if is_gemm(kind):
        inputs["limit"][:] = np.inf
    else:
        inputs["margin"][:] = -100  # as good as 0
        inputs["shift"][3] = 1e6  # one class is far ahead of all
    for which in (library, None):
        result, survivors = run(which, kind, inputs)
        assert not survivors.any()
        assert (result == (0 if is_gemm(kind) else 3)).all()


@pytest.mark.parametrize("kind", ["CascadeGemm", "CascadeArgMax"])
def test_a_second_estimate_cannot_take_a_decision_back(library, kind):
    """What the first check decides stays decided, whatever the second one's numbers are."""
    inputs = case(kind, 0)
    if is_gemm(kind):
        inputs["limit"][::2] = np.inf
        inputs["limit_more"][::2] = -np.inf
    else:
        inputs["shift"][::2] = -1e6
        inputs["shift_more"][::2] = np.inf
        inputs["margin_more"][::2] = np.nan
    for which in (library, None):
        result, survivors = run(which, kind, inputs)
        assert survivors[1] <= survivors[0] <= 3 * 20
        if is_gemm(kind):
            assert not result[..., ::2].any() and result.any()
        else:
            assert (result % 2 == 1).all()


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_a_nan_survives(library, kind):
    inputs = case(kind, 0)
    inputs["X"][1, 4] = np.nan
    native, function = run(library, kind, inputs), run(None, kind, inputs)
    np.testing.assert_array_equal(native[1], function[1])
    if is_gemm(kind):
        np.testing.assert_allclose(native[0], function[0], rtol=1e-5, atol=1e-6)
        assert np.isnan(native[0][1]).all()
    else:
        np.testing.assert_array_equal(native[0], function[0])


BAD = {
    "scalar X": ("X", np.zeros((), np.float32)),
    "no features": ("X", np.zeros((3, 0), np.float32)),
    "another G": ("W", np.zeros((40, 29), np.float32)),
    "no outputs": ("W", np.zeros((0, 30), np.float32)),
    "no rank": ("V", np.zeros((0, 30), np.float32)),
    "V of another G": ("V", np.zeros((5, 29), np.float32)),
    "U of another rank": ("U", np.zeros((40, 6), np.float32)),
    "U of other outputs": ("U", np.zeros((39, 5), np.float32)),
    "short bias": ("bias", np.zeros(39, np.float32)),
    "limit a matrix": ("limit", np.zeros((1, 40), np.float32)),
    "short shift": ("shift", np.zeros(1, np.float32)),
    "long margin": ("margin", np.zeros(41, np.float32)),
    "max of two": ("max", np.zeros(2, np.float32)),
    "offset of no shape": ("offset", np.zeros((3, 39), np.float32)),
    "no more": ("U_more", np.zeros((40, 0), np.float32)),
    "as much more as V": ("U_more", np.zeros((40, 5), np.float32)),
    "more of other outputs": ("U_more", np.zeros((39, 2), np.float32)),
    "short limit of more": ("limit_more", np.zeros(39, np.float32)),
    "long shift of more": ("shift_more", np.zeros(41, np.float32)),
    "margin of more a matrix": ("margin_more", np.zeros((1, 40), np.float32)),
}


@pytest.mark.parametrize("kind", sorted(INPUTS))
@pytest.mark.parametrize("what", sorted(BAD))
def test_door(library, kind, what):
    where, value = BAD[what]
    if where not in INPUTS[kind]:
        pytest.skip("not an input of this op")
    with pytest.raises(Exception, match=f"LowRank{kind}Threshold: {where}"):
        run(library, kind, {**case(kind, 0), where: value})
