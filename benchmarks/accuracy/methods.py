"""The methods: each is chosen by calibration data alone, and scored on the test data at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from benchmarks.accuracy.cases import CHOSEN_AT, SEARCHED_AT
from benchmarks.accuracy.points import Point, Result, Score, SimulatedScorer, chosen
from benchmarks.accuracy.samples import Samples
from benchmarks.accuracy.simulated import K, Rule, Simulated, fits_check, simulate
from exprune_cli.certify import boldest
from exprune_cli.flops import nonzero_share
from exprune_cli.match import match
from exprune_cli.measure import Baseline
from exprune_cli.metrics import metric_for
from exprune_cli.model import Model
from exprune_cli.observe import observe
from exprune_cli.planning.allocation import OFFERS, allocate, rows_per_sample
from exprune_cli.planning.chunks import known_offset
from exprune_cli.planning.planner import plan
from exprune_cli.planning.relu import dense
from exprune_cli.search import Candidate, Gate, evaluate
from exprune_cli.sensitivity import measure_sensitivity
from exprune_cli.sites import Calibration, Site, SitePlan

#: Candidates of a tuner's front that are scored on validation data.
_CANDIDATES = 28


@dataclass
class Bench:
    """A model with its data: ``seen`` for statistics, ``tuned`` within ``validated`` for choices."""

    model: Model
    sites: list[Site]
    calibration: Calibration
    seen: Samples
    tuned: Samples
    validated: Samples
    test: Samples
    dense_validated: float
    dense_test: float
    unit: float
    ahead: float
    baseline: Baseline
    seconds: float
    trials: int
    metric: str | None


def prepare(
    model: Model, data: Samples, test: Samples, tuned: int, validated: int, trials: int, metric: str | None
) -> Bench:
    """Splits the calibration data, a quarter for statistics, and observes the model."""
    start = time.process_time()
    seen, rest = data.split(0.25, 0)
    sites = match(model).sites
    calibration = observe(model, sites, seen.data, threads=1)
    seconds = time.process_time() - start
    rest = rest.take(validated, 0)
    baseline = Baseline(model.proto, threads=1)
    validation, held_out = (SimulatedScorer(model, part, baseline, metric) for part in (rest, test))
    small = rest.take(tuned, 1)
    return Bench(
        model,
        sites,
        calibration,
        seen,
        small,
        rest,
        test,
        validation.dense,
        held_out.dense,
        validation.unit,
        rest.ahead(test),
        baseline,
        seconds,
        trials,
        metric,
    )


def ours(bench: Bench, skip_zeros: bool = True) -> list[Result]:
    """The knob of ``optimize --objective flops``; without ``skip_zeros`` where that makes a difference."""
    start = time.process_time()
    model, sites, calibration = bench.model, bench.sites, bench.calibration
    steps = plan(sites, calibration, "calibrated", OFFERS, skip_zeros=skip_zeros)
    if not skip_zeros and not zeros_skipped(bench):
        return []
    labelled = metric_for(bench.metric, bench.seen.data.has_labels).name == "accuracy"
    sensitivity = measure_sensitivity(model, sites, steps, bench.seen.data, threads=1, labelled=labelled)
    steps = steps if sensitivity is None else allocate(sites, calibration, steps, sensitivity)
    steps = [plan(sites, calibration, "bound", [0.0], skip_zeros=skip_zeros)[0], *steps]  # what costs nothing

    points: dict[int, Point] = {}

    def point(at: int) -> Point:
        if at not in points:
            points[at] = Point(steps[at], _score(bench, steps[at], bench.validated, bench.dense_validated))
        return points[at]

    spent = []
    others = [target for target in CHOSEN_AT if target not in SEARCHED_AT]
    for target in [*sorted(SEARCHED_AT, reverse=True), *others]:
        boldest(
            range(len(steps)), lambda at, target=target: point(at).validation.limit(bench.ahead) <= target
        )
        spent.append(bench.seconds + time.process_time() - start)
    tried = [points[at] for at in sorted(points)]
    alone, seconds = spent[0], spent[len(SEARCHED_AT) - 1]
    for one in chosen(tried, bench.ahead):
        one.test = _score(bench, one.setting, bench.test, bench.dense_test)
    note = f"{len(tried)} of {len(steps)} steps of the knob; for {max(SEARCHED_AT):.0%} alone {alone:.0f} s"
    name = "ours" if skip_zeros else "ours, all inputs multiplied"
    return [Result(name, tried, seconds, note)]


def _score(bench: Bench, plans: Mapping[str, SitePlan], samples: Samples, dense_flops: float) -> Score:
    """Stages the model and runs it."""
    gate = Gate(0.0, None, bench.metric)
    found = evaluate(bench.model, bench.sites, plans, samples.data, gate, bench.baseline, threads=1)
    error = samples.standard_error(found.losses, bench.unit)
    return Score(1 - found.flops / dense_flops, found.drop.mean, _changed(found), error, samples.draws)


def _changed(found: Candidate) -> float:
    """Share of changed predictions; of outputs that are no predictions, of changed scores."""
    agreement = found.quality["agreement"]
    return 1 - agreement if isinstance(agreement, float) else float(np.mean(found.losses != 0))


def zeros_skipped(bench: Bench) -> list[Result]:
    """Only zeros of Convs' inputs left out: nothing changes. None where no Conv reads zeros."""
    start = time.process_time()
    found = plan(bench.sites, bench.calibration, "bound", [0.0], skip_zeros=True)[0]
    plans = {
        name: p if p.input_nonzero else dense(bench_site, "") for name, p, bench_site in _named(bench, found)
    }
    if not any(p.staged for p in plans.values()):
        return []
    seconds = bench.seconds + time.process_time() - start
    score = _score(bench, plans, bench.test, bench.dense_test)
    return [Result("zeros of Convs' inputs, exact", [Point(None, score, score)], seconds)]


def _named(bench: Bench, plans: Mapping[str, SitePlan]) -> list[tuple[str, SitePlan, Site]]:
    return [(site.name, plans[site.name], site) for site in bench.sites]


def tuned_paper(bench: Bench, test: str) -> Result:
    """The paper's ``stats`` or ``threshold``: one number per layer, found by Optuna's TPE."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = time.process_time()
    fitting = [site for site in bench.sites if fits_check(site)]
    simulated = simulate(bench.model, bench.sites, {site.name: Rule(test) for site in fitting})
    ranges = {site.name: _range(site, bench.calibration, test) for site in fitting}
    scorer = SimulatedScorer(bench.model, bench.tuned, bench.baseline, bench.metric)

    def cuts(numbers: Mapping[str, float]) -> dict[str, np.ndarray]:
        made = {name: ndtri(value) if test == "stats" else value for name, value in numbers.items()}
        return {name: np.full(1, value, np.float32) for name, value in made.items()}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        numbers = {name: trial.suggest_float(name, *bounds) for name, bounds in ranges.items()}
        score = scorer.score(simulated, cuts(numbers))
        # On a small subset changed predictions tell candidates apart where accuracies are equal.
        return score.cut, score.changed

    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0)
    )
    study.enqueue_trial({name: bounds[0] for name, bounds in ranges.items()})
    study.optimize(objective, n_trials=bench.trials)
    settings = [cuts(t.params) for t in _thinned(study.trials, _CANDIDATES)]
    name = f"paper's {test}, TPE"
    note = f"{bench.trials} trials on {len(bench.tuned)} samples"
    return _finish(bench, name, simulated, settings, start, note)


def _thinned(trials: list, most: int) -> list:
    """Of equal spans of the cut, the trial each that changes least.

    The front itself will not do: on few samples one trial may beat all others by luck, and nothing more
    careful would be left to choose.
    """
    highest = max(trial.values[0] for trial in trials)
    best: dict[int, tuple] = {}
    for trial in trials:
        cut, changed = trial.values
        span = min(most - 1, int(most * cut / highest)) if cut > 0 and highest > 0 else 0
        key = (changed, -cut)
        if span not in best or key < best[span][0]:
            best[span] = (key, trial)
    return [trial for _, trial in best.values()]


def _range(site: Site, calibration: Calibration, test: str) -> tuple[float, float]:
    """(0, 0.5) for a level; for a threshold, from where nothing is pruned to where nearly half is."""
    if test == "stats":
        return 1e-6, 0.5
    statistics = calibration.sites[site.name]
    partial = statistics.rows[:, :K].reshape(len(statistics.rows), -1)
    partial = partial @ site.load_weight()[:, :K].reshape(site.outputs, -1).T
    mean = partial / K + known_offset(site, statistics) / site.groups
    if site.kind == "argmax":
        mean = mean - mean.max(axis=1, keepdims=True)
        return float(np.quantile(mean, 0.001)), 0.0
    return float(np.quantile(mean, 0.001)), float(np.quantile(mean, 0.6))


def snapea(bench: Bench) -> list[Result]:
    """SnaPEA (Akhlaghi et al., ISCA 2018): weights by sign; predictive: a threshold on a prefix."""
    start = time.process_time()
    sites = [
        site for site in bench.sites if site.kind == "relu" and site.nonnegative and not site.transposed_input
    ]
    exact = _exact_share(bench, sites)
    point = Point("exact", Score(exact, 0.0, 0.0), Score(exact, 0.0, 0.0))
    results = [Result("SnaPEA, exact", [point], time.process_time() - start, "by sign; nothing changes")]
    start = time.process_time()
    rules = {site.name: Rule("mask", _largest(site.load_weight())) for site in sites}
    simulated = simulate(bench.model, bench.sites, rules)
    settings = []
    for share in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
        settings.append(
            {site.name: _cut_at(site, rules[site.name], bench.calibration, share) for site in sites}
        )
    note = "the largest eighth of every output's weights first, one share of lost outputs"
    results.append(_finish(bench, "SnaPEA, predictive", simulated, settings, start, note))
    return results


def _largest(weight: np.ndarray) -> np.ndarray:
    """``[N, G, T]``: the eighth of every output's weights that is largest in magnitude."""
    flat = np.abs(weight.reshape(len(weight), -1))
    count = max(1, round(flat.shape[1] * nonzero_share(weight) / 8))
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, np.argsort(-flat, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept.reshape(weight.shape)


def _cut_at(site: Site, rule: Rule, calibration: Calibration, share: float) -> np.ndarray:
    """Per output the threshold under which ``share`` of its positive values fall, at most 0."""
    statistics = calibration.sites[site.name]
    rows = statistics.rows.reshape(len(statistics.rows), -1)
    weight = site.load_weight().reshape(site.outputs, -1)
    assert rule.kept is not None
    offset = known_offset(site, statistics)
    prefix = rows @ np.where(rule.kept.reshape(weight.shape), weight, 0).T + offset
    positive = np.where(rows @ weight.T + offset > 0, prefix, np.nan)
    with np.errstate(all="ignore"):
        cut = np.array([np.nanquantile(p, share) if np.isfinite(p).any() else 0.0 for p in positive.T])
    return np.minimum(cut, 0).astype(np.float32)


def _exact_share(bench: Bench, sites: list[Site], most: int = 96) -> float:
    """Share of the model's FLOPs that exact early termination saves, on sampled rows.

    Inputs are not negative: with positive weights first, an output is negative for good once its sum
    has fallen below zero.
    """
    saved = 0.0
    per_sample = bench.dense_validated / len(bench.validated)
    for site in sites:
        statistics = bench.calibration.sites[site.name]
        rows = statistics.rows[:most].reshape(min(most, len(statistics.rows)), -1)
        offset = np.broadcast_to(known_offset(site, statistics), (len(statistics.rows), site.outputs))[:most]
        skipped = 0
        for n, weight in enumerate(site.load_weight().reshape(site.outputs, -1)):
            used = np.flatnonzero(weight)
            used = used[np.argsort(-weight[used], kind="stable")]
            positive = int((weight[used] > 0).sum())
            if positive == len(used):
                continue
            sums = rows[:, used[:positive]] @ weight[used[:positive]] + offset[:, n]
            falling = sums[:, None] + np.cumsum(rows[:, used[positive:]] * weight[used[positive:]], axis=1)
            below = falling < 0
            first = np.where(below.any(axis=1), below.argmax(axis=1) + 1, below.shape[1])
            first = np.where(sums < 0, 0, first)
            skipped += int((below.shape[1] - first).sum())
        saved += 2.0 * skipped / len(rows) * rows_per_sample(site, bench.calibration)
    return saved / per_sample


def oracle(bench: Bench, prefix: float) -> Result:
    """Every true zero is known after a share of the groups, and a head's winner; nothing changes."""
    saved = 0.0
    for site in bench.sites:
        statistics = bench.calibration.sites[site.name]
        weight = site.load_weight()
        dense = 2.0 * weight.size * nonzero_share(weight) * rows_per_sample(site, bench.calibration)
        if site.kind == "sparse":
            saved += dense * float(statistics.input_zeros.sum()) / (statistics.elements * site.groups)
            continue
        share = 1.0
        if site.kind == "relu":
            rows = statistics.rows.reshape(len(statistics.rows), -1)
            value = rows @ weight.reshape(site.outputs, -1).T + known_offset(site, statistics)
            share = float((value <= 0).mean())
        saved += dense * share * (1 - prefix)
    cut = saved / (bench.dense_validated / len(bench.validated))
    return Result(
        f"oracle after 1/{round(1 / prefix)}", [Point(prefix, Score(cut, 0, 0), Score(cut, 0, 0))], 0.0
    )


def _finish(bench: Bench, name: str, simulated: Simulated, settings: list, start: float, note: str) -> Result:
    """Scores candidates on validation data, and those that are chosen on test data."""
    validation = SimulatedScorer(bench.model, bench.validated, bench.baseline, bench.metric)
    scoring = time.process_time()
    points = [Point(setting, validation.score(simulated, setting)) for setting in settings]
    end = time.process_time()
    seconds = bench.seconds + end - start
    if "trials" in note:  # what the same number of trials takes on all samples that ours is chosen on
        each = (end - scoring) / len(settings)
        note += f"; {bench.trials} on the {len(bench.validated)} of validation: {bench.trials * each:.0f} s"
    test = SimulatedScorer(bench.model, bench.test, bench.baseline, bench.metric)
    for point in chosen(points, bench.ahead):
        point.test = test.score(simulated, point.setting)
    return Result(name, points, seconds, note)


METHODS: dict[str, Callable[[Bench], list[Result]]] = {
    "ours": ours,
    "multiplied": lambda bench: ours(bench, skip_zeros=False),
    "zeros": zeros_skipped,
    "stats": lambda bench: [tuned_paper(bench, "stats")],
    "threshold": lambda bench: [tuned_paper(bench, "threshold")],
    "snapea": snapea,
    "oracle": lambda bench: [oracle(bench, 1 / 16), oracle(bench, 1 / 8)],
}
