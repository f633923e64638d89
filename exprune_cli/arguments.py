"""What the Python interface is given: checked, and opened whatever form it has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.paths import PathLike

if TYPE_CHECKING:
    from exprune_cli import sites
    from exprune_cli.data import Data, DataSet
    from exprune_cli.metrics import MetricFunction
    from exprune_cli.model import Model


def paths(named: Mapping[str, object]) -> dict[str, PathLike]:
    """Those that are files' paths, and not objects in memory."""
    return {name: value for name, value in named.items() if isinstance(value, (str, os.PathLike))}


def check_optimize(
    calibration: PathLike | sites.Calibration | None,
    data: Data | None,
    test: str,
    max_drop: float | None,
    confidence: float | None,
    metric: str | MetricFunction | None,
    batch: int | None,
    allow_random: bool = False,
) -> None:
    """Checks that the options of ``optimize`` fit together.

    Raises:
        UsageError: They do not.
    """
    if allow_random and (data is not None or calibration is not None):
        raise UsageError("--allow-random stands in for samples: leave it out with --data or --calibration")
    if test == "calibrated" and calibration is None and data is None and not allow_random:
        raise UsageError("--test calibrated needs --calibration or --data")
    if max_drop is not None and data is None:
        raise UsageError("--max-drop needs --data: the drop is measured on samples")
    if max_drop is not None and not 0 <= max_drop < float("inf"):
        raise UsageError("--max-drop must be 0 or more, e.g. 0.01 for one percent")
    if confidence is not None and max_drop is None:
        raise UsageError("--confidence needs --max-drop: it is how sure the drop's bound has to be")
    if confidence is not None and not max_drop:
        raise UsageError(
            "--confidence needs a --max-drop above 0: no number of samples certifies that nothing is lost: give e.g. "
            "0.001, or leave both out and take --test bound, which is lossless"
        )
    if confidence is not None and not 0 < confidence < 1:
        raise UsageError("--confidence must be between 0 and 1, e.g. 0.95")
    if metric is not None and data is None:
        raise UsageError("--metric needs --data: it is evaluated on samples")
    if batch is not None and batch < 1:
        raise UsageError("--batch must be at least 1")


def as_calibration(calibration: PathLike | sites.Calibration) -> sites.Calibration:
    """A calibration, read if it is given by its file's path."""
    if not isinstance(calibration, (str, os.PathLike)):
        return calibration
    from exprune_cli.calibration import load_calibration

    return load_calibration(calibration)


def calibration_of(model: Model, given: PathLike | sites.Calibration | None) -> sites.Calibration | None:
    """The calibration that is given for a model, if there is one.

    Raises:
        ExpruneError: It cannot be read, or is of another model.
    """
    if given is None:
        return None
    from exprune_cli.calibration import check_belongs

    calibration = as_calibration(given)
    check_belongs(calibration, model, given if isinstance(given, (str, os.PathLike)) else "the calibration")
    return calibration


def open_unseen(model: Model, data: Data | None, calibration: sites.Calibration | None) -> DataSet | None:
    """The samples; without those that a calibration was made with."""
    if data is None:
        return None
    from exprune_cli.data import name_of, open_data

    samples = open_data(data, model.proto)
    if calibration is None:
        return samples
    unseen = samples.without(calibration.sample_ids, calibration.group_ids)
    if not len(unseen):
        raise ExpruneError(
            f"{name_of(data)}: the calibration has seen all of its {samples.extent.text}: "
            "give others to verify on, or calibrate with fewer (--max-samples)"
        )
    return unseen


#: How many random samples are made where nobody says how many.
RANDOM_SAMPLES = 64


def random_data(model: Model, count: int | None, seed: int) -> DataSet:
    """Seeded random samples, for whoever has none and says so: they tell nothing of a model's real inputs.

    Floats are standard normal, integers 0, unknown sizes 16 (the first one 1).

    Args:
        model: The model to feed.
        count: How many; None for :data:`RANDOM_SAMPLES`.
        seed: Of the numbers.

    Raises:
        ExpruneError: The model has inputs of another kind.
    """
    from exprune_cli.data import open_data
    from exprune_cli.random_feeds import random_feeds

    feeds = random_feeds(model, 1, seed, count or RANDOM_SAMPLES)
    if feeds is None:
        raise ExpruneError("random samples cannot be made for this model's inputs: give --data")
    return open_data(feeds, model.proto)
