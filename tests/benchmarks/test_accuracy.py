"""The comparison with other methods: its simulation is what staging does, and its quick form runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.cases import CASES
from benchmarks.accuracy.points import Point, Score, SimulatedScorer, choose, chosen
from benchmarks.accuracy.samples import Samples, samples
from benchmarks.accuracy.simulated import K, Rule, fits_check, simulate
from exprune_cli.data import open_data
from exprune_cli.match import match
from exprune_cli.measure import Baseline
from exprune_cli.model import load
from exprune_cli.planning.relu import dense
from exprune_cli.planning.threshold import threshold_parameters
from exprune_cli.search import Gate, evaluate
from exprune_cli.sites import Site, SitePlan
from tests.samples import Sample


def _plan(site: Site, test: str, cut: float) -> SitePlan:
    made = SitePlan(
        site.name, True, "", "prefix", test, np.arange(site.groups), (K, site.groups), pruned=(0.5,)
    )
    if test == "stats":
        made.z = cut
    elif site.kind == "argmax":
        ones = np.ones((1, site.outputs), np.float32)
        scale, shift = ones * (site.groups / K), site.bias[None].astype(np.float32)
        # e_j + m < max(e_i - m) is e_j - max e_i < -2 m, and the simulation's scores are per group.
        made.parameters = {
            "scale": scale,
            "shift": shift,
            "margin": ones * np.float32(-cut * site.groups / 2),
        }
    else:
        made.parameters = threshold_parameters(site.outputs, site.groups, [K], cut)
    return made


@pytest.mark.parametrize(("test", "cut"), [("threshold", -0.01), ("stats", -1.0)])
def test_the_simulation_is_what_staging_does(sample: Sample, test: str, cut: float) -> None:
    if sample.name == "relu_lm_step":
        pytest.skip("the same layers as relu_lm")
    model, data = sample.model, sample.test.take(4, 0)
    sites = match(model).sites
    chosen = [site for site in sites if fits_check(site)]
    simulated = simulate(model, sites, {site.name: Rule(test) for site in chosen})
    found = SimulatedScorer(model, samples(data), Baseline(model.proto)).score(
        simulated, {site.name: np.full(1, cut, np.float32) for site in chosen}
    )
    plans = {site.name: dense(site, "") for site in sites} | {s.name: _plan(s, test, cut) for s in chosen}
    staged = evaluate(model, sites, plans, data, Gate(0.0, None, None), Baseline(model.proto))
    whole = SimulatedScorer(model, samples(data), Baseline(model.proto)).dense
    assert found.cut == pytest.approx(1 - staged.flops / whole, abs=2e-3)
    assert found.drop == pytest.approx(staged.drop.mean, abs=0.02)


def test_choices_keep_to_their_drop() -> None:
    def point(cut: float, drop: float) -> Point:
        return Point(None, Score(cut, drop, drop))

    points = [point(0.1, 0.0), point(0.2, 0.02), point(0.3, 0.01), point(0.05, 0.005), point(0.4, 0.05)]
    assert [p.validation.cut for p in chosen(points, 1.0)] == [0.1, 0.3]
    best = choose(points, 0.01, 1.0)
    assert best is not None and best.validation.cut == 0.3 and choose(points, -1, 1.0) is None


def test_choices_keep_the_upper_limit() -> None:
    careful, risky = Point(None, Score(0.1, 0.005, 0, 0.002)), Point(None, Score(0.2, 0.005, 0, 0.004))
    assert choose([careful, risky], 0.01, 1.0) is careful
    assert choose([careful, risky], 0.01, 2.0) is None


def test_views_of_one_original_stay_on_one_side() -> None:
    case = CASES["digits_resnet"]
    model = load(case.folder / case.model)
    for folder, originals in ((case.calibration, 269), (case.test, 450)):
        data = open_data(case.folder / folder, model.proto)
        whole = samples(data)
        assert np.array_equal(whole.groups, np.arange(len(data)) % originals)
        seen, rest = whole.split(0.25, 0)
        assert not np.intersect1d(seen.groups, rest.groups).size
        assert len(seen) + len(rest) == len(data) and abs(len(seen) / len(data) - 0.25) < 0.01
        labels = np.concatenate([batch.label for batch in data.batches(100) if batch.label is not None])
        # A view has its original's label: were groups counted wrongly, labels would differ within one.
        assert all(len(set(labels[whole.groups == group])) == 1 for group in range(originals))
        few = rest.take(100, 0)
        ids = dict(zip(data.ids.tolist(), whole.groups.tolist(), strict=True))
        assert len(few) == 100 and [ids[i] for i in few.data.ids.tolist()] == few.groups.tolist()


@pytest.mark.parametrize("views", [1, 10])
def test_standard_errors_count_groups(views: int) -> None:
    """Means of losses that are alike within groups vary as much as is said."""
    case = CASES["digits_resnet"]
    data = open_data(case.folder / case.test, load(case.folder / case.model).proto)
    whole = Samples(data.at(np.arange(600)), np.arange(600) // views)
    groups = len(set(whole.groups.tolist()))
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (2000, groups))[:, np.unique(whole.groups, return_inverse=True)[1]]
    said = np.mean([whole.standard_error(losses, 1.0) for losses in draws[:50]])
    assert said == pytest.approx(draws.mean(axis=1).std(), rel=0.15)
    assert 0 < whole.standard_error(np.zeros(len(whole)), 1.0) < 0.01


def test_quick_form(tmp_path: Path) -> None:
    main(["--quick", "--model", "graph_gcn", "-o", str(tmp_path)])
    assert (tmp_path / "graph_gcn.png").read_bytes().startswith(b"\x89PNG")
    plain = json.loads((tmp_path / "results.json").read_text())["graph_gcn"]
    methods = {result["method"] for result in plain}
    assert {
        "ours",
        "paper's stats, TPE",
        "paper's threshold, TPE",
        "SnaPEA, exact",
        "SnaPEA, predictive",
    } <= methods
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "SnaPEA, predictive" in page and "http" not in page
    text = (tmp_path / "graph_gcn.md").read_text()
    assert all(method in text for method in methods)
    ours = next(result for result in plain if result["method"] == "ours")
    oracle = next(result for result in plain if result["method"] == "oracle after 1/16")
    lossless = [p["test"]["cut"] for p in ours["points"] if p["test"] and p["test"]["changed"] == 0]
    assert all(cut < oracle["points"][0]["test"]["cut"] for cut in lossless)
