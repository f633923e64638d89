"""What is said of a model: one :class:`Report`, made once and rendered in several ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx

from exprune_cli import __version__, flops
from exprune_cli.advice import refusal_groups
from exprune_cli.counting import Counts, FlopsCounter, count_flops, staged_nodes, weight_shares
from exprune_cli.distribution import histogram, spread
from exprune_cli.errors import ExpruneError
from exprune_cli.instrument import inline_functions
from exprune_cli.memory import memory_notes
from exprune_cli.outlook import Prospects, add_outlooks, look_at_weights, summarise
from exprune_cli.record import Record, SiteRecord, read_record
from exprune_cli.report_data import (
    SCHEMA_VERSION,
    Alternative,
    Certificate,
    Environment,
    Fidelity,
    Origin,
    Report,
    SiteReport,
    Timing,
    Totals,
)
from exprune_cli.sessions import runtime_kind
from exprune_cli.staged_nodes import staged_view
from exprune_cli.static import static_shapes, zero_feeds

if TYPE_CHECKING:
    from exprune_cli.latency import Latency
    from exprune_cli.match import Matches
    from exprune_cli.measure import Measurement
from exprune_cli.model import Model

__all__ = [
    "SCHEMA_VERSION",
    "Certificate",
    "Fidelity",
    "Report",
    "SiteReport",
    "Timing",
    "Totals",
    "build_report",
    "static_counts",
]


#: What a report says of a model that was planned on random data.
RANDOM_DATA = "planned on random data (--allow-random), not on samples: what it saves and loses on real data is not known"
#: A model that is not done by then may loop for ever on inputs that nobody meant.
_ZEROS_SECONDS = 10.0


def build_report(
    model: Model,
    *,
    measurement: Measurement | None = None,
    timing: Latency | None = None,
    record: Record | None = None,
    name: str | None = None,
    prospects: Prospects | None = None,
) -> Report:
    """Makes the report of a model.

    Args:
        model: The model, optimised or not; not changed.
        measurement: What was measured on data; FLOPs are expected values without it.
        timing: Times of the model and its baseline.
        record: What is known of the model; None to read it from the model.
        name: How the report calls the model; None for its path.
        prospects: What a model that is not optimised could gain; None for what its weights say.

    Raises:
        ExpruneError: The model's record cannot be read or does not fit the model.
    """
    proto = model.proto
    record = record or read_record(proto)
    if record is None and prospects is None:
        prospects = look_at_weights(model)
    report = Report(
        model=name or (str(model.path) if model.path else "<memory>"),
        sites=_sites_of_record(record) if record else [],
        totals=Totals(),
        optimized=record is not None,
        runtime=runtime_kind(proto),
        environment=_environment(),
    )
    if record is None and prospects is not None:
        report.sites = _sites_of_match(model, prospects.matches)
    staged = {site.name: site for site in record.sites if site.staged} if record else {}
    if measurement is None:
        _add_expected(report, proto, staged)
    else:
        _add_measured(report, proto, staged, measurement)
    totals = report.totals
    if totals.flops is not None and totals.flops_dense:
        totals.flops_reduction = 1 - totals.flops / totals.flops_dense
    if timing is not None:
        totals.latency_dense_ms, totals.latency_ms = timing.dense_ms, timing.ms
        totals.speedup = timing.speedup
        report.timing = _timing(timing)
    if measurement is not None and measurement.metric is not None:
        report.fidelity = _measured_fidelity(measurement)
    elif record is not None and record.quality:
        report.fidelity = Fidelity(**_known_fields(Fidelity, record.quality))
    if record is not None:
        report.notes += memory_notes(record)
        report.notes += fused_notes(record)
        if record.random_data:
            report.notes.append(RANDOM_DATA)
    if record is not None and record.certificate:
        report.certificate = Certificate(**_known_fields(Certificate, record.certificate))
    weights = _weights(proto)
    if record is not None:
        weights |= {
            s.name: s.outputs * s.groups * (s.taps or 1) for s in record.sites if s.outputs and s.groups
        }
    elif prospects is not None:
        weights |= {s.name: s.outputs * s.groups * s.taps for s in prospects.matches.sites}
    for site in report.sites:
        site.weights = weights.get(site.name)
    report.refusals = refusal_groups(report.sites, totals.flops_dense)
    if record is not None:
        report.alternatives = [Alternative(**_known_fields(Alternative, point)) for point in record.tried]
        report.origin = Origin(**_known_fields(Origin, vars(record)))
    elif prospects is not None:
        add_outlooks(report.sites, prospects.sites)
        report.outlook = summarise(report.sites, totals, report.refusals, prospects.samples)
    return report


def fused_notes(record: Record) -> list[str]:
    """What was fused around the sites, and what that alone brought."""
    if not record.fused:
        return []
    what = ", ".join(f"{count} {op}" for op, count in record.fused.items())
    alone = f", by that alone {record.fused_speedup:.2f}x as fast" if record.fused_speedup else ""
    return [
        f"fused around the sites: {what}{alone}; results are equal up to rounding (--no-fuse leaves them)"
    ]


def _environment() -> Environment:
    import onnxruntime

    from exprune_cli.runtime import kernels_name, runtime_available

    kernels = kernels_name() if runtime_available() else None
    return Environment(__version__, onnxruntime.__version__, onnx.__version__, kernels)


def _timing(found: Latency) -> Timing:
    times, dense = found.times_ms, found.dense_times_ms
    return Timing(
        found.threads,
        found.batch,
        found.runs,
        found.binding,
        dense=None if dense is None else spread(dense),
        optimized=spread(times),
        histogram=histogram(dense, times) if len(times) else None,
    )


def _sites_of_record(record: Record) -> list[SiteReport]:
    return [
        SiteReport(
            name=site.name,
            op=site.op,
            rule=site.rule or None,
            staged=site.staged,
            reason=site.reason,
            estimate=site.estimate,
            test=site.test,
            latency_dense_us=site.latency_dense_us,
            latency_us=site.latency_us,
            code=site.code,
        )
        for site in record.sites
    ]


def _sites_of_match(model: Model, matches: Matches) -> list[SiteReport]:
    sites = [
        SiteReport(site.name, site.op, site.rule, False, "not optimised yet: it can be staged")
        for site in matches.sites
    ]
    sites += [
        SiteReport(r.name, r.op, r.rule or None, False, r.reason, code=r.code) for r in matches.refusals
    ]
    position = {name: index for index, name in enumerate(_outputs_by_name(model.proto))}
    return sorted(sites, key=lambda site: position.get(site.name, len(position)))


def _weights(proto: onnx.ModelProto) -> dict[str, int]:
    """Entries of the constant weights, by the name that sites have."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and len(node.input) > 1:
            size = max((sizes.get(name, 0) for name in node.input[:2]), default=0)
            if size:
                found[node.name or next((name for name in node.output if name), "")] = size
    return found


def _outputs_by_name(proto: onnx.ModelProto) -> dict[str, str]:
    """First output of every node by the name that sites have: the node's, or that output's."""
    result: dict[str, str] = {}
    for node in proto.graph.node:
        first = next((name for name in node.output if name), "")
        result.setdefault(node.name or first, node.output[0] if node.output else "")
    return result


def _add_expected(report: Report, proto: onnx.ModelProto, staged: Mapping[str, SiteRecord]) -> None:
    counts = static_counts(proto, staged)
    outputs = _outputs_by_name(proto)
    dense_total, saved, integer = counts.total, 0.0, counts.int8_macs
    rows = dict(zip(staged, counts.rows, strict=True))
    for site in report.sites:
        entry = staged.get(site.name)
        if entry is None:
            _set_dense(site, counts.nodes.get(outputs.get(site.name, "")), 1)
            continue
        site.pruned = entry.pruned[-1] if entry.pruned else None
        site_rows = rows[site.name]
        if site_rows is None:
            dense_total = None
            continue
        site.flops_dense = flops.dense_site_flops(entry, site_rows)
        spent = flops.expected_flops(entry, site_rows)
        if spent is None:
            dense_total, report.totals.flops_dense = None, dense_total
            continue
        site.flops = spent
        site.flops_estimate = min(site.flops, flops.estimate_flops(entry, site_rows))
        if integer is not None and entry.pruned:
            integer += flops.int8_macs(entry, site_rows, [0.0])  # it runs whole, whatever is left
        saved += site.flops_dense - site.flops
    report.totals.flops_dense = counts.total
    report.totals.flops = None if dense_total is None else dense_total - saved
    report.totals.int8_macs = integer


def static_counts(proto: onnx.ModelProto, staged: Mapping[str, SiteRecord], batch: int = 1) -> Counts:
    """FLOPs of a model that is given no data, with ``batch`` as every dynamic first size.

    Where shapes are computed in ways that inference does not follow, the model is run once on zeros,
    if its inputs leave no other size open.
    """
    whole = inline_functions(proto)
    nodes, staged_of = staged_view(whole.graph.node), staged_nodes(proto, staged.values())
    counts = count_flops(nodes, static_shapes(whole, batch), staged_of, weight_shares(whole.graph))
    if counts.total is not None:
        return counts
    zeros = zero_feeds(proto, batch)
    if zeros is None:
        return counts
    try:
        return FlopsCounter(proto).counts(zeros, "zeros", seconds=_ZEROS_SECONDS)
    except ExpruneError:
        return counts


def _add_measured(
    report: Report, proto: onnx.ModelProto, staged: Mapping[str, SiteRecord], measured: Measurement
) -> None:
    samples = measured.samples or 1
    outputs = _outputs_by_name(proto)
    for site in report.sites:
        entry = staged.get(site.name)
        if entry is None:
            _set_dense(site, measured.node_flops.get(outputs.get(site.name, "")), samples)
            continue
        if site.name not in measured.rows:
            continue
        rows = measured.rows[site.name]
        site.flops_dense = flops.dense_site_flops(entry, rows) / samples
        site.flops = measured.site_flops[site.name] / samples
        if site.name in measured.estimate_flops:
            site.flops_estimate = min(site.flops, measured.estimate_flops[site.name] / samples)
        site.spread = measured.pruned_spread.get(site.name)
        tested = rows * ((entry.groups if entry.kind == "sparse" else entry.outputs) or 0)
        checked = measured.survivors[site.name]  # empty where nothing is tested: an exact Conv
        site.pruned = 1 - float(checked[-1]) / tested if tested and len(checked) else None
    totals = report.totals
    totals.flops_dense = None if measured.flops_dense is None else measured.flops_dense / samples
    totals.flops = None if measured.flops is None else measured.flops / samples
    totals.int8_macs = None if measured.int8_macs is None else measured.int8_macs / samples
    totals.flops_reduction_spread = measured.reduction_spread
    report.samples = measured.samples


def _set_dense(site: SiteReport, value: int | None, samples: int) -> None:
    site.pruned = 0.0
    if value is not None:
        site.flops_dense = site.flops = value / samples


def _measured_fidelity(measured: Measurement) -> Fidelity:
    import numpy as np

    from exprune_cli.data.groups import means_by_group

    def mean(scores: object) -> float | None:
        if scores is None:
            return None
        return float(np.mean(means_by_group(np.asarray(scores, np.float64), measured.groups)))

    baseline, optimized = mean(measured.scores_baseline), mean(measured.scores_optimized)
    drop = None if baseline is None or optimized is None else baseline - optimized
    groups = None if measured.groups is None else len(np.unique(measured.groups))
    return Fidelity(measured.metric, baseline, optimized, drop, measured.agreement, measured.samples, groups)


def _known_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(kind)}
    return {key: value for key, value in values.items() if key in names}
