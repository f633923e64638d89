"""Times the contenders in turn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.latency.case import Feeds
from benchmarks.latency.contenders import session
from exprune_cli.sessions import REST

SECONDS = 6.0
#: Sessions of one model differ by some percent, by where its weights come to lie in memory: all are opened so often,
#: in another order each time. Where one is about even with dense, more often, until the standard error is small.
QUICK_OPENINGS, OPENINGS, MOST_OPENINGS = 2, 5, 20
EVEN, PRECISE = 0.05, 0.01
TURNS = (3, 12)  # of an opening, least and most,
SHORTEST = 0.1  # but where a run takes less than some ms as many as fit into so many seconds
BURST = 4  # timed runs in a row, on several threads

#: By contender, seconds of the runs of each opening.
Times = dict[str, list[np.ndarray]]


def timed(
    made: Mapping[str, Path], inputs: Mapping[int, Sequence[Feeds]], threads: int, seconds: float
) -> dict[int, Times]:
    """By batch size; those whose ratios are settled are left out of further openings.

    Every opening has a process of its own: kernels ask for large pages for their weights, and in one process the dense
    model's weights may come to lie in what is left of them, where it is faster than it is alone.
    """
    times: dict[int, Times] = {batch: {name: [] for name in made} for batch in inputs}
    open_ = list(inputs)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        for opening in range(MOST_OPENINGS if seconds == SECONDS else QUICK_OPENINGS):
            some = {batch: inputs[batch] for batch in open_}
            for batch, found in fresh.apply(_open, (dict(made), some, threads, seconds, opening)).items():
                for name, values in found.items():
                    times[batch][name].append(values)
            if opening + 1 >= OPENINGS:
                open_ = [batch for batch in open_ if not settled(times[batch])]
            if not open_:
                break
    return times


def _open(
    made: Mapping[str, Path],
    inputs: Mapping[int, Sequence[Feeds]],
    threads: int,
    seconds: float,
    opening: int,
) -> dict[int, dict[str, np.ndarray]]:
    """By batch size, seconds of every run; all contenders are open before one runs."""
    order = np.random.default_rng(opening).permutation(list(made))
    sessions = {name: session(made[name], threads) for name in order}
    pause = REST if threads > 1 else 0.0
    return {batch: in_turn(sessions, feeds, seconds / OPENINGS, pause) for batch, feeds in inputs.items()}


def ratios(times: Times, name: str) -> list[np.ndarray]:
    """Of every opening, the dense model's seconds by this one's."""
    return [dense / ours for dense, ours in zip(times["dense"], times[name], strict=True)]


def standard_error(opened: Sequence[np.ndarray]) -> float:
    """Of the ratio, openings being independent of each other."""
    return float(np.std([np.median(each) for each in opened], ddof=1) / np.sqrt(len(opened)))


def settled(times: Times) -> bool:
    """Whether every contender is clearly faster or slower than dense, or known well."""
    for opened in (ratios(times, name) for name in times if name != "dense"):
        error = standard_error(opened)
        if error > PRECISE and abs(float(np.median(np.concatenate(opened))) - 1) < EVEN + 3 * error:
            return False
    return True


def in_turn(
    sessions: dict[str, object], inputs: Sequence[Feeds], seconds: float, pause: float
) -> dict[str, np.ndarray]:
    """Seconds of every run, by contender; all run on the same input before the next one is taken.

    The order is drawn anew for each turn: who runs after whom makes a difference, in the caches above all. With a
    ``pause``, for sessions of several threads, each turn is a burst: it begins when the other sessions' threads sleep,
    and its first run, which wakes its own, is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for one in sessions.values():
        one.run(None, inputs[0])
    rng, start = np.random.default_rng(0), time.perf_counter()
    burst = BURST if pause else 1
    for turn in itertools.count():
        for name in rng.permutation(list(sessions)):
            if pause:
                time.sleep(pause)
                sessions[name].run(None, inputs[turn % len(inputs)])
            for each in range(burst):
                begin = time.perf_counter()
                sessions[name].run(None, inputs[(turn * burst + each) % len(inputs)])
                times[name].append(time.perf_counter() - begin)
        passed = time.perf_counter() - start
        if turn + 1 >= TURNS[0] and passed > seconds:
            break
        if turn + 1 >= TURNS[1] and passed > SHORTEST:
            break
    return {name: np.array(values) for name, values in times.items()}
