"""A short round of the generator of calls, and that it would see what it looks for."""

from __future__ import annotations

import numpy as np
import pytest

from exprune_cli.functions import OPS

from .fuzz import differs, fuzz, make, table
from .ops import model, open_session


def test_a_short_round(best_library):
    counts, faults = fuzz(best_library, 1, first=10**6, batch=20 * len(OPS))
    assert not faults, "\n".join(faults)
    text = table(counts)
    assert all(sum(n for (op, _), n in counts.items() if op == name) >= 20 for name in OPS), text
    assert sum(n for (_, kind), n in counts.items() if kind == "error") >= 100, text


def test_what_goes_wrong_is_reported(tmp_path):
    nothing = tmp_path / "nothing.so"
    nothing.write_bytes(b"")
    _, faults = fuzz(str(nothing), 0.01, batch=40)
    assert any("refused" in fault for fault in faults)


@pytest.mark.parametrize("op", OPS)
def test_other_results_are_seen(op):
    """Of a valid call: another shape, an index that is none, a value of another row."""
    number = next(n for n in range(OPS.index(op), 10**4, len(OPS)) if _useful(n))
    call, promised, _, _ = make(number)
    results = open_session(model(call), None).run(None, call.inputs)
    assert promised and differs(call, results, results, promised) is None
    assert "mismatch" in differs(call, [r[:-1] for r in results], results, promised)
    other = [r.copy() for r in results]
    if op == "QuantizedTopKBound" or "ArgMax" in op:
        other[-2] = np.full_like(other[-2], len(call.inputs["bias"]))
    else:
        other[0] = other[0] + np.where(other[0] > 0, np.float32(1), np.float32(0))
    assert "mismatch" in differs(call, other, results, promised)


def _useful(number: int) -> bool:
    call, _, whole, _ = make(number)
    return whole and call.inputs["X"].size > 100 and len(call.inputs["bias"]) > 3
