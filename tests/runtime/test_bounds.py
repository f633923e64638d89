"""The sound bounds under attack, in a small form; see ``attack_bounds.py`` for the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import attack_bounds
from .cases import relaxed


@pytest.mark.parametrize("name", attack_bounds.ATTACKS)
def test_nothing_is_pruned_that_could_be_above_0(library, name):
    if library.endswith("scalar.so"):
        pytest.skip("the oracle computes in double precision")
    tried, broken, where = attack_bounds.attack(name, library, 150_000, seed=3)
    assert tried >= 150_000 and not broken, where


@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(list(attack_bounds.ATTACKS)))
@relaxed
def test_any_seed(best_library, seed, name):
    assert attack_bounds.attack(name, best_library, 1, seed)[1] == 0


WEAKER = {
    "PrefixGemmBound": {"slack": 0.0},
    "PrefixConvBound": {"slack": 0.0},
    "QuantizedGemmBound": {"error": 0.9},
}
ARRAYS = {
    "PrefixGemmBound": "bound_parameters",
    "PrefixConvBound": "bound_parameters",
    "QuantizedGemmBound": "quantized_parameters",
}


@pytest.mark.parametrize("name", WEAKER)
def test_a_bound_that_is_too_narrow_is_found(best_library, name, monkeypatch):
    """Without the rounding of the sums, or with nine tenths of what the codes hide."""
    made = getattr(attack_bounds, ARRAYS[name])

    def narrow(*arguments, **options):
        arrays = made(*arguments, **options)
        return arrays | {k: arrays[k] * np.float32(factor) for k, factor in WEAKER[name].items()}

    monkeypatch.setattr(attack_bounds, ARRAYS[name], narrow)
    assert attack_bounds.attack(name, best_library, 1_000_000, seed=5)[1] > 0
