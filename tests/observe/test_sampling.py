"""Which rows are sampled, and how they are cut out of an input."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exprune_cli import sampling
from exprune_cli.data.keys import mix, position_keys, stream_keys
from exprune_cli.sites import ConvGeometry
from tests.observe.test_observe import normal

# --- patches -------------------------------------------------------------------------------------


def im2col(x: np.ndarray, conv: ConvGeometry) -> np.ndarray:
    """Every patch, ``[batch * output, G, T]``, by plain loops over the padded input."""
    rank = len(conv.kernel)
    pads = [(0, 0), (0, 0), *((conv.pads[a], conv.pads[rank + a]) for a in range(rank))]
    padded = np.pad(x, pads)
    rows = []
    for image in padded:
        for place in np.ndindex(*conv.output_size(x.shape[2:])):
            taps = [
                image[
                    (
                        slice(None),
                        *(p * s + t * d for p, s, t, d in zip(place, conv.strides, tap, conv.dilations)),
                    )
                ]
                for tap in np.ndindex(*conv.kernel)
            ]
            rows.append(np.stack(taps, axis=1))
    return np.stack(rows)


@st.composite
def convs(draw):
    rank = draw(st.integers(1, 2))
    kernel, strides, dilations = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(3))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(2 * rank))
    # Large enough for one output even without padding.
    size = tuple(d * (k - 1) + draw(st.integers(1, 5)) for k, d in zip(kernel, dilations))
    return ConvGeometry(kernel, strides, dilations, pads), (
        draw(st.integers(1, 3)),
        draw(st.integers(2, 4)),
        *size,
    )


@settings(max_examples=80, deadline=None)
@given(case=convs(), data=st.data())
def test_patches_are_those_of_im2col(case, data):
    conv, shape = case
    x = normal(*shape)
    expected = im2col(x, conv)
    chosen = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=9))
    found = sampling.gather_patches(x, conv, np.array(chosen))
    np.testing.assert_array_equal(found.transpose(0, 2, 1), expected[chosen])


# --- the sample ----------------------------------------------------------------------------------


def offer_all(keys: np.ndarray, parts: list[int], limit: int, bad: set[int] = frozenset()) -> np.ndarray:
    """Keys that a reservoir holds after rows (their values: their numbers) came in parts."""
    reservoir = sampling.Reservoir(limit, 1, 1, None)
    start = 0
    for part in parts:
        numbers = np.arange(start, start + part)

        def gather(chosen, numbers=numbers):
            rows = numbers[chosen].astype(np.float32)
            rows[[n in bad for n in numbers[chosen]]] = np.nan
            return rows[:, None, None], None

        reservoir.offer(keys[start : start + part], gather)
        start += part
    rows, kept, _ = reservoir.result()
    np.testing.assert_array_equal(keys[rows[:, 0, 0].astype(int)], kept)
    return kept


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    limit=st.integers(1, 30),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_reservoir_keeps_the_smallest_keys_of_finite_rows(parts, limit, seed, share):
    rng = np.random.default_rng(seed)
    total = sum(parts)
    keys = rng.integers(0, 2**64, total, dtype=np.uint64)
    bad = set(np.flatnonzero(rng.random(total) < share).tolist())
    good = [i for i in range(total) if i not in bad]
    expected = np.sort(keys[good])[:limit]
    np.testing.assert_array_equal(offer_all(keys, parts, limit, bad), expected)


def test_reservoir_work_falls_with_the_rows_seen():
    cut = []
    reservoir = sampling.Reservoir(16, 1, 1, None)
    for i in range(200):
        keys = mix(np.arange(i * 64, (i + 1) * 64, dtype=np.uint64))
        reservoir.offer(
            keys, lambda chosen: (cut.append(len(chosen)) or np.zeros((len(chosen), 1, 1), np.float32), None)
        )
    # 16 (1 + ln(200 * 64 / 16)) = 123 are expected.
    assert sum(cut) < 250


def test_every_row_is_equally_likely():
    """1,000 samples of 100 positions, 10 % kept, 20 seeds: per-position counts as a binomial has them."""
    ids = mix(np.arange(1000, dtype=np.uint64))
    counts = np.zeros((20, 100))
    for seed in range(20):
        keys = position_keys(stream_keys(seed, "site", ids), 100)
        counts[seed] = (keys < np.partition(keys.reshape(-1), 10_000)[10_000]).sum(axis=0)
    expected, deviation = 100, math.sqrt(1000 * 0.1 * 0.9)
    z = (counts - expected) / deviation
    assert abs(z.mean()) < 0.05 and 0.9 < z.std() < 1.1 and np.abs(z).max() < 5


def test_keys_stay_what_they_are():
    """SplitMix64's first outputs for seed 0, as its reference implementation prints them."""
    found = position_keys(np.zeros(1, np.uint64), 3)[0]
    assert [hex(k) for k in found] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
    assert stream_keys(0, "a", np.zeros(1, np.uint64)) != stream_keys(0, "b", np.zeros(1, np.uint64))


def test_row_limit_is_bounded():
    assert sampling.row_limit(3, 1) == 2048
    assert sampling.row_limit(64, 9) == 4 * 2**20 // (4 * 576)
    assert sampling.row_limit(2**20, 9) == 512
