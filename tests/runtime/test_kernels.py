"""Every op with every set of kernels against the numpy oracle, on generated shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from .cases import KINDS, random_site, relaxed, run, spoil
from .oracle import patches, staged_argmax, staged_relu

seeds = st.integers(0, 2**32 - 1)


def offset_and_max(rng, shape, full, clipped):
    offset = rng.standard_normal(shape if full else 1).astype(np.float32) * np.float32(0.3)
    return offset, np.array([0.7 if clipped else np.inf], np.float32)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(
    seed=seeds,
    lead=st.sampled_from([(1,), (), (3,), (2, 9), (0,), (17,), (40,), (2, 1, 35)]),
    outputs=st.sampled_from([1, 2, 7, 16, 33, 70]),
    groups=st.sampled_from([2, 3, 17, 64, 150]),
    chunks=st.integers(2, 6),
    full=st.booleans(),
    clipped=st.booleans(),
    spoiled=st.booleans(),
)
@example(seed=1, lead=(33,), outputs=300, groups=600, chunks=3, full=True, clipped=False, spoiled=False)
@example(seed=2, lead=(5,), outputs=300, groups=600, chunks=3, full=True, clipped=False, spoiled=False)
def test_prefix_gemm(library, kind, seed, lead, outputs, groups, chunks, full, clipped, spoiled):
    rng = np.random.default_rng(seed)
    site = random_site(rng, "Gemm", kind, outputs, groups, 1, chunks)
    x = rng.standard_normal((*lead, groups)).astype(np.float32)
    if spoiled:
        x = spoil(rng, x)
    offset, maximum = offset_and_max(rng, (*lead, outputs), full, clipped)
    inputs = {k: v[..., 0] if k.startswith("W_") else v for k, v in site.inputs.items()}
    y, survivors = run(
        library,
        "PrefixGemm" + kind,
        {"X": x, **inputs, "offset": offset, "max": maximum, **site.parameters},
        **({"z": site.z} if kind == "Stats" else {}),
    )
    assert y.shape == (*lead, outputs)
    rows = x.reshape(-1, groups, 1)
    spread = offset.reshape(-1, outputs) if full and offset.size != 1 else offset.reshape(-1)[:1]
    if full and offset.size == 0:
        spread = 0.0
    staged_relu(kind, site, rows, spread, maximum[0]).compare(y.reshape(-1, outputs), survivors)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(data=st.data(), seed=seeds, rank=st.sampled_from([1, 2]))
def test_prefix_conv(library, kind, data, seed, rank):
    draw = lambda values: data.draw(st.sampled_from(values))
    rng = np.random.default_rng(seed)
    kernel = tuple(draw([1, 2, 3, 5]) for _ in range(rank))
    strides = tuple(draw([1, 1, 2, 3]) for _ in range(rank))
    dilations = tuple(draw([1, 1, 2]) for _ in range(rank))
    pads = tuple(draw([0, 1, 2]) for _ in range(2 * rank))
    reach = [dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[rank + a] for a in range(rank)]
    size = tuple(max(1, reach[a]) + draw([0, 1, 5, 12]) for a in range(rank))
    batch, groups, outputs = draw([1, 1, 2, 0]), draw([2, 3, 9]), draw([1, 5, 16, 21])
    site = random_site(rng, "Conv", kind, outputs, groups, int(np.prod(kernel)), draw([2, 3, 4]))
    x = rng.standard_normal((batch, groups, *size)).astype(np.float32)
    if draw([False, False, True]):
        x = spoil(rng, x)
    rows, out = patches(x, kernel, strides, dilations, pads)
    pixels = int(np.prod(out))

    def by_pixel(a):
        return a.reshape(batch, outputs, pixels).transpose(0, 2, 1).reshape(batch * pixels, outputs)

    full = draw([True, False])
    offset, maximum = offset_and_max(rng, (batch, outputs, *out), full, draw([True, False]))
    inputs = {
        k: v.reshape(*v.shape[:2], *kernel) if k.startswith("W_") else v for k, v in site.inputs.items()
    }
    y, survivors = run(
        library,
        "PrefixConv" + kind,
        {"X": x, **inputs, "offset": offset, "max": maximum, **site.parameters},
        strides=strides,
        dilations=dilations,
        pads=pads,
        **({"z": site.z} if kind == "Stats" else {}),
    )
    assert y.shape == (batch, outputs, *out)
    if full and offset.size > 1:
        spread = by_pixel(offset)
    else:
        spread = float(offset.reshape(-1)[0]) if offset.size else 0.0
    flat = rows.reshape(batch * pixels, groups, rows.shape[-1])
    staged_relu(kind, site, flat, spread, maximum[0]).compare(by_pixel(y), survivors)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(
    seed=seeds,
    lead=st.sampled_from([(1,), (), (3,), (2, 9), (0,), (20,)]),
    outputs=st.sampled_from([1, 2, 9, 64, 300, 600]),
    groups=st.sampled_from([2, 3, 17, 90]),
    chunks=st.integers(2, 5),
    keep=st.integers(0, 1),
    last=st.integers(0, 1),
    spoiled=st.booleans(),
)
def test_prefix_argmax(library, kind, seed, lead, outputs, groups, chunks, keep, last, spoiled):
    rng = np.random.default_rng(seed)
    site = random_site(rng, "ArgMax", kind, outputs, groups, 1, chunks)
    x = rng.standard_normal((*lead, groups)).astype(np.float32)
    if spoiled and x.size:
        x.reshape(-1, groups)[0, rng.integers(groups)] = np.nan
    inputs = {k: v[..., 0] if k.startswith("W_") else v for k, v in site.inputs.items()}
    index, survivors = run(
        library,
        "PrefixArgMax" + kind,
        {"X": x, **inputs, **site.parameters},
        keepdims=keep,
        select_last_index=last,
        **({"z": site.z} if kind == "Stats" else {}),
    )
    assert index.shape == ((*lead, 1) if keep else lead) and index.dtype == np.int64
    staged_argmax(kind, site, x.reshape(-1, groups), bool(last)).compare(index, survivors)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(seed=seeds, last=st.booleans(), outputs=st.sampled_from([5, 300]))
def test_ties_of_exact_scores(library, kind, seed, last, outputs):
    """Small integers: sums are exact, so ties are ties and nothing is too close to call."""
    rng = np.random.default_rng(seed)
    whole = lambda *s: rng.integers(-2, 3, s).astype(np.float32)
    site = random_site(rng, "ArgMax", kind, outputs, 8, 1, 3)
    if kind == "Stats":
        site.ends, site.z = np.array([4, 8], np.int64), -1e6 * 1.0
    site.weight, site.bias = whole(outputs, 8, 1), whole(outputs)
    site.parameters = {k: np.abs(whole(*v.shape)) for k, v in site.parameters.items()}
    if kind == "Bound":
        site.parameters = {k: np.full_like(v, 100) for k, v in site.parameters.items()}
    x = whole(4, 8)
    inputs = {k: v[..., 0] if k.startswith("W_") else v for k, v in site.inputs.items()}
    attributes = {"z": site.z} if kind == "Stats" else {}
    index, survivors = run(
        library,
        "PrefixArgMax" + kind,
        {"X": x, **inputs, **site.parameters},
        keepdims=0,
        select_last_index=int(last),
        **attributes,
    )
    staged_argmax(kind, site, x, last, rounding=0.0).compare(index, survivors)


def test_the_best_class_stays_with_a_negative_margin(library):
    site = random_site(np.random.default_rng(0), "ArgMax", "Threshold", 6, 4, 1, 2)
    site.parameters["margin"] = np.full((1, 6), -100, np.float32)
    inputs = {k: v[..., 0] if k.startswith("W_") else v for k, v in site.inputs.items()}
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    index, survivors = run(library, "PrefixArgMaxThreshold", {"X": x, **inputs, **site.parameters})
    head = x[:, site.order[: site.ends[0]]] @ inputs["W_head"].T
    scores = site.parameters["scale"] * head + site.parameters["shift"]
    assert (index[:, 0] == scores.argmax(1)).all() and survivors.tolist() == [0]


@relaxed
@given(
    seed=seeds,
    lead=st.sampled_from([(1,), (), (3,), (2, 5), (0,), (66,)]),
    depth=st.sampled_from([0, 1, 5, 100, 600]),
    columns=st.sampled_from([0, 1, 7, 33, 300]),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    spoiled=st.booleans(),
)
def test_sparse_gemm(library, seed, lead, depth, columns, density, spoiled):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*lead, depth)).astype(np.float32)
    x[rng.random(x.shape) >= density] = 0
    if spoiled:
        x = spoil(rng, x)
    w = rng.standard_normal((depth, columns)).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32)
    y, survivors = run(library, "SparseGemm", {"X": x, "W": w, "bias": bias})
    rows, weights = x.reshape(int(np.prod(lead)), depth).astype(np.float64), w.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = (rows @ weights + bias).reshape(*lead, columns)
        scale = (np.abs(rows) @ np.abs(weights) + np.abs(bias)).reshape(expected.shape)
        good = np.abs(y - expected) <= 1e-5 * scale
    good |= np.isnan(y) & np.isnan(expected)
    good |= y == expected
    assert y.shape == expected.shape and good.all()
    assert survivors.tolist() == [np.count_nonzero(x != 0)]


@pytest.mark.parametrize("family", ["Gemm", "Conv"])
def test_nothing_alive_skips_the_tail(library, family):
    """Weights of the tail that would spoil any result are never read into one."""
    site = random_site(np.random.default_rng(0), family, "Threshold", 20, 8, 1, 3)
    site.parameters["limit"][:] = np.inf
    inputs = {k: v[..., 0] if family == "Gemm" and k.startswith("W_") else v for k, v in site.inputs.items()}
    inputs["W_tail"] = np.full_like(inputs["W_tail"], np.nan)
    x = np.ones((1, 8) if family == "Gemm" else (1, 8, 5), np.float32)
    attributes = {} if family == "Gemm" else {"strides": [1], "dilations": [1], "pads": [0, 0]}
    y, survivors = run(
        library,
        f"Prefix{family}Threshold",
        {
            "X": x,
            **inputs,
            "offset": np.zeros(1, np.float32),
            "max": np.array([np.inf], np.float32),
            **site.parameters,
        },
        **attributes,
    )
    assert not y.any() and not survivors.any()


def test_a_nan_survives_and_comes_out(library):
    site = random_site(np.random.default_rng(0), "Gemm", "Threshold", 5, 4, 1, 2)
    site.parameters["limit"][:] = np.inf
    inputs = {k: v[..., 0] if k.startswith("W_") else v for k, v in site.inputs.items()}
    x = np.zeros((2, 4), np.float32)
    x[1, site.order[0]] = np.nan
    y, survivors = run(
        library,
        "PrefixGemmThreshold",
        {
            "X": x,
            **inputs,
            "offset": np.zeros(1, np.float32),
            "max": np.array([6], np.float32),
            **site.parameters,
        },
    )
    assert not y[0].any() and np.isnan(y[1]).all() and survivors.tolist() == [5]
