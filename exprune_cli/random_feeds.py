"""Random inputs of a model, where there is no data."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper

from exprune_cli.model import Model, model_inputs
from exprune_cli.sessions import Feeds
from exprune_cli.static import MOST_ELEMENTS


def random_feeds(model: Model, batch: int, seed: int, count: int = 4) -> list[Feeds] | None:
    """Seeded inputs for timing where no data is given; None if the inputs are not plain tensors.

    Floats are standard normal, integers 0, unknown sizes 16 (the first one ``batch``). Sizes of one name
    are equal, wherever they stand: a batch may be the second axis of a cache.
    """
    rng = np.random.default_rng(seed)
    feeds: list[Feeds] = []
    sizes: dict[str, int] = {}
    for _ in range(count):
        feed = {}
        for value in model_inputs(model.proto):
            tensor = value.type.tensor_type
            if not tensor.elem_type or not tensor.HasField("shape"):
                return None
            shape = []
            for axis, size in enumerate(tensor.shape.dim):
                unknown = batch if axis == 0 else 16
                shape.append(
                    size.dim_value
                    or (sizes.setdefault(size.dim_param, unknown) if size.dim_param else unknown)
                )
            if min(shape, default=0) < 0 or math.prod(shape) > MOST_ELEMENTS:
                return None
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if dtype.kind not in "fiub":
                return None
            feed[value.name] = (rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)).astype(
                dtype
            )
        feeds.append(feed)
    return feeds
