"""What a Conv's partial sums look like on whole images: what planning in blocks needs.

The statistics of :mod:`exprune_cli.observe` hold single output positions; a block is decided by the
sums of neighbouring ones. So the sites' inputs are taken once more for a few samples, and the sums
over the first input channels are computed by ONNX Runtime, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from exprune_cli.model import Model
from exprune_cli.sessions import open_session, run
from exprune_cli.site_values import SiteValues
from exprune_cli.sites import Site

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from exprune_cli.data import DataSet

#: Samples that are looked at, at most, and elements of one sum.
_SAMPLES = 64
_ELEMENTS = 2**21


@dataclass(frozen=True)
class BlockStatistics:
    """Sums of a Conv site on whole images; ``P`` output positions, row by row.

    Attributes:
        partial: For each candidate end the sums over so many groups, ``[I, N, P]`` float32.
        final: The sums over all groups, ``[I, N, P]``.
        offset: What is added to them, bias and computed offset, broadcastable to ``[I, N, P]``.
    """

    partial: list[np.ndarray]
    final: np.ndarray
    offset: np.ndarray


class BlockObserver:
    """Runs the original model on some samples, site by site.

    Args:
        model: The original model.
        sites: The Conv sites that will be asked for.
        data: Samples that the plan may see.
        seed: Chooses among them.
    """

    def __init__(self, model: Model, sites: Sequence[Site], data: DataSet, seed: int) -> None:
        self._values = SiteValues(model, sites)
        self._batches = list(data.take(min(len(data), _SAMPLES), seed).batches(1))
        self._opset = model.opset

    def observe(self, site: Site, order: np.ndarray, ends: Sequence[int]) -> BlockStatistics | None:
        """The sums of one site over the first ``ends`` groups in ``order``; None if all are spoiled by NaN."""
        weight = site.load_weight()[:, order]
        bounds = [0, *ends, site.groups]
        sessions = [self._chunk(site, weight[:, begin:end]) for begin, end in pairwise(bounds)]
        sums: list[list[np.ndarray]] = [[] for _ in sessions]
        offsets, seen = [], 0
        for batch in self._batches:
            values = self._values.of([site], batch.feeds, batch.where)
            x = values[site.input]
            if not np.isfinite(x).all():
                continue
            total = np.float32(0.0)
            begin = 0
            for session, end, kept in zip(sessions, bounds[1:], sums, strict=True):
                part = run(session, {"x": np.ascontiguousarray(x[:, order[begin:end]])}, batch.where, ["y"])[
                    0
                ]
                total = total + part.reshape(*part.shape[:2], -1)
                kept.append(total)
                begin = end
            if site.offset:
                offsets.append(values[site.offset].reshape(total.shape))
            seen += total.size
            if seen > _ELEMENTS:
                break
        if not sums[0]:
            return None
        offset = site.bias[None, :, None]
        if offsets:
            offset = offset + np.concatenate(offsets)
        *partial, final = (np.concatenate(part) for part in sums)
        return BlockStatistics(partial, final, offset)

    def _chunk(self, site: Site, weight: np.ndarray) -> InferenceSession:
        """A session of the Conv over some of its input channels."""
        assert site.conv is not None
        attributes: dict[str, Any] = {
            key: list(getattr(site.conv, key)) for key in ("strides", "dilations", "pads")
        }
        shape = (*weight.shape[:2], *site.conv.kernel)
        rank = len(shape)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
            "chunk",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"d{i}" for i in range(rank)])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ascontiguousarray(weight).reshape(shape), "w")],
        )
        opsets = [helper.make_opsetid("", self._opset)]
        return open_session(helper.make_model(graph, opset_imports=opsets, ir_version=8), use_runtime=False)
