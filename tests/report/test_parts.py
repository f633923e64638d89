"""The parts of a report that say more than totals: spreads, alternatives, outlooks, refusals by reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exprune_cli import api
from exprune_cli.advice import refusal_groups
from exprune_cli.distribution import histogram, spread
from exprune_cli.flops import estimate_flops, spent_flops
from exprune_cli.latency import latency
from exprune_cli.measure import measure
from exprune_cli.model import load
from exprune_cli.record import SiteRecord, read_record
from exprune_cli.report_data import SiteReport
from exprune_cli.reporting import build_report
from tests.models import build, cnn, mlp, run
from tests.report.staged import Samples, staged_model

SAMPLE_MODELS = Path(__file__).parents[2] / "sample_models"


def write_samples(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(4)
    x = rng.standard_normal((count, 64)).astype(np.float32)
    (label,) = run(mlp(), x=x)
    np.savez(folder / "all.npz", x=x, label=label)
    return folder


def test_quantiles_are_those_of_the_numbers() -> None:
    found = spread(np.arange(101.0)[::-1])
    assert found is not None
    assert (found.least, found.p5, found.p25, found.median) == (0, 5, 25, 50)
    assert (found.p75, found.p95, found.most, found.runs) == (75, 95, 100, 101)
    assert spread([]) is None and spread([1.0, np.nan]) is None


def test_every_time_is_in_one_bin() -> None:
    rng = np.random.default_rng(0)
    dense, ours = rng.lognormal(1, 0.3, 500), rng.lognormal(0, 1, 400)
    found = histogram(dense, ours)
    assert found.dense is not None
    assert (sum(found.dense), sum(found.optimized)) == (500, 400)
    assert found.edges_ms[0] == min(dense.min(), ours.min())
    low, high = found.edges_ms[3], found.edges_ms[4]
    assert found.optimized[3] == np.sum((ours >= low) & (ours < high)) > 0
    same = histogram(None, np.full(5, 2.0))
    assert same.dense is None and sum(same.optimized) == 5


def test_spread_over_single_samples_is_what_the_algorithm_prunes() -> None:
    source = build(
        "g (float[N, 16] x) => (float[N, 5] y) { a = Gemm (x, w, b) r = Relu (a) y = Mul (r, two) }",
        {"w": (16, 5), "b": (5,), "two": np.float32(2)},
    )
    from onnx import numpy_helper

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    x = np.random.default_rng(7).standard_normal((9, 16)).astype(np.float32)
    pruned = np.zeros((9, 5), bool)
    for end in (4, 8):
        pruned |= x[:, :end] @ weights["w"][:end] + weights["b"] < 0
    staged = staged_model(source)
    found = measure(staged.proto, Samples(x=x), spread_over=100)
    wanted = spread(pruned.mean(axis=1))
    assert wanted is not None and wanted.least < wanted.most
    assert found.pruned_spread["a"] == wanted
    assert found.reduction_spread is not None and found.reduction_spread.runs == 9
    # The second pass leaves the sums alone.
    assert found.samples == 9 and found.flops == measure(staged.proto, Samples(x=x)).flops
    report = build_report(staged, measurement=found)
    site = next(site for site in report.sites if site.staged)
    assert site.spread == wanted
    assert site.pruned == pytest.approx(pruned.mean())
    assert site.flops_estimate is not None and site.flops is not None
    assert site.flops_estimate == 2 * 5 * 4 + 5  # the first chunk and its test
    left = 1 - pruned.mean()
    assert site.flops - site.flops_estimate == pytest.approx(
        (2 * 4 + 1) * (1 - (x[:, :4] @ weights["w"][:4] + weights["b"] < 0).mean()) * 5 + 2 * 8 * left * 5
    )


@pytest.mark.parametrize("estimate", ["prefix", "quantized", "low-rank", "sparse"])
def test_the_estimate_is_what_is_spent_when_nothing_survives(estimate: str) -> None:
    site = SiteRecord(
        "s",
        "Gemm",
        "r",
        "sparse" if estimate == "sparse" else "relu",
        True,
        "",
        estimate=None if estimate == "sparse" else estimate,
        test={"prefix": "threshold", "quantized": "bound", "low-rank": "calibrated", "sparse": "zero"}[
            estimate
        ],
        outputs=32,
        groups=64,
        taps=1,
        ends=[16, 64] if estimate == "prefix" else [],
        parameters={"rank": 4.0},
    )
    by_hand = {
        "prefix": 10 * 32 * (2 * 16 + 1),
        "quantized": 10 * 32 * (2 * 64 + 3),
        "low-rank": 2 * 10 * 4 * (64 + 32) + 10 * 32 * 2,
        "sparse": 10 * 64,
    }[estimate]
    assert estimate_flops(site, 10) == by_hand
    assert spent_flops(site, 10, [7.0]) > by_hand


def test_times_are_kept_as_quantiles_and_bins() -> None:
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 64)).astype(np.float32)} for i in range(4)]
    times = latency(mlp(), staged_model(mlp()).proto, feeds, rounds=3, min_runs=12)
    timing = build_report(staged_model(mlp()), timing=times).timing
    assert timing is not None and timing.dense is not None and timing.optimized is not None
    assert timing.dense.median == times.dense_ms and timing.optimized.median == times.ms
    assert timing.histogram is not None and sum(timing.histogram.optimized) == times.runs == 12


def test_a_few_late_runs_do_not_flatten_all_others() -> None:
    times = np.concatenate([np.random.default_rng(1).normal(2, 0.05, 97), [50.0, 60.0, 70.0]])
    found = histogram(None, times)
    assert found.edges_ms[-1] < 3 and found.optimized[-1] >= 3 and sum(found.optimized) == 100


def test_weights_of_sites_are_known_where_they_are_transposed() -> None:
    tied = build(
        "g (int64[N] t) => (int64[N] y) { x = Gather (e, t) u = Transpose <perm: ints = [1, 0]> (e) "
        "a = MatMul (x, u) y = ArgMax <axis: int = 1, keepdims: int = 0> (a) }",
        {"e": (50, 8)},
    )
    report = build_report(load(tied))
    assert [site.weights for site in report.sites] == [400]
    assert report.outlook is not None and report.outlook.weights_share == 1


def test_what_was_tried_is_in_the_file_and_in_its_report(tmp_path: Path) -> None:
    import onnx

    source = tmp_path / "mlp.onnx"
    onnx.save(mlp(), source)
    data = write_samples(tmp_path / "data", 400)
    options = {"data": data, "objective": "flops", "max_drop": 0.2, "seed": 3}
    done = api.optimize(source, tmp_path / "o.onnx", **options)  # type: ignore[arg-type]
    report = api.report(tmp_path / "o.onnx")
    assert report.alternatives == done.report.alternatives
    assert len(report.alternatives) > 1
    (chosen,) = [each for each in report.alternatives if each.chosen]
    assert chosen.passed and chosen.upper is not None and chosen.upper <= 0.2 and chosen.p_value is None
    assert report.fidelity is not None and chosen.drop == report.fidelity.drop
    savings = [each.flops_reduction for each in report.alternatives]
    assert savings == sorted(savings)  # type: ignore[type-var]
    measured = api.report(tmp_path / "o.onnx", data=data)
    assert measured.totals.flops_reduction == pytest.approx(chosen.flops_reduction, abs=0.05)
    assert report.origin is not None
    assert (report.origin.seed, report.origin.options) == (3, {"max_drop": 0.2})
    assert report.origin.calibration_samples == 100
    api.optimize(source, tmp_path / "again.onnx", **options)  # type: ignore[arg-type]
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()


def test_older_files_say_less() -> None:
    model = staged_model(mlp())
    entry = model.proto.metadata_props[0]
    import json

    plain = json.loads(entry.value)
    for name in ("seed", "options", "calibration_samples", "tried"):
        del plain[name]
    entry.value = json.dumps(plain)
    report = build_report(model)
    assert read_record(model.proto) is not None
    assert report.alternatives == [] and report.origin is not None and report.origin.seed is None


def test_outlook_from_the_weights_names_the_heads(tmp_path: Path) -> None:
    head = build(
        "g (float[N, 512] x) => (int64[N] y) { a = Gemm (x, w) y = ArgMax <axis: int = 1, keepdims: int = 0> (a) }",
        {"w": (512, 4096)},
    )
    outlook = build_report(load(head)).outlook
    assert outlook is not None
    assert (outlook.basis, outlook.samples, outlook.sites, outlook.share) == ("weights", None, 1, 1)
    assert outlook.reduction_limit is None and outlook.reduction_expected is None
    assert any("1 site should be faster losslessly" in text for text in outlook.findings)
    nothing = build_report(
        load(build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)}))
    )
    assert nothing.outlook is not None and nothing.outlook.sites == 0 and nothing.outlook.needs == []


def test_outlook_from_activations_counts_the_zeros(tmp_path: Path) -> None:
    import onnx

    source = tmp_path / "mlp.onnx"
    onnx.save(mlp(), source)
    data = write_samples(tmp_path / "data", 60)
    report = api.report(source, data=data)
    x = np.load(data / "all.npz")["x"]
    sites = {site.name: site for site in report.sites}
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in mlp().graph.initializer}
    node = next(node for node in mlp().graph.node if "a" in node.output)
    final = x @ weights[node.input[1]].T + weights[node.input[2]]
    outlook = sites["a"].outlook
    assert outlook is not None and outlook.zeros == pytest.approx((final <= 0).mean(), abs=2e-4)
    assert sites["a"].flops_dense is not None and outlook.flops_limit is not None
    assert outlook.flops_limit == pytest.approx(sites["a"].flops_dense * (1 - outlook.zeros))
    whole = report.outlook
    assert whole is not None and (whole.basis, whole.samples) == ("data", 60)
    assert whole.reduction_limit is not None and whole.reduction_expected is not None
    assert 0 <= whole.reduction_expected <= whole.reduction_limit + 0.2
    limits = sum(s.flops_dense - s.outlook.flops_limit for s in report.sites if s.outlook)  # type: ignore[operator]
    assert report.totals.flops_dense is not None
    assert whole.reduction_limit == pytest.approx(limits / report.totals.flops_dense)


def test_outlook_of_convs_knows_that_zeros_are_not_multiplied(tmp_path: Path) -> None:
    """What optimize saves for FLOPs, next to nothing lost, is not more than the report's limit without loss."""
    import onnx

    source = tmp_path / "cnn.onnx"
    onnx.save(cnn(), source)
    x = np.random.default_rng(3).standard_normal((200, 3, 16, 16)).astype(np.float32)
    report = api.report(source, data=x)
    second = report.sites[1]
    assert second.outlook is not None and second.outlook.zeros is not None and second.flops_dense is not None
    assert second.outlook.flops_limit is not None
    assert second.outlook.flops_limit < 0.95 * second.flops_dense * (1 - second.outlook.zeros)
    done = api.optimize(source, objective="flops", data=x, max_drop=0.002, metric="cosine")
    saved = done.report.totals.flops_reduction
    assert report.outlook is not None and report.outlook.reduction_limit is not None
    assert saved is not None and 0 < saved <= report.outlook.reduction_limit
    assert report.outlook.reduction_expected is not None
    assert 0 < report.outlook.reduction_expected <= report.outlook.reduction_limit


def test_activations_that_say_nothing_are_noted(tmp_path: Path) -> None:
    import onnx

    onnx.save(mlp(), tmp_path / "mlp.onnx")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "nan.npy", np.full((3, 64), np.nan, np.float32))
    report = api.report(tmp_path / "mlp.onnx", data=tmp_path / "data")
    assert report.outlook is not None and report.outlook.basis == "weights"
    assert "is NaN or infinite" in report.notes[-1]


def test_refusals_are_grouped_by_reason() -> None:
    def site(
        name: str, code: str | None, reason: str, flops: float | None, staged: bool = False
    ) -> SiteReport:
        return SiteReport(name, "Gemm", None, staged, reason, flops_dense=flops, code=code)

    sites = [
        site("a", "other-activation", "Gelu follows", 10),
        site("b", "not-worth-it", "slower here: 3 us staged, 2 us dense", 40),
        site("c", "other-activation", "Softmax follows", 20),
        site("d", "not-worth-it", "faster up to 4 rows only, and the number of rows is open", None),
        site("e", None, "not optimised yet: it can be staged", 20),
        site("f", None, "", 20, staged=True),
        site("g", "a-new-code", "its own reason", 5),
    ]
    groups = refusal_groups(sites, 100)
    assert [(group.code, group.sites, group.share) for group in groups] == [
        ("slower", ["b"], 0.4),
        ("other-activation", ["a", "c"], 0.3),
        ("a-new-code", ["g"], 0.05),
        ("rows-open", ["d"], None),
    ]
    assert groups[2].reason == "its own reason"
    assert all(group.advice for group in groups[:2])


def test_there_are_words_for_no_reason_that_no_rule_gives() -> None:
    import re

    from exprune_cli import advice

    root = Path(__file__).parents[2]
    texts = [path.read_text() for path in (root / "rules").glob("*.py")]
    texts.append((root / "exprune_cli" / "match.py").read_text())
    words = {word for text in texts for word in re.findall(r'"([a-z]+(?:-[a-z]+)*)"', text)}
    planner = {"slower", "rows-open", "not-expected", "no-saving"}
    assert set(advice._ADVICE) - planner <= words


def test_the_cnn_of_the_samples() -> None:
    """Refusals and shares of a real network add up to its work."""
    report = build_report(load(SAMPLE_MODELS / "digits_resnet" / "digits_resnet.onnx"))
    assert report.outlook is not None and report.outlook.share is not None
    assert report.outlook.share + sum(group.share or 0 for group in report.refusals) == pytest.approx(1)
    assert report.environment is not None and report.environment.kernels


def test_cnn_outlook_is_plain() -> None:
    outlook = build_report(load(cnn())).outlook
    assert outlook is not None and outlook.sites == 3
    assert outlook.needs[0].startswith("samples: ")
