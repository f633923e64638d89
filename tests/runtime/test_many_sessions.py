"""One session for many threads, many sessions at once, and many after each other."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from .ops import model, open_session
from .sessions import calls, churn


def test_one_session_and_eight_threads(best_library):
    for call in calls():
        session = open_session(model(call, function=False), best_library, threads=2)
        x = call.inputs["X"]
        feeds = [{**call.inputs, "X": np.concatenate([x] * n)} for n in (1, 2, 3, 5)]
        if "offset" in call.inputs:  # of one element: the number of rows may change
            feeds = [{**feed, "offset": np.zeros(1, np.float32)} for feed in feeds]
        run = lambda feed, session=session: session.run(None, feed)
        expected = [run(feed) for feed in feeds]
        with ThreadPoolExecutor(8) as pool:
            for want, got in zip(expected * 16, pool.map(run, feeds * 16), strict=True):
                for a, b in zip(want, got, strict=True):
                    np.testing.assert_array_equal(a, b, err_msg=call.op)


def test_fifty_sessions_at_once(best_library):
    known = calls()
    sessions = [
        open_session(model(known[i % len(known)], function=False), best_library, threads=2) for i in range(50)
    ]
    run = lambda i: sessions[i].run(None, known[i % len(known)].inputs)
    expected = [run(i) for i in range(50)]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            for want, got in zip(expected, pool.map(run, range(50)), strict=True):
                for a, b in zip(want, got, strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_after_each_other(best_library):
    """A session that leaked what it works with would lose a megabyte in so many (the whole: 10,000)."""
    memory, files = churn(best_library, 1020)
    assert files == 0
    assert memory < 16 << 20
