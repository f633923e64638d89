"""Never slower: small layers that are about even alone are decided in the whole model.

Alone, what a call costs and what a second thread brings are not what they are in a model of many small layers; and
an ``If`` that guards against more rows costs such a layer what it wins. So the doubtful forms, without their guard, are
put into the whole model one by one, and those stay that make it faster. That the model is not slower with more rows is
then checked on the whole of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.latency import latency
from exprune_cli.model import Model
from exprune_cli.never_slower import Options, computes_all, is_lossy, rows_vary
from exprune_cli.random_feeds import random_feeds
from exprune_cli.rewrite import rewrite
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.shapes import infer_shapes
from exprune_cli.sites import Site, SitePlan
from exprune_cli.timing import SiteTiming, thread_counts

if TYPE_CHECKING:
    from exprune_cli.progress import Progress

#: Speed-up alone from which on a form is doubtful, and not just slower.
NEAR = 0.65
#: By how much a form has to make the whole model faster on one thread. On all cores paired medians of short runs
#: scatter by some percent: there it must not be slower by more than that, and the whole not than the original.
GAIN, SCATTER, EVEN = 1.005, 0.93, 0.97
#: Seconds of a run beyond which a call's cost does not matter, and doubtful forms that are tried at most.
_LONGEST, MOST_TRIED = 5e-3, 24
#: Batch sizes that the model is checked at where its number of rows is open.
_BATCHES = (2, 4, 16, 64)
#: Speed-up there that forms need which have another to fall back on: where they bring nothing, that is better.
_SURE = 1.02
#: How often the models are opened for it, inputs of each batch size, and seconds after which an opening ends, on one
#: thread and on several, whose runs have to wait for the other model's threads.
_OPENINGS, _FEEDS, _OPEN_SECONDS = 3, 4, (2.0, 6.0)


@dataclass(frozen=True)
class Setting:
    """What plans are timed in.

    Attributes:
        model: The model whose sites they are.
        original: What the result must not be slower than.
        feeds: Inputs of one run each, at the batch size meant.
        seed: Of random inputs of other batch sizes.
        batch: The batch size meant.
    """

    model: Model
    original: Model
    feeds: Sequence[Feeds]
    seed: int
    batch: int = 1


def keep_in_whole(
    setting: Setting,
    sites: Sequence[Site],
    plans: Mapping[str, SitePlan],
    options: Options,
    timings: Mapping[str, SiteTiming],
    progress: Progress | None = None,
) -> dict[str, SitePlan]:
    """Puts doubtful forms into effect that make the whole model faster.

    Args:
        setting: What they are timed in.
        sites: All sites of the model.
        plans: By site name, each faster alone.
        options: The forms to choose from, by site name.
        timings: By site name, alone.
        progress: Where progress is shown.
    """
    tried = doubtful(sites, plans, options, timings)
    if not tried or _run_seconds(setting) > _LONGEST:
        return dict(plans)
    if progress is not None:
        progress.stage("timing small layers in the whole model", len(tried))
    kept = dict(plans)
    proto = rewrite(setting.model, sites, kept)[0]
    for name, plan in tried.items():
        trial = {**kept, name: plan}
        changed = rewrite(setting.model, sites, trial)[0]
        if _gains(proto, changed, setting.feeds):
            kept, proto = trial, changed
        if progress is not None:
            progress.advance()
    shapes = infer_shapes(setting.model.proto)
    vary = any(kept[site.name] is not plans[site.name] and rows_vary(site, shapes) for site in sites)
    return kept if not vary or _batches_held(setting, proto, EVEN) == _BATCHES else dict(plans)


def keep_even(
    setting: Setting,
    sites: Sequence[Site],
    plans: Mapping[str, SitePlan],
    progress: Progress | None = None,
) -> dict[str, SitePlan]:
    """Falls back, for all forms that alone did not win by far at every number of rows, if the whole model is slower
    there: what falls back is for the largest batch at which it was not.

    Args:
        setting: What they are timed in.
        sites: All sites of the model.
        plans: By site name.
        progress: Where progress is shown.
    """
    doubted = {name: plan.fallback for name, plan in plans.items() if plan.fallback is not None}
    if not doubted:
        return dict(plans)
    if progress is not None:
        progress.stage("timing the whole model with more rows", 1)
    held = _batches_held(setting, rewrite(setting.model, sites, plans)[0], _SURE)
    if progress is not None:
        progress.advance()
    if held == _BATCHES:
        return dict(plans)
    more = max(1, held[-1] // setting.batch) if held else 1
    return {**plans, **{name: _for_more_rows(plan, more) for name, plan in doubted.items()}}


def _for_more_rows(plan: SitePlan, factor: int) -> SitePlan:
    """A form for so many times the rows that it is for."""
    return plan if plan.most_rows is None else dataclasses.replace(plan, most_rows=factor * plan.most_rows)


def doubtful(
    sites: Sequence[Site],
    plans: Mapping[str, SitePlan],
    options: Options,
    timings: Mapping[str, SiteTiming],
) -> dict[str, SitePlan]:
    """Forms without a guard that may pay in the whole model, the fastest ones alone first."""
    found: dict[str, SitePlan] = {}
    for site in sites:
        plan, timing = plans[site.name], timings.get(site.name)
        if timing is None or timing.speedup < NEAR or (plan.staged and plan.most_rows is None):
            continue
        forms = [
            p for p in options.get(site.name, ()) if p.staged and not is_lossy(p) and computes_all(site, p)
        ]
        if forms:
            reason = f"{forms[0].reason}; chosen in the whole model"
            found[site.name] = dataclasses.replace(forms[0], reason=reason, most_rows=None)
    order = sorted(found, key=lambda name: -timings[name].speedup)
    return {name: found[name] for name in order[:MOST_TRIED]}


def _run_seconds(setting: Setting) -> float:
    session = open_session(setting.original.proto)
    for _ in range(2):
        begin = time.perf_counter()
        run(session, setting.feeds[0], "timing")
    return time.perf_counter() - begin


def _gains(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Sequence[Feeds]) -> bool:
    """Whether a change makes the model faster on one thread, and not slower on all cores."""
    for threads in thread_counts():
        alone = threads == 1
        least = 400 if alone else 60
        times = latency(before, after, feeds[:16], threads, rounds=3, min_runs=least, max_seconds=2.0)
        assert times.speedup is not None
        if times.speedup < (GAIN if alone else SCATTER):
            return False
    return True


def _batches_held(setting: Setting, proto: onnx.ModelProto, least: float) -> tuple[int, ...]:
    """The batch sizes, up to the first that fails, at which the model has this speed-up, on random inputs.

    Two sessions of one and the same model differ by some percent, by where its weights come to lie in memory: so what
    counts is the mean of several openings.
    """
    feeds = _feeds_by_batch(setting)
    for threads in thread_counts():
        if feeds:
            found = [_speedups(setting.original.proto, proto, feeds, threads) for _ in range(_OPENINGS)]
            wins = [batch for batch in feeds if np.mean([one[batch] for one in found]) >= least]
            feeds = {batch: some for batch, some in feeds.items() if batch in wins}
    return tuple(itertools.takewhile(lambda batch: batch in feeds, _BATCHES))


def _feeds_by_batch(setting: Setting) -> dict[int, list[Feeds]]:
    """Random inputs of the batch sizes, up to the first that the model does not run on."""
    session = open_session(setting.original.proto)
    feeds: dict[int, list[Feeds]] = {}
    for batch in _BATCHES:
        made = random_feeds(setting.original, batch, setting.seed, _FEEDS)
        if made is None:
            break
        try:
            for one in made:
                run(session, one, "timing")
        except ExpruneError:  # random sizes or indices do not fit together
            break
        feeds[batch] = made
    return feeds


def _speedups(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[int, Sequence[Feeds]], threads: int
) -> dict[int, float]:
    """By batch size, of one opening of both models."""
    every = [one for some in feeds.values() for one in some]
    seconds = _OPEN_SECONDS[threads > 1]
    times = latency(before, after, every, threads, rounds=10, max_seconds=seconds)
    assert times.dense_times_ms is not None
    ratios = (times.dense_times_ms / times.times_ms).reshape(-1, len(feeds), _FEEDS)
    return {batch: float(np.median(ratios[:, at])) for at, batch in enumerate(feeds)}
