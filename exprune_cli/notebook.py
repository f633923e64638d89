"""What notebooks show of results: a fragment of HTML without scripts, styles of its own or a background."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from exprune_cli import render

if TYPE_CHECKING:
    from exprune_cli.report_data import Report

_SITES_SHOWN = 40


def report_fragment(report: Report) -> str:
    """A report: its totals, and its sites with the share of their FLOPs that is spent."""
    totals, fidelity, certificate = report.totals, report.fidelity, report.certificate
    per = "run at batch 1" if report.samples is None else f"sample, measured on {report.samples}"
    rows = {f"FLOPs per {per}": f"{render.amount(totals.flops_dense)} dense"}
    if report.optimized:
        spent, saved = render.amount(totals.flops), render.percent(totals.flops_reduction)
        rows["staged"] = f"{spent} {'expected' if report.samples is None else 'spent'}, {saved} saved"
    if totals.latency_ms is not None:
        dense, now = render.duration_ms(totals.latency_dense_ms), render.duration_ms(totals.latency_ms)
        rows["latency"] = f"{dense} dense, {now} now: {render.number(totals.speedup, 3)}x"
    if fidelity is not None:
        values = f"{render.number(fidelity.baseline)} dense, {render.number(fidelity.optimized)} now"
        drop, agreement = render.number(fidelity.drop), render.percent(fidelity.agreement, 2)
        rows[fidelity.metric or "quality"] = f"{values}, drop {drop}, agreement {agreement}"
    if certificate is not None:
        state = {True: "holds", False: "does not hold", None: "not decided"}[certificate.holds]
        limit, sure = render.number(certificate.max_drop), render.percent(certificate.confidence, 2)
        rows["certificate"] = f"drop at most {limit} at {sure} confidence: {state}"
    sites = report.staged or report.sites
    return _fragment(
        title=render.headline(report),
        rows=rows,
        sites=sites[:_SITES_SHOWN],
        more=len(sites[_SITES_SHOWN:]),
        notes=report.notes,
    )


def as_table(title: str, rows: Mapping[str, object]) -> str:
    """Names and values under a title."""
    return _fragment(title=title, rows=rows)


def _fragment(**content: object) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exprune_cli"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"amount": render.amount, "percent": render.percent}
    return environment.get_template("notebook.html").render(**content)
