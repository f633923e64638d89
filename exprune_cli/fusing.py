"""Whether a fused model is faster here, and computes what the original does."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from exprune_cli.fusion import Fused, fuse
from exprune_cli.model import Model
from exprune_cli.never_slower import is_faster
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.timing import MARGIN
from exprune_cli.weights import kept

if TYPE_CHECKING:
    from exprune_cli.progress import Progress

_log = logging.getLogger(__name__)

#: Inputs that results are compared on, and by how much floats may differ, as a share of the largest.
_COMPARED, _ROUNDING = 8, 1e-4


def fused_where_faster(model: Model, feeds: Sequence[Feeds], progress: Progress | None = None) -> Fused:
    """The fused model, if it is faster by more than the noise on these inputs; else the given one.

    Args:
        model: The original; not changed.
        feeds: Inputs of one run each.
        progress: Where progress is shown.
    """
    unchanged = Fused(model, {})
    if kept(model.proto):  # of large operators, calls cost little
        return unchanged
    fused = fuse(model)
    if not fused.counts:
        return unchanged
    difference = _difference(model, fused.model, feeds[:_COMPARED])
    if difference is not None:
        _log.warning("operators around the sites are left as they are: fused, %s", difference)
        return unchanged
    speedup = is_faster(model, fused.model.proto, feeds, progress)
    return dataclasses.replace(fused, speedup=speedup) if speedup >= MARGIN else unchanged


def _difference(model: Model, fused: Model, feeds: Sequence[Feeds]) -> str | None:
    """What differs between the models' results by more than rounding; None if nothing does."""
    sessions = [open_session(each.proto) for each in (model, fused)]
    names = [value.name for value in model.proto.graph.output]
    for feed in feeds:
        for name, wanted, got in zip(
            names, *(run(session, feed, "fusing") for session in sessions), strict=True
        ):
            if not isinstance(wanted, np.ndarray) or wanted.dtype.kind not in "fiub":
                continue
            if wanted.shape != got.shape:
                return f"'{name}' has shape {got.shape} and not {wanted.shape}"
            if wanted.dtype.kind != "f":
                if not np.array_equal(wanted, got):
                    return f"'{name}' differs"
            elif not np.allclose(got, wanted, rtol=0, atol=_ROUNDING * _largest(wanted), equal_nan=True):
                return f"'{name}' differs by more than rounding"
    return None


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))
