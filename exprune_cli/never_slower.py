"""Never slower: which sites are staged when latency is the objective, measured or expected."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli.errors import ExpruneError
from exprune_cli.latency import latency
from exprune_cli.model import Model
from exprune_cli.planning.chunks import plan_saving
from exprune_cli.planning.relu import dense
from exprune_cli.random_feeds import random_feeds
from exprune_cli.record import SiteRecord
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.shapes import Dims, infer_shapes
from exprune_cli.sites import Site, SitePlan
from exprune_cli.timing import (
    EXPECTED_SHARE,
    MARGIN,
    SiteTimer,
    SiteTiming,
    cache_filler,
    site_inputs,
    thread_counts,
    with_rows,
)

if TYPE_CHECKING:
    from exprune_cli.data import DataSet
    from exprune_cli.progress import Progress

_LOG = logging.getLogger(__name__)

#: A form that loses outputs must be this much faster than a lossless one.
WORTH = 1.02
#: Inputs that sites are timed on.
_FEEDS = 64
_FEW_FEEDS = 8  # of the whole model on several threads, where a run has to wait for the other model's threads
#: Rows that a site is timed at where their number is open. No row may stand twice among the inputs:
#: what equal rows have alive in common would flatter the staged form.
ROWS = (1, 2, 4, 8, 16, 32, 64)
#: Seconds that all sites together are timed for, and the most for one timing.
_SECONDS, _SITE_SECONDS = 60.0, 0.6
#: A loop that is not done by then on random inputs may never be.
_TRIAL_SECONDS = 10.0
#: Bytes read per byte of float weights before a quantised head is expected to be faster: 32-bit
#: weights, 6 to 8-bit codes, a few survivors.
_EXPECTED_BYTES = 0.5
#: Weights below this are in the caches, where reading fewer of them saves little.
_EXPECTED_WEIGHTS = 2**20

#: At other numbers of rows than the one meant a form has to win by this much: there the whole model is not timed.
OTHER_ROWS = 1.1
#: A form that wins by this much at the most rows of ``ROWS`` needs no dense layer beside it for more: from there to
#: 1,024 rows feed-forward layers lost a tenth of their speed-up, and beyond both forms cost the same for every row.
ANY_ROWS = 1.25
#: A form whose kernel computes everything where skipping does not pay needs none if it is not slower than this at any
#: number of rows, and by so much faster at the most.
EVEN, EVEN_AT_MOST = 0.98, 1.05

Options = Mapping[str, Sequence[SitePlan]]


def timing_feeds(model: Model, data: DataSet | None, batch: int, seed: int) -> list[Feeds] | None:
    """Inputs to time on: samples of the data, or random ones; None if none can be made."""
    if data is None or not len(data):
        return _feeds_that_run(model, random_feeds(model, batch, seed, _FEEDS))
    feeds: list[Feeds] = []
    for item in data.take(min(len(data), _FEEDS * batch), seed).batches(batch):
        feeds.append(item.feeds)
    return feeds[:_FEEDS]


def _feeds_that_run(model: Model, feeds: list[Feeds] | None) -> list[Feeds] | None:
    """Random inputs, if the model can be run on them: sizes or indices may have to fit together."""
    if feeds is None:
        return None
    try:
        run(open_session(model.proto), feeds[0], "random inputs", seconds=_TRIAL_SECONDS)
    except ExpruneError as error:
        _LOG.warning(
            "nothing was timed: %s; give samples with --data to have it measured", error.command_line
        )
        return None
    return feeds


def keep_faster(
    model: Model,
    sites: Sequence[Site],
    options: Options,
    feeds: Sequence[Feeds],
    progress: Progress | None = None,
    batch: int = 1,
) -> tuple[dict[str, SitePlan], dict[str, SiteTiming]]:
    """Times every staged form of every site; the fastest one is taken if it wins, else it stays dense.

    A form has to win on one thread and on as many as a session has by default: each form counts as the
    one of the two where it wins least.

    Args:
        model: The original.
        sites: Its sites.
        options: Plans by site name, at least one each.
        feeds: Inputs of the whole model, one run each.
        progress: Where progress is shown.
        batch: Batch size that the model is meant for; ``feeds`` may have another one.

    Returns:
        The plans, and the timings by site name.
    """
    shapes = infer_shapes(model.proto)
    timed = [site for site in sites if any(plan.staged for plan in options[site.name])]
    if progress is not None:
        progress.stage("timing sites", len(timed))
    weights = sum(site.outputs * site.groups * site.taps * 4 for site in sites)
    evict = cache_filler(weights)
    counts = thread_counts()
    seconds = min(_SITE_SECONDS, _SECONDS / max(1, len(timed))) / len(counts)
    inputs = site_inputs(model, timed, feeds)
    kept = {site.name: options[site.name][0] for site in sites}
    timings: dict[str, SiteTiming] = {}
    for site in timed:
        best: SiteTiming | None = None
        every = own = inputs[site.name]
        meant = _meant_rows(site, every[0], feeds[0], batch)
        if rows_vary(site, shapes):
            own = with_rows(every, meant, site.transposed_input)
        # As it is at run time: of an operator that ONNX does not define, no shape is known before.
        rank = max(2, np.ndim(own[0]["in_0"]))
        # Lossless forms first: one that loses outputs has to bring something for them.
        for plan in sorted((plan for plan in options[site.name] if plan.staged), key=is_lossy):
            worst: SiteTiming | None = None
            safe = plan
            for threads in counts:
                timer = SiteTimer(model, site, plan, rank, evict=evict, threads=threads)
                timing = timer.time(own, seconds)
                if worst is None or timing.speedup < worst.speedup:
                    worst = timing
                if timing.speedup < MARGIN:
                    safe = dense(site, _slower(timing))
                else:
                    before = safe.fallback
                    safe = _for_all_rows(
                        site, plan, timer, every, meant, timing.speedup, shapes, seconds, safe.most_rows
                    )
                    if before is not None and safe.staged and (safe.fallback is None or not before.staged):
                        safe = dataclasses.replace(safe, fallback=before)
                del timer  # before the next one takes as much memory
                if not safe.staged:
                    break
            assert worst is not None
            if best is None or worst.speedup > best.speedup * (WORTH if is_lossy(plan) else 1):
                best = timings[site.name] = worst
                kept[site.name] = safe
        if progress is not None:
            progress.advance()
    return kept, timings


def _slower(timing: SiteTiming) -> str:
    where = "here" if timing.threads == 1 else "here on all cores"
    return f"slower {where}: {timing.staged_us:.0f} us staged, {timing.dense_us:.0f} us dense"


def _meant_rows(site: Site, inputs: Feeds, feeds: Feeds, batch: int) -> int:
    """Rows of a Gemm or MatMul at the batch meant, from those at the batch of the inputs.

    Files of samples whose batch is not their first axis cannot be cut: they are timed by their rows.
    """
    given = next((value.shape[0] for value in feeds.values() if value.ndim), 1)
    rows = max(1, inputs["in_0"].size // site.groups)
    return max(1, rows * batch // max(1, given))


def is_lossy(plan: SitePlan) -> bool:
    """Whether a plan may lose outputs."""
    return plan.test in ("stats", "threshold", "calibrated")


def rows_vary(site: Site, shapes: Mapping[str, Dims]) -> bool:
    """Whether a Gemm's or MatMul's number of rows is open."""
    if site.conv:
        return False
    shape = shapes.get(site.input)
    if shape is None:
        return True
    return not all(isinstance(size, int) for size in (shape[1:] if site.transposed_input else shape[:-1]))


def _for_all_rows(
    site: Site,
    plan: SitePlan,
    timer: SiteTimer,
    inputs: Sequence[Feeds],
    meant: int,
    won: float,
    shapes: Mapping[str, Dims],
    seconds: float,
    up_to: int | None = None,
) -> SitePlan:
    """A plan that won at ``meant`` rows, made safe for every number of rows that the model may be given.

    Where it does not win by far, it has a ``fallback`` for as many rows as are meant.

    ``won``: the speed-up there. ``up_to``: rows above which an earlier timing lost.
    """
    if not rows_vary(site, shapes):
        return plan
    there = sum(feed["in_0"].size for feed in inputs) // site.groups
    may_be_even = computes_all(site, plan) and up_to is None
    speedups: list[tuple[int, float]] = []
    for rows in sorted({*ROWS, meant}):
        if up_to is not None and rows > up_to:
            break
        if rows > there and rows != meant:
            continue
        speedup = won
        if rows != meant:
            speedup = timer.time(with_rows(inputs, rows, site.transposed_input), seconds / 2).speedup
        speedups.append((rows, speedup))
        if rows != meant and speedup < (EVEN if may_be_even else OTHER_ROWS):
            break
    wins = [rows == meant or speedup >= OTHER_ROWS for rows, speedup in speedups]
    first = wins.index(False) if False in wins else len(wins)
    faster = speedups[first - 1][0] if first else 0
    last, speedup = speedups[-1]
    even = may_be_even and all(rows == meant or each >= EVEN for rows, each in speedups)
    if last >= ROWS[-1] and even and speedup >= EVEN_AT_MOST:
        return plan if all(wins) else _with_fallback(site, plan, meant if faster >= meant else 0)
    if faster < meant:
        return dense(site, f"faster at {meant} rows, but not at {speedups[first][0]}")
    if faster >= ROWS[-1] and speedup >= ANY_ROWS and up_to is None:
        return plan
    if can_be_guarded(site, plan):
        return _with_fallback(site, dataclasses.replace(plan, most_rows=faster), meant)
    if faster < ROWS[-1]:
        return dense(site, f"faster up to {faster} rows only, and the number of rows is open")
    return plan


def _with_fallback(site: Site, plan: SitePlan, rows: int) -> SitePlan:
    """The plan with one for at most so many rows to fall back on, where that is another; 0: dense."""
    if plan.most_rows == rows:
        return plan
    other = dense(site, "slower with more rows in the whole model, and the number of rows is open")
    if rows and can_be_guarded(site, plan):
        other = dataclasses.replace(plan, most_rows=rows)
    return dataclasses.replace(plan, fallback=other)


def computes_all(site: Site, plan: SitePlan) -> bool:
    """Whether the kernel itself turns to a dense product where much is alive in many rows."""
    return site.kind == "sparse" or (site.kind == "relu" and plan.estimate == "quantized")


def can_be_guarded(site: Site, plan: SitePlan) -> bool:
    """Whether the dense layer can stand beside the staged one without a second copy of the weights."""
    return not site.transposed_input and (site.kind == "sparse" or plan.estimate in ("quantized", "low-rank"))


def keep_expected(sites: Sequence[Site], options: Options, shapes: Mapping[str, Dims]) -> dict[str, SitePlan]:
    """Without a measurement: keeps the forms whose expected saving makes up for skipping's cost."""
    kept = {}
    for site in sites:
        kept[site.name] = options[site.name][0]
        if not any(plan.staged for plan in options[site.name]):
            continue
        kept[site.name] = dense(site, "not expected to be faster (nothing was measured)")
        for plan in options[site.name]:
            if plan.staged and expected_faster(site, plan):
                guard = rows_vary(site, shapes) and can_be_guarded(site, plan)
                kept[site.name] = dataclasses.replace(plan, most_rows=1) if guard else plan
                break
    return kept


def expected_faster(site: Site, plan: SitePlan) -> bool:
    """Whether a plan is expected to be faster on any machine, by the bytes or the FLOPs it saves."""
    if plan.estimate != "quantized":
        saving = plan.pruned[0] if site.kind == "sparse" and plan.pruned else plan_saving(site, plan)
        return saving >= EXPECTED_SHARE
    if site.outputs * site.groups < _EXPECTED_WEIGHTS:
        return False
    if plan.pruned is None:  # a head's winners stand out; how many zeros a ReLU makes is not known
        return site.kind in ("argmax", "top_k")
    return 0.25 + (1 - plan.pruned[0]) <= _EXPECTED_BYTES


def is_faster(
    model: Model, proto: onnx.ModelProto, feeds: Sequence[Feeds], progress: Progress | None = None
) -> float:
    """Speed-up of the whole staged model on these inputs: the least of those at ``thread_counts``."""
    speedups = []
    for threads in thread_counts():
        times = latency(
            model.proto,
            proto,
            feeds if threads == 1 else feeds[:_FEW_FEEDS],
            threads,
            rounds=3,
            min_runs=20,
            max_seconds=6.0,
            progress=progress,
            stage="timing the whole model",
        )
        assert times.speedup is not None
        speedups.append(times.speedup)
    return min(speedups)


def with_timing(record: SiteRecord, timings: Mapping[str, SiteTiming]) -> SiteRecord:
    """A site's record with its timing, if it has one."""
    timing = timings.get(record.name)
    if timing is None:
        return record
    return dataclasses.replace(record, latency_dense_us=timing.dense_us, latency_us=timing.staged_us)
