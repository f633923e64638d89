"""Putting a plan into effect: staged nodes in place of the sites' nodes, everything else kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx

from exprune_cli.functions import function_proto
from exprune_cli.graph import ModelGraph
from exprune_cli.joined_guards import join_guards
from exprune_cli.model import Model
from exprune_cli.planning.quantized import extra_bytes
from exprune_cli.record import SiteRecord
from exprune_cli.rules import RULES
from exprune_cli.sites import PANEL, Refusal, Site, SitePlan
from exprune_cli.staged_nodes import DOMAIN

if TYPE_CHECKING:
    from exprune_cli.progress import Counter


def rewrite(
    model: Model, sites: Sequence[Site], plans: Mapping[str, SitePlan], progress: Counter | None = None
) -> tuple[onnx.ModelProto, list[SiteRecord]]:
    """Makes the optimised model.

    Args:
        model: The original; not changed.
        sites: From ``match`` on this model.
        plans: By site name.
        progress: Is told of every site that was rewritten.

    Returns:
        The new model (the original itself if no site is staged), and a record per site.
    """
    rules = {rule.NAME: rule for rule in RULES}
    staged = [site for site in sites if plans[site.name].staged]
    names: dict[str, tuple[str, str]] = {}
    proto = model.proto
    if staged:
        graph = ModelGraph(model)
        for site in staged:
            names[site.name] = rules[site.rule].rewrite(graph, site, plans[site.name])
            if progress is not None:
                progress(len(names), len(staged))
        functions = [function_proto(op, model.opset) for op in sorted(graph.staged_ops)]
        proto = graph.graft(functions, DOMAIN)
        join_guards(proto.graph, staged, plans)
    return proto, [_record(site, plans[site.name], names.get(site.name)) for site in sites]


def own(proto: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """A model that may be written to: never the user's own object."""
    if proto is not model.proto:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def refusal_records(refusals: Sequence[Refusal]) -> list[SiteRecord]:
    """Records of the linear ops that no rule took."""
    return [
        SiteRecord(r.name, r.op, r.rule, kind=None, staged=False, reason=r.reason, code=r.code)
        for r in refusals
    ]


def _record(site: Site, plan: SitePlan, names: tuple[str, str] | None) -> SiteRecord:
    node, survivors = names or (None, None)
    parameters = {"lost_energy": plan.lost_energy} if plan.staged and plan.lost_energy else {}
    if plan.staged and plan.estimate == "quantized":
        parameters["extra_bytes"] = extra_bytes(plan)
    if plan.most_rows is not None:
        parameters["most_rows"] = plan.most_rows
    if plan.estimate == "low-rank":
        parameters["rank"] = float(plan.parameters["V"].shape[0])
        if "U_more" in plan.parameters:
            parameters["first_rank"] = float(plan.parameters["U"].shape[1])
    if plan.z is not None:
        parameters["z"] = plan.z
    if plan.block:
        parameters["block"] = plan.block
    if plan.dynamic and site.conv is not None:
        parameters["input_positions"] = math.prod(site.conv.strides)
    if plan.panel:
        parameters["panel"] = PANEL
    return SiteRecord(
        name=site.name,
        op=site.op,
        rule=site.rule,
        kind=site.kind,
        staged=plan.staged,
        reason=plan.reason,
        code=None if plan.staged else "not-worth-it",
        estimate=plan.estimate,
        test=plan.test,
        outputs=site.outputs,
        groups=site.groups,
        taps=site.taps,
        ends=[int(end) for end in plan.ends],
        node=node,
        survivors=survivors,
        input=site.input,
        output=site.output,
        pruned=None if plan.pruned is None else [float(share) for share in plan.pruned],
        parameters=parameters,
        nonzero=[float(share) for share in plan.nonzero],
        input_nonzero=[float(share) for share in plan.input_nonzero],
    )
