"""The comparison with other methods: its simulation is what staging does, and its quick form runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.points import Point, Score, SimulatedScorer, choose, chosen
from benchmarks.accuracy.simulated import K, Rule, fits_check, simulate
from exprune_cli.match import match
from exprune_cli.measure import Baseline
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
    found = SimulatedScorer(model, data, Baseline(model.proto)).score(
        simulated, {site.name: np.full(1, cut, np.float32) for site in chosen}
    )
    plans = {site.name: dense(site, "") for site in sites} | {s.name: _plan(s, test, cut) for s in chosen}
    staged = evaluate(model, sites, plans, data, Gate(0.0, None, None), Baseline(model.proto))
    whole = SimulatedScorer(model, data, Baseline(model.proto)).dense
    assert found.cut == pytest.approx(1 - staged.flops / whole, abs=2e-3)
    assert found.drop == pytest.approx(staged.drop.mean, abs=0.02)


def test_choices_keep_to_their_drop() -> None:
    def point(cut: float, drop: float) -> Point:
        return Point(None, Score(cut, drop, drop))

    points = [point(0.1, 0.0), point(0.2, 0.02), point(0.3, 0.01), point(0.05, 0.005), point(0.4, 0.05)]
    assert [p.validation.cut for p in chosen(points)] == [0.1, 0.3]
    best = choose(points, 0.01)
    assert best is not None and best.validation.cut == 0.3 and choose(points, -1) is None


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
