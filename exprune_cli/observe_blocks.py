"""What a Conv's partial sums look like on whole images: what planning in blocks needs.

The statistics of :mod:`exprune_cli.observe` hold single output positions; a block is decided by the
sums of neighbouring ones. So the sites' inputs are taken once more for a few samples, and the sums
over the first input channels are computed by ONNX Runtime, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


#: Given ``X`` and what to call it in messages, the sums over each chunk, ``[B, N, *out]``.
_Parts = Callable[[np.ndarray, str], Iterator[np.ndarray]]


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

    def observe(
        self, site: Site, order: np.ndarray | Callable[[np.ndarray], np.ndarray], ends: Sequence[int]
    ) -> BlockStatistics | None:
        """The sums of one site over the first ``ends`` groups in order; None if all are spoiled by NaN.

        Args:
            site: The site.
            order: ``[G]``, or what gives it for an image ``[G, *spatial]``.
            ends: Increasing group counts, all less than ``G``.
        """
        bounds = list(pairwise([0, *ends, site.groups]))
        parts = self._chosen(site, order, bounds) if callable(order) else self._in_order(site, order, bounds)
        sums: list[list[np.ndarray]] = [[] for _ in bounds]
        offsets, seen = [], 0
        for batch in self._batches:
            values = self._values.of([site], batch.feeds, batch.where)
            x = values[site.input]
            if not np.isfinite(x).all():
                continue
            total = np.float32(0.0)
            for part, kept in zip(parts(x, batch.where), sums, strict=True):
                total = total + part.reshape(*part.shape[:2], -1)
                kept.append(total)
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

    def _in_order(self, site: Site, order: np.ndarray, bounds: Sequence[tuple[int, int]]) -> _Parts:
        """The sums over each chunk of groups in one order."""
        weight = site.load_weight()
        sessions = [self._conv(site, weight[:, order[begin:end]]) for begin, end in bounds]

        def parts(x: np.ndarray, where: str) -> Iterator[np.ndarray]:
            for session, (begin, end) in zip(sessions, bounds, strict=True):
                feeds = {"x": np.ascontiguousarray(x[:, order[begin:end]])}
                yield run(session, feeds, where, ["y"])[0]

        return parts

    def _chosen(
        self, site: Site, order_of: Callable[[np.ndarray], np.ndarray], bounds: Sequence[tuple[int, int]]
    ) -> _Parts:
        """The sums over each chunk of groups in each image's own order."""
        weight = _as_conv(site, site.load_weight())
        session = self._conv(site, None)

        def parts(x: np.ndarray, where: str) -> Iterator[np.ndarray]:
            orders = [order_of(image) for image in x]
            for begin, end in bounds:
                chosen = [order[begin:end] for order in orders]
                feeds = [
                    {"x": image[None, groups], "w": weight[:, groups]}
                    for image, groups in zip(x, chosen, strict=True)
                ]
                yield np.concatenate([run(session, feed, where, ["y"])[0] for feed in feeds])

        return parts

    def _conv(self, site: Site, weight: np.ndarray | None) -> InferenceSession:
        """A session of the Conv over the input channels that this weight is of; None: it is fed as ``w``."""
        assert site.conv is not None
        attributes: dict[str, Any] = {
            key: list(getattr(site.conv, key)) for key in ("strides", "dilations", "pads")
        }
        rank = 2 + len(site.conv.kernel)
        fed = ["x"] if weight is not None else ["x", "w"]
        constants = [] if weight is None else [numpy_helper.from_array(_as_conv(site, weight), "w")]
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
            "chunk",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(rank)])
                for name in fed
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            constants,
        )
        opsets = [helper.make_opsetid("", self._opset)]
        return open_session(helper.make_model(graph, opset_imports=opsets, ir_version=8), use_runtime=False)


def _as_conv(site: Site, weight: np.ndarray) -> np.ndarray:
    """``[N, G, *kernel]`` of ``[N, G, T]``."""
    assert site.conv is not None
    return np.ascontiguousarray(weight).reshape(*weight.shape[:2], *site.conv.kernel)
