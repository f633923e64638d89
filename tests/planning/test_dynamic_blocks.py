"""Blocks after a prefix that is chosen per image: planned where channels' energies change from image to image."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from exprune_cli.block_plans import with_blocks
from exprune_cli.choice import like
from exprune_cli.data import open_data
from exprune_cli.match import match
from exprune_cli.model import load
from exprune_cli.observe import observe
from exprune_cli.observe_blocks import BlockObserver
from exprune_cli.planning import blocks, chunks
from exprune_cli.planning.panels import exact_panel_plan
from exprune_cli.planning.relu import dense
from exprune_cli.rewrite import rewrite
from exprune_cli.sites import SitePlan
from exprune_cli.static import static_shapes
from tests.models import build, run

from .chunked import Case, check_plans_on_the_model, conv_site, smooth_statistics

BUDGETS = (0.001, 0.01, 0.03)
GROUPS, OUTPUTS, SIZE, LOUD = 32, 16, 16, 3


def _case(folder: Path, changing: bool) -> Case:
    """A Conv that reads images of which few channels are loud: others in each image, or always the same."""
    model = build(
        f"""g (float[N, {GROUPS}, {SIZE}, {SIZE}] x) => (float[N, {OUTPUTS}, {SIZE}, {SIZE}] y) {{
          a = Conv <pads: ints = [1, 1, 1, 1]> (x, w, b)
          y = Relu (a)
        }}""",
        {"w": (OUTPUTS, GROUPS, 3, 3), "b": np.full(OUTPUTS, -0.3, np.float32)},
    )
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((80, GROUPS, SIZE, SIZE))
    images = np.cumsum(np.cumsum(noise, axis=2), axis=3) / 8
    size = np.full((80, GROUPS, 1, 1), 0.05)
    for image in range(80):
        size[image, rng.choice(GROUPS, LOUD, replace=False) if changing else range(LOUD)] = 1
    images = (images * size).astype(np.float32)
    folder.mkdir()
    np.savez(folder / "images.npz", x=images)
    loaded = load(model)
    return loaded, open_data(folder, loaded.proto), images


@pytest.fixture(scope="module", params=[True, False], ids=["changing", "fixed"])
def case(request, tmp_path_factory):
    changing = request.param
    return changing, _case(tmp_path_factory.mktemp("images") / "data", changing)


def _forms(model, data) -> list[list[SitePlan]]:
    """The plans in blocks of the one Conv at each budget, the best one first."""
    sites = match(model).sites
    steps = [{site.name: dense(site, "") for site in sites} for _ in BUDGETS]
    steps = with_blocks(model, sites, steps, BUDGETS, observe(model, sites, data), data, 0)
    plans = [step[sites[0].name] for step in steps]
    return [[form for form in (plan, *plan.alternatives) if not form.panel] for plan in plans]


def test_the_form_that_saves_more_is_taken_and_the_other_one_kept(case):
    changing, (model, data, _) = case
    site = match(model).sites[0]
    *_, forms = _forms(model, data)
    assert [form.dynamic for form in forms] == ([True, False] if changing else [False, True])
    best, other = (blocks.saving(site, form) for form in forms)
    assert best > other + 0.1 if changing else best > other
    best = next(form for form in forms if form.dynamic)
    assert best.reason.endswith(f"after {best.ends[0]} of {GROUPS} groups, chosen per input")
    assert best.order is None and best.block


def test_exact_plans_stand_once(case):
    """Where nothing can be saved there is one exact form in blocks, and not one for each order."""
    model, data, _ = case[1]
    for forms in _forms(model, data):
        assert sum(not form.block for form in forms) <= 1
        assert forms[0].block or len(forms) == 1


def test_plans_do_on_the_model_what_they_say(case):
    changing, (model, data, images) = case
    site = match(model).sites[0]
    plan = next(form for form in _forms(model, data)[-1] if form.dynamic)
    check_plans_on_the_model((model, data, images), {site.name: plan})
    proto, (record,) = rewrite(model, [site], {site.name: plan})
    assert [node.op_type for node in proto.graph.node] == ["DynamicPrefixConvBlock"]
    assert record.parameters["input_positions"] == 1
    assert list(static_shapes(proto, batch=2)(site.output)) == [2, OUTPUTS, SIZE, SIZE]
    lost = _lost(model, proto, images)
    assert abs(lost - plan.lost_energy) < (0.001 if changing else 0.005)


def _lost(model, proto, images):
    (want,), (got, _) = run(model.proto, x=images), _with_survivors(proto, images)
    return np.square(np.where(got == 0, want, 0)).sum() / np.square(want).sum()


def _with_survivors(proto, images):
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    name = shown.graph.node[0].output[-1]
    shown.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    return run(shown, x=images)


def test_the_observer_takes_each_images_own_order(case):
    model, data, _ = case[1]
    site = match(model).sites[0]
    ends = (4, 16)
    observer = BlockObserver(model, [site], data, 0)
    energies = chunks.weight_energy(site.load_weight()).astype(np.float32)
    seen: list[np.ndarray] = []

    def order_of(image):
        seen.append(chunks.image_order(image, energies))
        return seen[-1]

    chosen = observer.observe(site, order_of, ends)
    assert len(seen) == len(chosen.final)
    for i in (0, 7):
        same = observer.observe(site, seen[i], ends)
        for a, b in zip(chosen.partial, same.partial, strict=True):
            np.testing.assert_allclose(a[i], b[i], atol=1e-4)
        np.testing.assert_allclose(chosen.final, same.final, atol=1e-4)
    again = observer.observe(site, partial(chunks.image_order, energies=energies), ends)
    np.testing.assert_array_equal(again.final, chosen.final)


def test_an_images_order_is_by_energy_and_then_by_index():
    image = np.array([[1, 1], [2, 0], [0, 0], [-3, 0], [0, 2], [0, 0]], np.float32)
    energies = np.array([2, 1, 5, 1, 1, 7], np.float32)
    assert chunks.image_order(image, energies).tolist() == [3, 0, 1, 4, 2, 5]


def test_the_choice_is_paid_for():
    """The pass over the input counts: a layer of few outputs and taps does not choose for nothing."""
    site = conv_site()
    ends = blocks.candidate_ends(site.groups)
    sums = smooth_statistics(site, ends)
    order = np.arange(site.groups)
    (fixed,), (dynamic,) = (blocks.plan_blocks(site, each, ends, sums, [0.1]) for each in (order, None))
    assert fixed.ends == dynamic.ends and fixed.block == dynamic.block
    cost = 1 / (site.outputs * site.taps)
    assert blocks.saving(site, dynamic) == pytest.approx(blocks.saving(site, fixed) - cost)
    np.testing.assert_allclose(
        dynamic.parameters["weight_energy"], np.square(site.load_weight()).sum(axis=(0, 2)), rtol=1e-6
    )


def test_a_steps_form_is_the_one_that_timing_chose():
    fixed = dataclasses.replace(blocks.exact_plan(conv_site()), block=64)
    dynamic, panel = dataclasses.replace(fixed, dynamic=True), exact_panel_plan(conv_site(outputs=16))
    plan = dataclasses.replace(dynamic, alternatives=(panel, fixed))
    assert like(plan, panel) is panel and like(plan, fixed) is fixed and like(plan, dynamic) is plan
    only = dataclasses.replace(fixed, alternatives=(panel,))
    assert like(only, dynamic) is only and like(fixed, panel) is fixed
