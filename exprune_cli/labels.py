"""What viewers such as Netron show of an optimised model: short notes on the model and its staged nodes.

The full record stays under the key ``exprune`` (:mod:`exprune_cli.record`); these notes repeat parts
of it in words, where people look. A node's own ``metadata_props`` exist from IR version 10 on; in
older models its doc string says the same in one sentence.

==========================  ==============================================================================
on the model                ``exprune.version``, ``.objective``, ``.staged``, and ``.quality`` and
                            ``.certificate`` where there are such
on a staged node            ``exprune.site``, ``.rule``, ``.estimate``, ``.test``, and ``.saved`` where the
                            share of its FLOPs is known; ``.rows`` in an If beside the dense layer
==========================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import onnx

from exprune_cli import flops
from exprune_cli.extent import Extent
from exprune_cli.record import Record, SiteRecord

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

PREFIX = "exprune."
#: What notes can be called: other entries under the prefix are somebody's own.
NOTES = frozenset(
    PREFIX + name
    for name in (
        *("version", "objective", "staged", "quality", "certificate"),
        *("site", "rule", "estimate", "test", "saved", "rows"),
    )
)
#: The first IR version whose nodes have ``metadata_props``.
_NODE_METADATA = 10


def label(proto: onnx.ModelProto, record: Record) -> None:
    """Writes the notes into a model, in place of older ones.

    Args:
        proto: Changed in place.
        record: Of this model.
    """
    _put(proto.metadata_props, _of_model(record))
    sites = {site.node: site for site in record.sites if site.node is not None}
    for node in _nodes(proto.graph.node):
        site = sites.get(node.name)
        if site is None:
            continue
        notes = _of_site(site)
        if proto.ir_version >= _NODE_METADATA:
            _put(node.metadata_props, notes)
        else:
            node.doc_string = _sentence(notes)


def _of_model(record: Record) -> dict[str, str]:
    staged = sum(site.staged for site in record.sites)
    notes = {
        "version": record.tool.removeprefix("exprune "),
        "objective": record.objective,
        "staged": f"{staged} of {len(record.sites)} linear operators, test {record.test}",
    }
    quality, certificate = record.quality, record.certificate
    if quality is not None and isinstance(quality.get("drop"), float):
        notes["quality"] = f"{quality['metric']} drops by {quality['drop']:.4g} on {_extent(quality)}"
    if certificate is not None:
        notes["certificate"] = (
            f"{certificate['metric']} drops by at most {certificate['max_drop']:g} at "
            f"{certificate['confidence']:.4g} confidence, from {_extent(certificate)}"
        )
    return notes


def _extent(counted: dict[str, Any]) -> str:
    return Extent(counted["samples"], counted.get("groups")).text


def _of_site(site: SiteRecord) -> dict[str, str]:
    notes = {"site": site.name, "rule": site.rule}
    if site.estimate is not None:
        notes["estimate"] = site.estimate
    if site.test is not None:
        notes["test"] = site.test
    spent = flops.expected_flops(site, 1)
    if spent is not None:
        notes["saved"] = f"{1 - spent / flops.dense_site_flops(site, 1):.1%} of its FLOPs, expected"
    if "most_rows" in site.parameters:
        notes["rows"] = f"staged up to {site.parameters['most_rows']:g}, dense above"
    return notes


def _sentence(notes: dict[str, str]) -> str:
    return "; ".join(
        f"exprune {name}: {text}" if name == "site" else f"{name}: {text}" for name, text in notes.items()
    )


def _put(
    entries: RepeatedCompositeFieldContainer[onnx.StringStringEntryProto], notes: dict[str, str]
) -> None:
    kept = [(entry.key, entry.value) for entry in entries if entry.key not in NOTES]
    del entries[:]
    for key, value in [*kept, *((PREFIX + name, text) for name, text in notes.items())]:
        entries.add(key=key, value=value)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those in branches included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
