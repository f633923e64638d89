"""Finding the sites of a model, and why other candidates are none.

Every linear op of the model has exactly one outcome: it is a site, or it is refused with a reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.graph import ModelGraph
from exprune_cli.model import Model
from exprune_cli.rules import RULES
from exprune_cli.rules._constants import Reason
from exprune_cli.rules._linear import LINEAR_OPS, Linear, follow, read_linear
from exprune_cli.sites import Refusal, Site
from exprune_cli.staged_nodes import has_staged

if TYPE_CHECKING:
    from exprune_cli.progress import Counter

#: The functions' bodies use operators in the form that they have from this version on.
MIN_OPSET = 11

#: From so many scores on a final layer is taken for a head of which the best classes may be wanted.
MANY_CLASSES = 256

#: Linear operators that no rule stages, with the code and the reason.
_OTHER_LINEAR = {
    "ConvTranspose": ("transposed-conv", "a ConvTranspose is not staged"),
    "ConvInteger": ("quantised", "quantised operators are not staged"),
    "MatMulInteger": ("quantised", "quantised operators are not staged"),
    "QLinearConv": ("quantised", "quantised operators are not staged"),
    "QLinearMatMul": ("quantised", "quantised operators are not staged"),
    "DynamicQuantizeMatMul": ("quantised", "quantised operators are not staged"),
    "MatMulIntegerToFloat": ("quantised", "quantised operators are not staged"),
    "MatMulNBits": ("quantised", "quantised operators are not staged"),
    "FusedConv": ("fused", "an operator that ONNX Runtime fused: optimise the model as exported"),
    "FusedGemm": ("fused", "an operator that ONNX Runtime fused: optimise the model as exported"),
    "FusedMatMul": ("fused", "an operator that ONNX Runtime fused: optimise the model as exported"),
    "LSTM": ("recurrent", "recurrent operators are not staged"),
    "GRU": ("recurrent", "recurrent operators are not staged"),
    "RNN": ("recurrent", "recurrent operators are not staged"),
}


@dataclass
class Matches:
    """What :func:`match` found, both lists in graph order.

    Attributes:
        sites: Places that can be staged.
        refusals: Linear ops that cannot, and why.
        graph: The graph that the sites belong to, for ``rewrite``.
    """

    sites: list[Site]
    refusals: list[Refusal]
    graph: ModelGraph | None


def match(model: Model, exclude: Sequence[str] = (), progress: Counter | None = None) -> Matches:
    """Finds all sites of a model.

    Args:
        model: The model; not changed.
        exclude: Glob patterns of site names to leave dense.
        progress: Is told of every linear op that was looked at.

    Raises:
        UsageError: A pattern of ``exclude`` matches no linear op; the message names near misses.
        ExpruneError: exprune made this model: start from the original.
    """
    if has_staged(model.proto.graph.node):
        where = f"{model.path}: " if model.path else ""
        raise ExpruneError(f"{where}exprune optimised this model already: start from the original")
    try:
        graph = ModelGraph(model)
    except ExpruneError as error:
        return _refuse_all(model, exclude, "graph", str(error))
    nodes = [node for node in graph.graph.nodes if _is_linear(node)]
    outcomes: list[Site | Refusal] = []
    for node in nodes:
        outcomes.append(_outcome(graph, node))
        if progress is not None:
            progress(len(outcomes), len(nodes))
    outcomes = _one_per_weight(_one_per_output(outcomes))
    names = [outcome.name for outcome in outcomes]
    excluded = _excluded(names, exclude)
    sites, refusals = [], []
    for outcome in outcomes:
        if outcome.name in excluded:
            refusals.append(
                Refusal(outcome.name, outcome.op, outcome.rule, "excluded", "excluded by --exclude")
            )
        elif isinstance(outcome, Refusal):
            refusals.append(outcome)
        else:
            sites.append(outcome)
    refusals += _in_subgraphs(model.proto.graph)
    if model.opset < MIN_OPSET:
        text = f"the model's opset is {model.opset}, staging needs {MIN_OPSET}: convert it with onnx.version_converter"
        refusals = [Refusal(s.name, s.op, s.rule, "opset", text) for s in sites] + refusals
        sites = []
    return Matches(sites, refusals, graph)


def still_excluded(matches: Matches, model: Model) -> list[str]:
    """Patterns that exclude in a changed form of a model what ``matches`` of the original say is excluded."""
    names = {node.name or next(iter(node.output), "") for node in model.proto.graph.node}
    excluded = [refusal.name for refusal in matches.refusals if refusal.code == "excluded"]
    return [glob.escape(name) for name in excluded if name in names]


def _is_linear(node: gs.Node) -> bool:
    if node.op in LINEAR_OPS:
        return not node.domain
    return node.op in _OTHER_LINEAR


def _outcome(graph: ModelGraph, node: gs.Node) -> Site | Refusal:
    name = node.name or next((t.name for t in node.outputs if t.name), "")
    if node.op in _OTHER_LINEAR:
        return Refusal(name, node.op, "", *_OTHER_LINEAR[node.op])
    first: Refusal | None = None
    for rule in RULES:
        found = rule.match(graph, node)
        if found is None:
            continue
        reason = found if isinstance(found, Reason) else rule.check(graph, found)
        if reason is None:
            assert isinstance(found, Linear)
            site: Site = rule.site(graph, found)
            return site
        if first is None or first.code == "other-activation":
            first = Refusal(name, node.op, rule.NAME, reason.code, reason.text)
    if first is None:
        linear = read_linear(graph, node)
        reason = linear if isinstance(linear, Reason) else follow(graph, linear).stop
        first = (
            Refusal(name, node.op, "", reason.code, reason.text)
            if reason
            else Refusal(name, node.op, "", "none", "")
        )
    return _returned(graph, node, first) if first.code == "graph-output" else first


def _returned(graph: ModelGraph, node: gs.Node, refusal: Refusal) -> Refusal:
    """A refusal because the model returns the result, with what would help a large head."""
    linear = read_linear(graph, node)
    if isinstance(linear, Reason) or linear.conv or linear.outputs < MANY_CLASSES:
        return refusal
    name = follow(graph, linear).tensor.name
    text = (
        f"all {linear.outputs:,} scores '{name}' are returned: with --top-k {name}=1 only the best one is, "
        f"found from about a fifth of the {linear.outputs * linear.groups * 4 / 1e6:,.0f} MB of weights"
    )
    return dataclasses.replace(refusal, code="scores-returned", reason=text)


def _one_per_output(outcomes: list[Site | Refusal]) -> list[Site | Refusal]:
    """Where two linear ops are added before one ReLU, the larger is the site, the other its offset.

    Also makes names unique, as reports and calibration files refer to sites by name.
    """
    largest: dict[str, Site] = {}
    for outcome in outcomes:
        if isinstance(outcome, Site):
            held = largest.get(outcome.output)
            if held is None or _work(outcome) > _work(held):
                largest[outcome.output] = outcome
    result: list[Site | Refusal] = []
    seen: set[str] = set()
    for outcome in outcomes:
        if isinstance(outcome, Site) and largest[outcome.output] is not outcome:
            winner = largest[outcome.output].name
            text = f"it is added to '{winner}' before the ReLU, which is staged: this is its known offset"
            outcome = Refusal(outcome.name, outcome.op, outcome.rule, "offset-of-site", text)
        if outcome.name in seen and isinstance(outcome, Site):
            text = f"another node is called '{outcome.name}' too: give nodes unique names"
            outcome = Refusal(outcome.name, outcome.op, outcome.rule, "duplicate-name", text)
        seen.add(outcome.name)
        result.append(outcome)
    return result


def _one_per_weight(outcomes: list[Site | Refusal]) -> list[Site | Refusal]:
    """A weight that several sites share is split for the first of them only."""
    first: dict[str, str] = {}
    result: list[Site | Refusal] = []
    for outcome in outcomes:
        if isinstance(outcome, Site) and outcome.weight:
            owner = first.setdefault(outcome.weight, outcome.name)
            if owner != outcome.name:
                text = f"its weight '{outcome.weight}' is shared with '{owner}': it is not split twice"
                outcome = Refusal(outcome.name, outcome.op, outcome.rule, "shared-weight", text)
        result.append(outcome)
    return result


def _work(site: Site) -> int:
    return site.outputs * site.groups * site.taps


def _excluded(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    excluded: set[str] = set()
    for pattern in patterns:
        hit = fnmatch.filter(names, pattern)
        if not hit:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = (
                f"did you mean {', '.join(map(repr, near))}?"
                if near
                else "see `exprune report` for the names"
            )
            raise UsageError(f"--exclude {pattern!r} matches no site: {hint}")
        excluded.update(hit)
    return excluded


def _in_subgraphs(graph: onnx.GraphProto) -> list[Refusal]:
    refusals = []
    for outer, node in _subgraph_nodes(graph, None):
        if node.op_type in LINEAR_OPS or node.op_type in _OTHER_LINEAR:
            name = node.name or (node.output[0] if node.output else "")
            where = f"{outer.op_type} '{outer.name or outer.output[0]}'"
            refusals.append(
                Refusal(name, node.op_type, "", "subgraph", f"it is inside a subgraph of {where}")
            )
    return refusals


def _subgraph_nodes(
    graph: onnx.GraphProto, outer: onnx.NodeProto | None
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    for node in graph.node:
        if outer is not None:
            yield outer, node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _subgraph_nodes(attribute.g, node)


def _refuse_all(model: Model, exclude: Sequence[str], code: str, reason: str) -> Matches:
    nodes = [n for n in model.proto.graph.node if n.op_type in LINEAR_OPS]
    refusals = [Refusal(n.name or n.output[0], n.op_type, "", code, reason) for n in nodes]
    _excluded([r.name for r in refusals], exclude)
    return Matches([], refusals + _in_subgraphs(model.proto.graph), None)
