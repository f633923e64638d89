"""One If for guarded sites that follow each other.

An If costs some microseconds however small its branches are. Where one guarded site reads another's result and both are
for the same number of rows, both conditions are the same: the second site's branches go to the end of the first one's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import onnx

from exprune_cli.sites import Site, SitePlan


def join_guards(graph: onnx.GraphProto, sites: Sequence[Site], plans: Mapping[str, SitePlan]) -> None:
    """Joins the Ifs of sites that follow each other.

    Args:
        graph: After the rewrite; changed in place. Its tensors keep their names; some conditions are gone.
        sites: The staged ones.
        plans: By site name.
    """
    producer = {name: node for node in graph.node for name in node.output}
    gone: set[str] = set()
    for first, second in _following(sites, plans):
        into, node = producer[first.output], producer[second.output]
        gone |= {node.output[0], *_condition(node, producer)}
        _move(node, into)
        producer |= dict.fromkeys(node.output, into)
    _remove(graph.node, [node.output[0] if node.output else "" for node in graph.node], gone)
    _remove(graph.initializer, [tensor.name for tensor in graph.initializer], gone)


def _following(sites: Sequence[Site], plans: Mapping[str, SitePlan]) -> Iterator[tuple[Site, Site]]:
    """Pairs of guarded sites, in the order of the graph, of which the second reads the first one's result and nothing
    else that is computed."""
    guarded = {site.output: site for site in sites if plans[site.name].most_rows is not None}
    for second in guarded.values():
        first = guarded.get(second.input)
        if first is None or second.offset is not None or second.transposed_input:
            continue
        same = plans[first.name].most_rows == plans[second.name].most_rows
        if same and first.outputs == second.groups:
            yield first, second


def _condition(node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto]) -> set[str]:
    """What only an If's condition is computed with: the comparison, the size and its limit."""
    less = producer[node.input[0]]
    return {*less.output, *less.input}


def _move(node: onnx.NodeProto, into: onnx.NodeProto) -> None:
    """Puts an If's branches behind those of another one."""
    branches = {attribute.name: attribute.g for attribute in into.attribute}
    for attribute in node.attribute:
        branch = branches[attribute.name]
        inner = {outer: value.name for outer, value in zip(into.output, branch.output, strict=True)}
        for each in attribute.g.node:
            moved = branch.node.add()
            moved.CopyFrom(each)
            moved.input[:] = [inner.get(name, name) for name in each.input]
        branch.output.extend(attribute.g.output)
    into.output.extend(node.output)


def _remove(items: MutableSequence[Any], names: Sequence[str], gone: Collection[str]) -> None:
    for index in reversed([i for i, name in enumerate(names) if name in gone]):
        del items[index]
