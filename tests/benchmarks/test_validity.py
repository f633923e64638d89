"""A certificate is wrong no more often than it says, and seldom where samples are not exchangeable."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from benchmarks.validity import allowed_drops, cached_losses, experiment

SPLITS, CALIBRATION = 1000, 1500


@functools.cache
def _losses() -> np.ndarray:
    return cached_losses(8000)


@pytest.mark.parametrize("index", range(3))
def test_certified_drops_are_seldom_exceeded(index: int) -> None:
    """At drops just below what a step of the knob really loses, where to certify it is an error."""
    losses = _losses()
    found = experiment(losses, allowed_drops(losses)[index], 0.95, SPLITS, CALIBRATION, seed=index)
    assert found.valid, found


def test_certificates_are_given_where_they_should_be() -> None:
    losses = _losses()
    found = experiment(losses, 3.5 * allowed_drops(losses)[0], 0.95, 200, CALIBRATION)
    assert found.certified >= 190 and found.valid, found


def test_without_exchangeability_the_promise_is_broken() -> None:
    """The experiment can fail: samples that certify are chosen among those that lose least."""
    losses = _losses()
    easy = np.argsort(losses[-1], kind="stable")
    drop = allowed_drops(losses)[1]
    from exprune_cli.certify import betting_p_value, furthest

    step = furthest(
        range(len(losses)), lambda step: betting_p_value(losses[step, easy[:CALIBRATION]], drop) <= 0.05
    )
    assert step is not None and losses[step, easy[CALIBRATION:]].mean() > drop


def test_where_samples_are_views_of_few_originals_these_have_to_be_counted() -> None:
    losses = cached_losses(8000, views=20)
    drop = max(allowed_drops(losses, 5 / 200))
    by_group, by_sample = (
        experiment(losses, drop, 0.95, 400, 200, views=20, by_group=counted) for counted in (True, False)
    )
    assert by_group.certified > 200 and by_group.valid, by_group
    assert not by_sample.valid, by_sample
