"""FLOPs of a model under given shapes, and of staged sites by their survivors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx

from exprune_cli import flops
from exprune_cli.errors import ExpruneError
from exprune_cli.instrument import as_shape, counted_names, inline_functions, shapes_need_values, with_shapes
from exprune_cli.record import SiteRecord, read_record
from exprune_cli.sessions import Feeds, open_session, run
from exprune_cli.staged_nodes import DOMAIN, staged_view
from exprune_cli.weights import stored_array

if TYPE_CHECKING:
    import onnxruntime

    from exprune_cli.data import DataSet

#: How many combinations of input shapes are remembered.
_REMEMBERED = 1024


@dataclass
class FlopsSums:
    """Sums over all samples of a data set.

    Attributes:
        samples: Samples seen.
        rows: Rows that each staged site was run on, by site name.
        survivors: ``[S]`` int64 per staged site: outputs undecided after each check.
        flops_dense: Dense FLOPs of the whole model; None if a shape is unknown.
        flops: FLOPs spent by the whole model, tests included; None if unknown.
        node_flops: Dense FLOPs by a node's first output; None if unknown.
        site_flops: FLOPs spent, by staged site.
        int8_macs: Multiply-accumulates of integer operators; None if unknown.
        estimate_flops: Of ``site_flops``, what went to estimates and tests.
    """

    samples: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    survivors: dict[str, np.ndarray] = field(default_factory=dict)
    flops_dense: int | None = 0
    flops: float | None = 0.0
    node_flops: dict[str, int | None] = field(default_factory=dict)
    site_flops: dict[str, float] = field(default_factory=dict)
    int8_macs: int | None = 0
    estimate_flops: dict[str, float] = field(default_factory=dict)


class FlopsCounter:
    """Counts the FLOPs of batches from their shapes and the survivors.

    Shapes are read from a second session whose model returns them. It runs once for every
    combination of input shapes, or for every batch if shapes depend on more than that.

    Attributes:
        survivor_names: Names of the tensors whose values :meth:`add` wants, in order.
        sums: The sums so far.
        pruned: Of the last batch, the share that was pruned, by staged site; not where nothing is tested.
        reduction: Of the last batch, the share of the model's FLOPs that was saved; None if unknown.
    """

    def __init__(self, proto: onnx.ModelProto, *, use_runtime: bool = True, threads: int = 0) -> None:
        record = read_record(proto)
        self._sites = [site for site in record.sites if site.staged] if record else []
        self._staged = staged_nodes(proto, self._sites)
        self.survivor_names = [site.survivors or "" for site in self._sites]
        self.sums = FlopsSums()
        self.pruned: dict[str, float] = {}
        self.reduction: float | None = None
        self._proto = inline_functions(proto)
        self._share_of = weight_shares(self._proto.graph)
        self._known, self._wanted = counted_names(self._proto.graph)
        self._each_time = shapes_need_values(self._proto.graph)
        self._use_runtime = use_runtime
        self._threads = threads
        self._session: onnxruntime.InferenceSession | None = None
        self._outputs: dict[str, str] = {}
        self._seen: dict[object, Counts] = {}

    def add(self, feeds: Feeds, survivors: Sequence[np.ndarray], samples: int, where: str) -> None:
        """Adds one batch: its inputs, the values of :attr:`survivor_names`, its sample count."""
        counts = self.counts(feeds, where)
        sums = self.sums
        sums.samples += samples
        sums.flops_dense = _plus(sums.flops_dense, counts.total)
        sums.int8_macs = _plus(sums.int8_macs, counts.int8_macs)
        for name, value in counts.nodes.items():
            sums.node_flops[name] = _plus(sums.node_flops.get(name, 0), value)
        self.pruned = {}
        saved = 0.0
        for site, rows, alive in zip(self._sites, counts.rows, survivors, strict=True):
            if rows is None:
                sums.flops = None
                continue
            alive = np.atleast_1d(np.asarray(alive, np.int64))
            counts_alive = [float(count) for count in alive]
            alive = alive[: site.checks]
            spent = flops.spent_flops(site, rows, counts_alive)
            sums.int8_macs = _plus(sums.int8_macs, flops.int8_macs(site, rows, counts_alive))
            estimate = flops.estimate_flops(site, rows)
            tested = rows * ((site.groups if site.kind == "sparse" else site.outputs) or 0)
            if alive.size and alive[0] < 0:  # the dense layer ran: nothing was skipped
                alive, estimate = np.full_like(alive, tested), 0.0
            if alive.size and tested:
                self.pruned[site.name] = 1 - float(alive[-1]) / tested
            sums.estimate_flops[site.name] = sums.estimate_flops.get(site.name, 0.0) + estimate
            sums.rows[site.name] = sums.rows.get(site.name, 0) + rows
            sums.survivors[site.name] = sums.survivors.get(site.name, np.zeros_like(alive)) + alive
            sums.site_flops[site.name] = sums.site_flops.get(site.name, 0.0) + spent
            saved += flops.dense_site_flops(site, rows) - spent
        spent_total = None if counts.total is None else counts.total - saved
        sums.flops = None if sums.flops is None or spent_total is None else sums.flops + spent_total
        known = counts.total and all(rows is not None for rows in counts.rows)
        self.reduction = saved / counts.total if known and counts.total else None

    def prepare(self, data: DataSet, batch_sizes: Iterable[int]) -> None:
        """Counts all combinations of shapes that a data set has, and gives the session's memory back."""
        if self._each_time:
            return
        for size in batch_sizes:
            for batch in data.batches(size):
                self.counts(batch.feeds, batch.where)
        self._session = None

    def counts(self, feeds: Feeds, where: str, *, seconds: float | None = None) -> Counts:
        """FLOPs under the shapes that these inputs give; runs the model if it has not seen them.

        ``seconds`` is how long that may take, see :func:`exprune_cli.sessions.run`.
        """
        key = tuple((name, value.shape) for name, value in sorted(feeds.items()))
        if not self._each_time and key in self._seen:
            return self._seen[key]
        shapes: dict[str, tuple[int, ...]] = dict(self._known)
        if self._wanted:
            if self._session is None:
                addition, self._outputs = with_shapes(self._proto, self._wanted)
                self._session = open_session(
                    self._proto, addition=addition, threads=self._threads, use_runtime=self._use_runtime
                )
            values = run(self._session, feeds, where, list(self._outputs.values()), seconds=seconds)
            shapes |= {name: as_shape(value) for name, value in zip(self._outputs, values, strict=True)}
        counts = count_flops(staged_view(self._proto.graph.node), shapes.get, self._staged, self._share_of)
        if not self._each_time and len(self._seen) < _REMEMBERED:
            self._seen[key] = counts
        return counts


def weight_shares(graph: onnx.GraphProto) -> flops.ShareOf:
    """Of the constant weights with given names, the share that is not zero."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    known: dict[tuple[str, ...], float] = {}

    def share_of(names: Sequence[str]) -> float:
        key = tuple(name for name in names if name in tensors)
        if key not in known:
            parts = [stored_array(tensors[name]).ravel() for name in key]
            whole = np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else None
            known[key] = flops.nonzero_share(whole) if whole is not None else 1.0
        return known[key]

    return share_of


@dataclass
class Counts:
    """FLOPs of one combination of shapes: the whole model, every counted node, staged rows."""

    total: int | None
    nodes: dict[str, int | None]
    int8_macs: int | None
    rows: list[int | None]


_INTEGER_OPS = {"ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul"}


def count_flops(
    nodes: Sequence[onnx.NodeProto],
    shape_of: flops.ShapeOf,
    staged: Sequence[onnx.NodeProto],
    share_of: flops.ShareOf = lambda names: 1.0,
) -> Counts:
    """Dense FLOPs under the given shapes, and the rows of the staged nodes."""
    by_node = {
        node.output[0]: flops.node_flops(node, shape_of, share_of)
        for node in nodes
        if flops.counted_tensors(node)
    }
    integer: int | None = 0
    for node in nodes:
        if node.op_type in _INTEGER_OPS and not node.domain:
            value = by_node[node.output[0]]
            integer = None if value is None or integer is None else integer + value // 2
    rows = [staged_rows(node, shape_of) for node in staged]
    return Counts(flops.total_flops(nodes, shape_of, share_of), by_node, integer, rows)


def staged_nodes(proto: onnx.ModelProto, sites: Iterable[SiteRecord]) -> list[onnx.NodeProto]:
    """The nodes of staged sites, found by their survivors output.

    Raises:
        ExpruneError: A node is not there: the file was edited after exprune wrote it.
    """
    nodes = {
        node.output[-1]: node
        for node in staged_view(proto.graph.node)
        if node.domain == DOMAIN and node.output[1:]
    }
    result = []
    for site in sites:
        if site.survivors not in nodes:
            raise ExpruneError(
                f"the model says that '{site.name}' is staged but has no such node (edited since?): "
                "optimise the original again"
            )
        result.append(nodes[site.survivors])
    return result


def staged_rows(node: onnx.NodeProto, shape_of: flops.ShapeOf) -> int | None:
    """Rows that a staged node works on: a Gemm's rows, a Conv's output positions."""
    shape = shape_of(node.output[0] if "Conv" in node.op_type else node.input[0])
    if shape is None:
        return None
    sizes = (shape[0], *shape[2:]) if "Conv" in node.op_type else shape[:-1]
    return int(np.prod(sizes, dtype=np.int64))


def _plus(total: int | None, value: int | None) -> int | None:
    return None if total is None or value is None else total + value
