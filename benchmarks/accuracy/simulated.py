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
        dense = onnx.NodeProto()
        dense.CopyFrom(end)
        if site.kind == "argmax":
            low = self._constant("low", np.float32(-np.inf))
            dense.input[0] = self._op("Where", [self._head(total), total, low], "masked")
            return [*self._nodes, dense]
        decided = self._relu()
        position = list(end.output).index(site.output)
        dense.output[position] = self._name("dense")
        zero = self._constant("zero", np.float32(0))
        where = helper.make_node(
            "Where", [decided, zero, self._name("dense")], [site.output], self._name("Where")
        )
        return [*self._nodes, dense, where]

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
            flat = np.ascontiguousarray(weight[:, :, 0].T)
            return self._op("MatMul", [x, self._constant(part + " w", flat)], part)
        shaped = weight.reshape(*weight.shape[:2], *conv.kernel)
        attributes = {"strides": conv.strides, "dilations": conv.dilations, "pads": conv.pads, "group": group}
        return self._op("Conv", [x, self._constant(part + " w", shaped)], part, **attributes)

    def _cut(self) -> str:
        shape = self._constant("shape", np.array(self._shape, np.int64))
        return self._op("Reshape", [f"cut {self.site.name}", shape], "cut")

    def _scalar(self, value: float) -> str:
        return self._constant(f"number {value!r}", np.float32(value))

    def _bias(self, share: float) -> str:
        """The bias times ``share``, shaped as an output's axis is."""
        return self._constant("bias", (self.site.bias * share).astype(np.float32).reshape(self._shape))

    def _with_offset(self, partial: str, share: float) -> str:
        """``partial`` and a share of the offset that the model computes, if it does."""
        if not self.site.offset:
            return partial
        offset = self._op("Mul", [self.site.offset, self._scalar(share)], "offset share")
        return self._op("Add", [partial, offset], "with offset")

    def _total(self, values: str, part: str) -> str:
        return self._op("ReduceSum", [values], part, keepdims=0)

    def _count(self, like: str, decided: Callable[[str], str]) -> None:
        """Counts decided outputs and rows; ``decided`` makes the former from the number of all outputs."""
        size = self._op("Cast", [self._op("Size", [like], "size")], "outputs", to=TensorProto.FLOAT)
        rows = self._op("Div", [size, self._scalar(float(self.site.outputs))], "row number")
        for kind, source in (("decided", decided(size)), ("rows", rows)):
            name = f"{kind} {self.site.name}"
            self._nodes.append(helper.make_node("Identity", [source], [name], name + " node"))

    def _relu(self) -> str:
        """Which outputs are decided to be zero, with as few passes over all outputs as it takes."""
        site, cut, weight = self.site, self._cut(), self.weight
        if self.rule.kept is not None:
            partial = self._product(site.input, np.where(self.rule.kept, weight, 0), "partial")
            limit = self._op("Sub", [cut, self._bias(1.0)], "limit")
            decided = self._op("Less", [self._with_offset(partial, 1.0), limit], "pruned")
        elif self.rule.test == "threshold":
            partial = self._product(self._head_x(), weight[:, :K] / K, "partial")
            limit = self._op("Sub", [cut, self._bias(1 / site.groups)], "limit")
            mean = self._with_offset(partial, 1 / site.groups)
            decided = self._op("Less", [mean, limit], "pruned")
        else:
            # All over sqrt(K - 1), so that the variance of the mean is a difference of two squares.
            root = float(np.sqrt(K - 1))
            x, share = self._head_x(), 1 / (site.groups * root)
            partial = self._product(x, weight[:, :K] / (K * root), "partial")
            error = self._error(partial, self._squares(x), "")
            limit = self._op("Mul", [error, self._op("Div", [cut, self._scalar(root)], "z")], "quantile")
            limit = self._op("Sub", [limit, self._bias(share)], "limit")
            decided = self._op("Less", [self._with_offset(partial, share), limit], "pruned")
        number = self._op("Cast", [decided], "decided number", to=TensorProto.FLOAT)
        self._count(decided, lambda size: self._total(number, "all decided"))
        return decided

    def _squares(self, x: str) -> str:
        """Sums of the squared terms over ``K (K - 1)``, a term being one group's contribution."""
        if self.site.conv is None:
            squared = self._op("Mul", [x, x], "x squared")
            return self._product(squared, np.square(self.weight[:, :K]) / (K * (K - 1)), "squares")
        outputs, taps = self.site.outputs, self.site.taps
        # Group by group: the outputs of input channel g are g * N to (g + 1) * N.
        apart = self.weight[:, :K].transpose(1, 0, 2).reshape(K * outputs, 1, taps)
        terms = self._product(x, apart / np.float32(np.sqrt(K * (K - 1))), "terms", group=K)
        square = self._op("Mul", [terms, terms], "terms squared")
        sizes = np.array([0, K, outputs, -1], np.int64)
        sums = self._op("Reshape", [square, self._constant("sizes", sizes)], "terms apart")
        sums = self._op(
            "ReduceSum", [sums, self._constant("axes 1", np.array([1], np.int64))], "sums", keepdims=0
        )
        shape = self._op("Shape", [self._name("partial")], "partial shape")
        return self._op("Reshape", [sums, shape], "squares")

    def _error(self, mean: str, squares: str, part: str) -> str:
        """Standard error of the terms' mean; ``mean`` is it over ``sqrt(K - 1)``."""
        square = self._op("Mul", [mean, mean], part + "mean square")
        variance = self._op("Sub", [squares, square], part + "variance")
        return self._op("Sqrt", [self._op("Relu", [variance], part + "positive")], part + "error")

    def _head(self, total: str) -> str:
        """Dominance Prediction: classes that lose against the leader; a row with one class left is decided."""
        site = self.site
        x = self._head_x()
        last = self._constant("axes -1", np.array([-1], np.int64))
        if self.rule.test == "threshold":
            mean = self._product(x, self.weight[:, :K] / K, "partial")
            mean = self._op("Add", [mean, self._bias(1 / site.groups)], "mean")
            lead = self._op("ReduceMax", [mean], "lead", axes=[-1])
            limit = self._op("Add", [lead, f"cut {site.name}"], "limit")
            lost = self._op("Less", [mean, limit], "lost")
        else:
            lost = self._head_stats(x, last)
        kept = self._op("Not", [lost], "kept")
        number = self._op("Cast", [kept], "kept number", to=TensorProto.FLOAT)
        alive = self._op("ReduceSum", [number, last], "alive")
        several = self._op("Greater", [alive, self._scalar(1.5)], "several")
        work = self._op("Where", [several, alive, self._scalar(0.0)], "work")
        self._count(kept, lambda size: self._op("Sub", [size, self._total(work, "all work")], "no work"))
        return kept

    def _head_stats(self, x: str, last: str) -> str:
        """The paper's test on the terms of the difference to the leader."""
        root = float(np.sqrt(K - 1))
        weight = np.ascontiguousarray(self.weight[:, :K, 0]) / np.float32(np.sqrt(K * (K - 1)))
        partial = self._product(x, self.weight[:, :K] / (K * root), "partial")
        mean = self._op("Add", [partial, self._bias(1 / (self.site.groups * root))], "mean")
        lead = self._op("ReduceMax", [mean], "lead", axes=[-1])
        behind = self._op("Sub", [mean, lead], "behind")
        leader = self._op("ArgMax", [mean], "leader", axis=-1, keepdims=0)
        own = self._op("Gather", [self._constant("rows", weight), leader], "own weights", axis=0)
        squared = self._op("Mul", [x, x], "x squared")
        # The sum of (w - own)^2 x^2 for all classes w: of squares, twice the cross terms, and the leader's own.
        squares = self._product(squared, np.square(weight)[:, :, None], "squares")
        crossed = self._op("Mul", [squared, own], "x own")
        cross = self._product(crossed, 2 * weight[:, :, None], "cross")
        leaders = self._op("ReduceSum", [self._op("Mul", [crossed, own], "own terms"), last], "own squares")
        square = self._op("Add", [self._op("Sub", [squares, cross], "both"), leaders], "square")
        scaled = self._op("Mul", [own, self._scalar(float(np.sqrt(K * (K - 1))) / (K * root))], "own scaled")
        top = self._op("ReduceSum", [self._op("Mul", [x, scaled], "x top"), last], "top")
        error = self._error(self._op("Sub", [partial, top], "difference"), square, "head ")
        z = self._op("Div", [f"cut {self.site.name}", self._scalar(root)], "z")
        return self._op("Less", [behind, self._op("Mul", [error, z], "limit")], "lost")
