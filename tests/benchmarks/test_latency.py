"""The latency benchmark: its adversarial inputs are what they claim, and its quick form runs."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from benchmarks.latency.__main__ import main
from benchmarks.latency.cases import head, near_tie
from benchmarks.latency.turns import ratios, settled, standard_error
from exprune_cli.runtime import runtime_available


def test_near_ties_are_near_and_no_ties():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((500, 256)).astype(np.float32)
    gaps = []
    for _ in range(50):
        first, second = rng.choice(500, 2, replace=False)
        scores = weight.astype(np.float64) @ near_tie(weight, first, second).astype(np.float64)
        best, next_best = np.sort(scores)[-1:-3:-1]
        if set(np.argsort(scores)[-2:]) == {first, second}:
            gaps.append((best - next_best) / best)
    assert len(gaps) > 40
    assert all(1e-6 < gap < 1e-4 for gap in gaps)


def test_inputs_are_the_same_for_a_seed():
    case = head(2000, 32)
    first, second = (list(itertools.islice(case.feeds(2, 5), 4)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])


def _times(ratio: float, scatter: float) -> dict[str, list[np.ndarray]]:
    """Of eight openings, half of which are that much above the ratio, and half below."""
    seconds = np.linspace(1.0, 2.0, 12)
    ours = [seconds / (ratio + sign * scatter) for sign in (1, -1) * 4]
    return {"dense": [seconds] * len(ours), "ours": ours}


def test_a_ratio_near_one_is_settled_when_it_is_known_well():
    even, uncertain = _times(1.0, 0.001), _times(0.99, 0.04)
    assert settled(even) and settled(_times(2.0, 0.4))
    assert not settled(uncertain)
    assert not settled({**even, "other": uncertain["ours"]})
    assert standard_error(ratios(uncertain, "ours")) == pytest.approx(0.04 / np.sqrt(7))


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
def test_the_quick_form(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latency", "--quick", "--threads", "1", "--batch", "1"])
    main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    named = {(row[0], row[3]): dict(zip(header, row, strict=True)) for row in rows}
    assert named["head 4k x 64", "lossless"]["equal"] == "100.00 %"
    assert named["relu_lm decode step", "lossless"]["equal"] == "100.00 %"
    assert float(named["ffn 64-256, 5% alive", "lossless"]["equal"]) < 1e-4
    assert float(named["head 4k x 64", "dense"]["±"]) == 0
    assert {contender for case, contender in named if case == "head 4k x 64"} >= {"dense", "lossless"}
