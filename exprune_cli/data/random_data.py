"""Random samples, for whoever has none and says so: they tell nothing of a model's real inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exprune_cli.errors import ExpruneError

if TYPE_CHECKING:
    from exprune_cli.data.dataset import DataSet
    from exprune_cli.model import Model

#: How many are made where nobody says how many.
RANDOM_SAMPLES = 64


def random_data(model: Model, count: int | None, seed: int) -> DataSet:
    """Seeded samples: floats are standard normal, integers 0, unknown sizes 16 (the first one 1).

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
