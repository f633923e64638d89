"""Samples in groups: these are what is held out, counted, certified and checked again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from exprune_cli import api, render
from exprune_cli.arguments import open_unseen
from exprune_cli.data import open_data
from exprune_cli.errors import ExpruneError, GateError
from exprune_cli.match import match
from exprune_cli.measure import Baseline
from exprune_cli.model import load
from exprune_cli.page import to_html
from exprune_cli.planning.planner import plan
from exprune_cli.search import Gate, evaluate
from tests.models import mlp, run

VIEWS = 5


def _store(folder: Path, originals: int, seed: int, grouped: bool = True, first: int = 0) -> Path:
    """Views of originals in turn, in two files, labelled by the dense model; a fifth has less of them."""
    folder.mkdir()
    mix = np.random.default_rng(0).standard_normal((6, 64))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((originals, 6)) @ mix
    of = np.tile(np.arange(originals), VIEWS)
    of = of[(of % 5 > 0) | (np.arange(len(of)) < 2 * originals)]
    x = (x[of] + 0.3 * rng.standard_normal((len(of), 64))).astype(np.float32)
    label = run(mlp(), x=x)[0]
    half = len(of) // 2
    for name, part in (("a", slice(None, half)), ("b", slice(half, None))):
        group = {"group": of[part] + first} if grouped else {}
        np.savez(folder / f"{name}.npz", x=x[part], label=label[part], **group)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, grouped data and a certified file."""
    folder = tmp_path_factory.mktemp("grouped")
    onnx.save(mlp(), folder / "mlp.onnx")
    data = _store(folder / "data", 400, 1)
    done = api.optimize(
        folder / "mlp.onnx",
        folder / "staged.onnx",
        data=data,
        objective="flops",
        max_drop=0.05,
        confidence=0.95,
    )
    assert done.certificate is not None
    return folder


def test_a_certificate_counts_groups(folder: Path) -> None:
    report = api.report(folder / "staged.onnx")
    certificate, fidelity = report.certificate, report.fidelity
    assert certificate is not None and fidelity is not None
    assert certificate.groups == fidelity.groups == 300, "a quarter of 400 groups is for statistics"
    assert certificate.samples is not None and 300 * 3.5 < certificate.samples < 300 * VIEWS
    text = f"300 groups ({certificate.samples} samples)"
    table = " ".join(render.to_table(report).split())
    assert table.count(f"(300 groups, {certificate.samples} samples)") == 2, (
        "of the quality and the certificate"
    )
    page = re.sub(r"<[^>]+>", "", to_html(report))
    assert (
        f"from 300 groups ({certificate.samples:,} samples)" in page
        and f"of {certificate.samples:,} samples, in 300 groups" in page
    )
    notes = {entry.key: entry.value for entry in onnx.load(folder / "staged.onnx").metadata_props}
    assert notes["exprune.certificate"].endswith(f"from {text}")
    assert repr(certificate).endswith(f"holds, {text}>")


def test_its_statistics_are_of_other_groups(folder: Path) -> None:
    data = open_data(folder / "data", load(folder / "mlp.onnx").proto)
    report = api.report(folder / "staged.onnx")
    seen, held_out = data.split(0.25, 0)
    assert report.certificate is not None and report.certificate.data_digest == held_out.digest
    assert report.origin is not None and report.origin.calibration == seen.digest


def test_too_few_groups_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    data = _store(tmp_path / "data", 40, 1)
    message = (
        "cannot be certified at 0.95 from 30 held-out groups, at least 89 are needed: give about 119 in data"
    )
    with pytest.raises(GateError, match=message):
        api.optimize(
            tmp_path / "mlp.onnx", data=data, objective="flops", max_drop=0.05, confidence=0.95, dry_run=True
        )
    # As many samples that are in no groups might be enough: these are tried.
    plain = _store(tmp_path / "plain", 40, 1, grouped=False)
    with pytest.raises(
        GateError, match="cannot be certified at 0.95 on 132 held-out samples: the safest plan that was tried"
    ):
        api.optimize(
            tmp_path / "mlp.onnx",
            data=plain,
            objective="flops",
            max_drop=0.05,
            confidence=0.95,
            dry_run=True,
        )


def test_a_groups_loss_is_the_mean_over_its_samples(folder: Path) -> None:
    model = load(folder / "mlp.onnx")
    sites = match(model).sites
    data = open_data(folder / "data", model.proto)
    step = plan(sites, api.calibrate(folder / "mlp.onnx", folder / "data"), "calibrated")[-1]
    found = evaluate(model, sites, step, data, Gate(0.05, None, None), Baseline(model.proto))
    assert data.groups is not None and len(found.losses) == len(data)
    means = [found.losses[data.groups == group].mean() for group in np.unique(data.groups)]
    assert found.drop.samples == len(means) == 400 and found.drop.mean == pytest.approx(np.mean(means))
    assert found.drop.mean != pytest.approx(found.losses.mean(), rel=1e-6), "groups are of two sizes"
    quality = found.quality
    assert quality["baseline"] == 1.0 and quality["optimized"] == pytest.approx(1 - found.drop.mean)
    assert quality["agreement"] == pytest.approx(1 - found.drop.mean)
    assert (quality["samples"], quality["groups"]) == (len(data), 400)


def test_a_certificate_is_checked_again_by_group(folder: Path) -> None:
    staged, baseline = folder / "staged.onnx", folder / "mlp.onnx"
    report = api.report(staged, baseline, _store(folder / "new", 200, 7))
    certificate, fidelity = report.certificate, report.fidelity
    assert certificate is not None and fidelity is not None
    assert certificate.checked and certificate.holds and certificate.groups == fidelity.groups == 200
    assert certificate.drop == pytest.approx(fidelity.drop) and certificate.samples == fidelity.samples
    assert "on 200 groups, " in " ".join(render.to_table(report).split()) and not any(
        "groups" in note for note in report.notes
    )
    report = api.report(staged, baseline, _store(folder / "ungrouped", 200, 7, grouped=False))
    assert report.certificate is not None and report.certificate.groups is None
    assert any("counts groups, and these samples have none" in note for note in report.notes)


def test_calibrations_know_the_groups_that_they_have_seen(folder: Path) -> None:
    model = folder / "mlp.onnx"
    part = api.calibrate(model, folder / "data", folder / "part.calib", max_samples=100)
    # Whole groups, so that others are left.
    assert part.group_ids is not None and 20 <= len(part.group_ids) <= 35
    loaded = load(model)
    unseen = open_unseen(loaded, folder / "data", api.as_calibration(folder / "part.calib"))
    assert unseen is not None and unseen.groups is not None
    assert len(unseen) <= len(open_data(folder / "data", loaded.proto)) - 100
    assert not np.isin(unseen.groups, part.group_ids).any()
    # The groups of another folder, of which no sample is here, are known by their value.
    other = api.calibrate(model, _store(folder / "other", 30, 9, first=390))
    both = api.merge_calibrations([folder / "part.calib", other], folder / "both.calib")
    assert both.group_ids is not None
    np.testing.assert_array_equal(both.group_ids, np.union1d(part.group_ids, other.group_ids))
    assert both.to_dict()["groups"] == len(both.group_ids)
    rest = open_unseen(loaded, folder / "data", api.as_calibration(folder / "both.calib"))
    assert rest is not None and rest.groups is not None and not np.isin(rest.groups, both.group_ids).any()
    assert 0 < len(np.unique(unseen.groups)) - len(np.unique(rest.groups)) <= 10
    whole = api.calibrate(model, folder / "data")
    with pytest.raises(ExpruneError, match=r"has seen all of its 400 groups \(\d+ samples\)"):
        open_unseen(loaded, folder / "data", whole)
