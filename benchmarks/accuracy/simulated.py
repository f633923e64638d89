"""A model whose sites are pruned in standard operators, with thresholds that are inputs.

Every trial of a tuner runs the same session: only numbers change. Nothing is skipped, so this says
what a test does to the results and how much it decides, not how long it takes. The FLOPs are those that
skipping would save, counted as everywhere here: 2 per multiply-accumulate, tests paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exprune_cli.flops import TEST_COST, nonzero_share
from exprune_cli.model import Model
from exprune_cli.sessions import Feeds, open_session
from exprune_cli.sites import Site

#: The paper's code checks once, after this many groups.
K = 32


@dataclass(frozen=True)
class Rule:
    """How one site is tested.

    Attributes:
        test: ``threshold``, ``stats``, or ``mask`` (SnaPEA: a prefix of each output's own weights).
        kept: For ``mask``: ``[N, G, T]`` bool, the weights of the prefix.
    """

    test: str
    kept: np.ndarray | None = None


@dataclass
class Simulated:
    """A model that is pruned by numbers that it is fed.

    Attributes:
        names: Sites, in graph order, that take a number (or ``[N]`` numbers for ``mask``).
        saved: By site: FLOPs saved per decided output, and FLOPs that the tests cost per row.
    """

    names: list[str]
    saved: dict[str, tuple[float, float]]
    _session: object
    _outputs: list[str]
    _rows: dict[str, Callable[[int], int]] = field(default_factory=dict)

    def run(self, feeds: Feeds, cuts: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Outputs, and FLOPs saved on these inputs. A site without a cut is dense and pays no test."""
        off = {name: np.full(1, -np.inf, np.float32) for name in self.names}
        cuts = {name: np.atleast_1d(np.asarray(cuts.get(name, off[name]), np.float32)) for name in self.names}
        fed = {**feeds, **{f"cut {name}": cuts[name] for name in self.names}}
        counts = [f"{kind} {name}" for name in self.names for kind in ("decided", "rows")]
        values = self._session.run([*self._outputs, *counts], fed)  # type: ignore[attr-defined]
        saved = 0.0
        for i, name in enumerate(self.names):
            if np.isneginf(cuts[name]).all():
                continue
            decided, rows = (float(np.sum(v)) for v in values[len(self._outputs) + 2 * i :][:2])
            each, tests = self.saved[name]
            saved += decided * each - rows * tests
        return values[: len(self._outputs)], saved


def fits_check(site: Site) -> bool:
    """Whether the paper's check after 32 groups fits a site."""
    return site.kind != "sparse" and site.groups > K and not site.transposed_input


def simulate(model: Model, sites: Sequence[Site], rules: Mapping[str, Rule]) -> Simulated:
    """Builds the session.

    Args:
        model: The original; not changed.
        sites: Its sites.
        rules: By site name; a site without one is dense.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    chosen = [site for site in sites if site.name in rules]
    by_end = {site.output: site for site in chosen}
    nodes: list[onnx.NodeProto] = []
    saved: dict[str, tuple[float, float]] = {}
    for node in list(proto.graph.node):
        site = next((by_end[name] for name in node.output if name in by_end), None)
        if site is None:
            nodes.append(node)
            continue
        builder = _Builder(site, rules[site.name], node)
        nodes += builder.nodes()
        proto.graph.initializer.extend(builder.constants)
        saved[site.name] = builder.costs()
        cut = helper.make_tensor_value_info(f"cut {site.name}", TensorProto.FLOAT, None)
        cut.type.tensor_type.shape.dim.add().dim_param = f"cuts {site.name}"
        proto.graph.input.append(cut)
        for kind in ("decided", "rows"):
            value = helper.make_tensor_value_info(f"{kind} {site.name}", TensorProto.FLOAT, [])
            proto.graph.output.append(value)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    session = open_session(proto, threads=1, use_runtime=False)
    outputs = [value.name for value in model.proto.graph.output]
    return Simulated([site.name for site in chosen], saved, session, outputs)


class _Builder:
    """The nodes of one site: estimate, test, mask, counts."""

    def __init__(self, site: Site, rule: Rule, end: onnx.NodeProto) -> None:
        self.site, self.rule, self.end = site, rule, end
        self.weight = site.load_weight()
        self.constants: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._shape = [1, -1] + [1] * len(site.conv.kernel) if site.conv else [-1]

    def costs(self) -> tuple[float, float]:
        """FLOPs saved per decided output, and cost of the tests of one row."""
        site = self.site
        if self.rule.kept is not None:
            tail = np.count_nonzero(self.weight[~self.rule.kept]) / site.outputs
            return 2.0 * tail, TEST_COST["threshold"](1) * site.outputs
        rest = self.weight[:, K:]
        tail = rest[0].size * nonzero_share(rest)
        cost = TEST_COST[self.rule.test](K)
        if self.rule.test == "stats" and site.kind == "argmax":
            cost += 2 * K
        return 2.0 * tail, cost * site.outputs

    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes, the site's last one among them."""
        site, end = self.site, self.end
        total = end.input[0]
        undecided = self._head(total) if site.kind == "argmax" else self._relu()
        dense = onnx.NodeProto()
        dense.CopyFrom(end)
        if site.kind == "argmax":
            masked = self._op(
                "Where", [undecided, total, self._constant("low", np.float32(-np.inf))], "masked"
            )
            dense.input[0] = masked
            return [*self._nodes, dense]
        position = list(end.output).index(site.output)
        dense.output[position] = self._name("dense")
        self._nodes.append(dense)
        zero = self._constant("zero", np.float32(0))
        self._nodes.append(
            helper.make_node(
                "Where", [undecided, self._name("dense"), zero], [site.output], self._name("Where")
            )
        )
        return self._nodes

    # --- pieces ---

    def _name(self, part: str) -> str:
        return f"sim {self.site.name} {part}"

    def _op(self, op: str, inputs: Sequence[str], part: str, **attributes: Any) -> str:
        name = self._name(part)
        self._nodes.append(helper.make_node(op, list(inputs), [name], name + " node", **attributes))
        return name

    def _constant(self, part: str, value: np.ndarray | np.float32) -> str:
        name = self._name(part)
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _head_x(self) -> str:
        axis = 1 if self.site.conv else -1
        bounds = [self._constant(n, np.array([v], np.int64)) for n, v in (("0", 0), ("k", K), ("axis", axis))]
        return self._op("Slice", [self.site.input, *bounds], "x")

    def _product(self, x: str, weight: np.ndarray, part: str, group: int = 1) -> str:
        conv = self.site.conv
        if conv is None:
            return self._op(
                "MatMul", [x, self._constant(part + " w", np.ascontiguousarray(weight[:, :, 0].T))], part
            )
        shaped = weight.reshape(*weight.shape[:2], *conv.kernel)
        attributes = {"strides": conv.strides, "dilations": conv.dilations, "pads": conv.pads, "group": group}
        return self._op("Conv", [x, self._constant(part + " w", shaped)], part, **attributes)

    def _offset(self) -> str:
        bias = self._constant("bias", self.site.bias.astype(np.float32).reshape(self._shape))
        return self._op("Add", [self.site.offset, bias], "offset") if self.site.offset else bias

    def _cut(self) -> str:
        shape = self._constant("shape", np.array(self._shape, np.int64))
        return self._op("Reshape", [f"cut {self.site.name}", shape], "cut")

    def _scalar(self, value: float) -> str:
        return self._constant(f"number {value!r}", np.float32(value))

    def _count(self, decided: str, per_row: str) -> None:
        number = self._op("Cast", [decided], "decided number", to=TensorProto.FLOAT)
        for kind, source in (("decided", number), ("rows", per_row)):
            name = f"{kind} {self.site.name}"
            self._nodes.append(helper.make_node("ReduceSum", [source], [name], name + " node", keepdims=0))

    def _per_row(self, like: str) -> str:
        """One per output position: what the rows are counted by."""
        part = self._op("Cast", [like], "ones source", to=TensorProto.FLOAT)
        axes = [1] if self.site.conv else [-1]
        sums = self._op("ReduceMax", [part], "row value", axes=axes)
        none = self._op("Mul", [sums, self._scalar(0.0)], "row zero")
        return self._op("Add", [none, self._scalar(1.0)], "row one")

    def _prefix(self) -> tuple[str, str]:
        """The input and the sums of the first groups."""
        x = self._head_x()
        return x, self._product(x, self.weight[:, :K], "partial")

    def _relu(self) -> str:
        site, groups = self.site, self.site.groups
        offset, cut = self._offset(), self._cut()
        if self.rule.kept is not None:
            partial = self._product(site.input, np.where(self.rule.kept, self.weight, 0), "partial")
            value = self._op("Add", [partial, offset], "value")
            decided = self._op("Less", [value, cut], "pruned")
        elif self.rule.test == "threshold":
            _, partial = self._prefix()
            scaled = self._op("Mul", [partial, self._scalar(1 / K)], "mean part")
            share = self._op("Mul", [offset, self._scalar(1 / groups)], "offset share")
            decided = self._op("Less", [self._op("Add", [scaled, share], "mean"), cut], "pruned")
        else:
            x, partial = self._prefix()
            mean = self._op("Mul", [partial, self._scalar(1 / K)], "mean part")
            share = self._op("Mul", [offset, self._scalar(1 / groups)], "offset share")
            mean = self._op("Add", [mean, share], "mean")
            error = self._error(partial, self._squares(x), "")
            decided = self._op("Less", [mean, self._op("Mul", [error, cut], "limit")], "pruned")
        self._count(decided, self._per_row(decided))
        return self._op("Not", [decided], "undecided")

    def _squares(self, x: str) -> str:
        """Sums of the squared terms, a term being one group's contribution."""
        if self.site.conv is None:
            squared = self._op("Mul", [x, x], "x squared")
            return self._product(squared, np.square(self.weight[:, :K]), "squares")
        outputs, taps = self.site.outputs, self.site.taps
        # Group by group: the outputs of input channel g are g * N to (g + 1) * N.
        apart = self.weight[:, :K].transpose(1, 0, 2).reshape(K * outputs, 1, taps)
        terms = self._product(x, apart, "terms", group=K)
        square = self._op("Mul", [terms, terms], "terms squared")
        sizes = np.array([0, K, outputs, -1], np.int64)
        sums = self._op("Reshape", [square, self._constant("sizes", sizes)], "terms apart")
        sums = self._op(
            "ReduceSum", [sums, self._constant("axes 1", np.array([1], np.int64))], "sums", keepdims=0
        )
        shape = self._op("Shape", [self._name("partial")], "partial shape")
        return self._op("Reshape", [sums, shape], "squares")

    def _error(self, partial: str, squares: str, part: str) -> str:
        """Standard error of the terms' mean."""
        square = self._op("Mul", [partial, partial], part + "partial squared")
        off = self._op("Mul", [square, self._scalar(1 / K)], part + "mean square")
        spread = self._op("Sub", [squares, off], part + "spread")
        variance = self._op("Mul", [spread, self._scalar(1 / (K * (K - 1)))], part + "variance")
        return self._op("Sqrt", [self._op("Relu", [variance], part + "positive")], part + "error")

    def _head(self, total: str) -> str:
        """Dominance Prediction: classes that lose against the leader; a row with one class left is decided."""
        site = self.site
        x, partial = self._prefix()
        bias = self._constant("bias share", (site.bias / site.groups).astype(np.float32))
        mean = self._op("Add", [self._op("Mul", [partial, self._scalar(1 / K)], "mean part"), bias], "mean")
        lead = self._op("ReduceMax", [mean], "lead", axes=[-1])
        behind = self._op("Sub", [mean, lead], "behind")
        if self.rule.test == "threshold":
            lost = self._op("Less", [behind, f"cut {site.name}"], "lost")
        else:
            weight = np.ascontiguousarray(self.weight[:, :K, 0])
            leader = self._op("ArgMax", [mean], "leader", axis=-1, keepdims=0)
            own = self._op("Gather", [self._constant("rows", weight), leader], "own weights", axis=0)
            squared = self._op("Mul", [x, x], "x squared")
            squares = self._product(squared, np.square(self.weight[:, :K]), "squares")
            cross = self._product(self._op("Mul", [squared, own], "x own"), self.weight[:, :K], "cross")
            of_leader = self._op("Mul", [self._op("Mul", [squared, own], "x own 2"), own], "own terms")
            last = self._constant("axes -1", np.array([-1], np.int64))
            of_leader = self._op("ReduceSum", [of_leader, last], "own squares")
            both = self._op("Add", [squares, of_leader], "both")
            square = self._op("Sub", [both, self._op("Mul", [cross, self._scalar(2.0)], "cross 2")], "square")
            top = self._op("ReduceSum", [self._op("Mul", [x, own], "x top"), last], "top")
            difference = self._op("Sub", [partial, top], "difference")
            error = self._error(difference, square, "head ")
            lost = self._op("Less", [behind, self._op("Mul", [error, f"cut {site.name}"], "limit")], "lost")
        kept = self._op("Not", [lost], "kept")
        number = self._op("Cast", [kept], "kept number", to=TensorProto.FLOAT)
        last = self._constant("axes -1", np.array([-1], np.int64))
        alive = self._op("ReduceSum", [number, last], "alive")
        several = self._op("Greater", [alive, self._scalar(1.5)], "several")
        work = self._op("And", [kept, several], "work")
        self._count(self._op("Not", [work], "no work"), self._per_row(kept))
        return kept
