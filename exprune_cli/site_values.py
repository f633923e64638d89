"""What sites read when the original model runs: their inputs and computed offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from exprune_cli.instrument import with_outputs
from exprune_cli.model import Model, model_inputs
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.sites import Site


class SiteValues:
    """Runs the original model, without the native runtime, for the tensors that some sites read.

    Args:
        model: The original model.
        sites: The sites that will be asked for.
    """

    def __init__(self, model: Model, sites: Sequence[Site]) -> None:
        fed = {value.name for value in model_inputs(model.proto)}
        names = dict.fromkeys(name for site in sites for name in read_by(site))
        self._inside = [name for name in names if name not in fed]
        addition = with_outputs(model.proto, self._inside, TensorProto.FLOAT)
        self._session = (
            open_session(model.proto, addition=addition, use_runtime=False) if self._inside else None
        )

    def of(self, sites: Sequence[Site], feeds: Feeds, where: str) -> dict[str, np.ndarray]:
        """The tensors that ``sites`` read, by name, in one run of the model on ``feeds``."""
        names = dict.fromkeys(name for site in sites for name in read_by(site))
        inside = [name for name in names if name in self._inside]
        values = {name: feeds[name] for name in names if name in feeds}
        if inside and self._session is not None:
            values |= zip(inside, run(self._session, feeds, where, inside), strict=True)
        return values


def read_by(site: Site) -> list[str]:
    """Names of the tensors that a site reads: its input and, where it has one, its offset."""
    return [site.input, *([site.offset] if site.offset else [])]
