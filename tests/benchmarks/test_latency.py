"""The latency benchmark: its adversarial inputs are what they claim, and its quick form runs."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from benchmarks.latency.__main__ import main
from benchmarks.latency.cases import head, near_tie
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


@pytest.mark.skipif(not runtime_available(), reason="the native runtime is not built")
def test_the_quick_form(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latency", "--quick", "--threads", "1", "--batch", "1"])
    main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    named = {(row[0].strip("| "), row[3]): row for row in rows[1:] if row[0] != "| ---"}
    assert named["head 4k x 64", "lossless"][6] == "100.00 %"
    assert named["relu_lm decode step", "lossless"][6] == "100.00 %"
    assert float(named["ffn 64-256, 5% alive", "lossless"][6]) < 1e-4
    assert {contender for case, contender in named if case == "head 4k x 64"} >= {"dense", "lossless"}
