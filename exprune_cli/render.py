"""A report as text for people, as JSON for programs, as one HTML page to pass on."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exprune_cli.extent import Extent
from exprune_cli.runtime import kernels_name

if TYPE_CHECKING:
    from exprune_cli.report_data import Outlook, Report, SiteReport

#: Columns of all tables, on a terminal or not.
WIDTH = 80
UNKNOWN = "-"
_SITES_SHOWN = 60
_NAME_WIDTH = 24


def to_json(report: Report, **extra: object) -> str:
    """One JSON object, indented, with ``extra`` keys after the report's own."""
    return json.dumps({**report.as_json(), **extra}, indent=2, allow_nan=False)


def to_table(report: Report, stream: TextIO | None = None) -> str:
    """Tables of at most 80 columns; coloured if ``stream`` is a terminal and NO_COLOR is unset."""
    colour = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=WIDTH,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(Text(headline(report), style="bold"))
    if report.staged:
        console.print(_staged_table(report))
    dense = [site for site in report.sites if not site.staged]
    if dense:
        console.print(_dense_table(report, dense))
    console.print(_totals_table(report))
    for note in report.notes:
        console.print(Text(f"note: {printable(note)}", style="yellow"))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def headline(report: Report) -> str:
    """What the model is, in one line."""
    name = shorten(os.path.basename(report.model), 40)
    if not report.optimized:
        ready = sum(1 for site in report.sites if site.reason.startswith("not optimised yet"))
        return (
            f"{name}: not optimised, {ready} of {plural(len(report.sites), 'linear operator')} can be staged"
        )
    return f"{name}: {len(report.staged)} of {plural(len(report.sites), 'linear operator')} staged"


def _staged_table(report: Report) -> Table:
    title = "spent" if report.samples is not None else "expected"
    table = _table()
    table.add_column("staged site", no_wrap=True)
    table.add_column("op", no_wrap=True)
    table.add_column("how", no_wrap=True)
    for name in ("dense", title, "saved", "pruned"):
        table.add_column(name, justify="right", no_wrap=True)
    for site in report.staged[:_SITES_SHOWN]:
        saved = None
        if site.flops_dense and site.flops is not None:
            saved = 1 - site.flops / site.flops_dense
        table.add_row(
            Text(shorten(site.name, _NAME_WIDTH)),
            site.op,
            _how(site),
            amount(site.flops_dense),
            amount(site.flops),
            Text(percent(saved), style="green" if saved is not None and saved > 0 else ""),
            percent(site.pruned),
        )
    _say_more(table, len(report.staged), 7)
    return table


def _dense_table(report: Report, sites: list[SiteReport]) -> Table:
    table = _table()
    seen = report.outlook is not None and report.outlook.basis == "data"
    table.add_column("left dense" if report.optimized else "linear operator", no_wrap=True)
    table.add_column("op", no_wrap=True)
    table.add_column("FLOPs", justify="right", no_wrap=True)
    if seen:
        table.add_column("zeros", justify="right", no_wrap=True)
        table.add_column("could save", justify="right", no_wrap=True)
    table.add_column("why")
    for site in sites[:_SITES_SHOWN]:
        row: list[Text | str] = [Text(shorten(site.name, _NAME_WIDTH)), shorten(site.op, 13)]
        row.append(amount(site.flops_dense))
        if seen:
            row += [percent(site.outlook.zeros if site.outlook else None), percent(_expected_saving(site))]
        table.add_row(*row, Text(printable("can be staged" if seen and site.outlook else site.reason)))
    _say_more(table, len(sites), 6 if seen else 4)
    return table


def _expected_saving(site: SiteReport) -> float | None:
    if site.outlook is None or site.outlook.flops_expected is None or not site.flops_dense:
        return None
    return 1 - site.outlook.flops_expected / site.flops_dense


def _totals_table(report: Report) -> Table:
    totals, fidelity, certificate = report.totals, report.fidelity, report.certificate
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    basis = "per run at batch 1"
    if report.samples is not None:
        basis = f"per sample, measured on {plural(report.samples, 'sample')}"
    elif report.staged:
        basis += ", expected"
    table.add_row("FLOPs", f"{amount(totals.flops_dense)} dense ({basis})")
    if report.optimized and totals.flops is None:
        table.add_row("", "spent: unknown before it is measured (--data DIR)")
    elif report.optimized:
        table.add_row("", f"{amount(totals.flops)} spent, {percent(totals.flops_reduction)} saved")
    _add_outlook(table, report.outlook)
    if totals.int8_macs:
        table.add_row("int8", f"{amount(totals.int8_macs)} multiply-accumulates of these (2 FLOPs each)")
    if report.timing is not None:
        table.add_row("latency", _latency(report))
    if report.runtime is not None:
        kind = {"native": f"native, {kernels_name()} kernels", "function": "not found: ONNX functions"}[
            report.runtime
        ]
        table.add_row("runtime", kind)
    if fidelity is not None:
        table.add_row("quality", _quality(report))
    if certificate is not None:
        sure = f" at {percent(certificate.confidence, 2)} confidence" if certificate.confidence else ""
        state = {True: "holds", False: "does not hold", None: "not decided"}[certificate.holds]
        basis = _samples(certificate.samples, certificate.groups)
        if certificate.checked:
            basis = f"checked here: drop {number(certificate.drop)} on {basis}"
        text = f"drop <= {number(certificate.max_drop)}{sure}: {state} ({basis})"
        table.add_row("certificate", text)
    return table


def _add_outlook(table: Table, outlook: Outlook | None) -> None:
    """What could be gained at a model that is not optimised, and what is needed for it."""
    if outlook is None:
        return
    if outlook.reduction_limit is not None:
        expected = f", {percent(outlook.reduction_expected)} is expected at a small loss"
        known = expected if outlook.reduction_expected is not None else ""
        table.add_row(
            "to gain", f"{percent(outlook.reduction_limit)} of the FLOPs at most without loss{known}"
        )
    for label, texts in (("found", outlook.findings), ("needed", outlook.needs)):
        for index, text in enumerate(texts):
            table.add_row("" if index else label, Text(printable(text)))


def _latency(report: Report) -> str:
    totals, timing = report.totals, report.timing
    assert timing is not None
    how = f"median of {timing.runs} runs, {plural(timing.threads, 'thread')}"
    if timing.batch is not None:
        how += f", batch {timing.batch}"
    if totals.latency_dense_ms is None:
        return f"{duration_ms(totals.latency_ms)} ({how})"
    both = f"{duration_ms(totals.latency_dense_ms)} dense, {duration_ms(totals.latency_ms)} now"
    return f"{both}: {number(totals.speedup, 3)}x ({how}, paired)"


def _quality(report: Report) -> str:
    fidelity = report.fidelity
    assert fidelity is not None
    parts = []
    if fidelity.baseline is not None:
        parts.append(f"{number(fidelity.baseline)} dense, {number(fidelity.optimized)} now")
        parts.append(f"drop {number(fidelity.drop)}")
    elif fidelity.optimized is not None:
        parts.append(number(fidelity.optimized))
    if fidelity.agreement is not None:
        parts.append(f"agreement {percent(fidelity.agreement, 2)}")
    return f"{printable(fidelity.metric or 'metric')}: {', '.join(parts)} ({_samples(fidelity.samples, fidelity.groups)})"


def top_reasons(report: Report, count: int = 3) -> list[str]:
    """The most frequent reasons why operators stayed dense, as ``12 x reason``."""
    reasons = Counter(site.reason for site in report.sites if not site.staged)
    return [f"{times} x {printable(reason)}" for reason, times in reasons.most_common(count)]


def site_sentence(site: SiteReport) -> str:
    """All that is known of one site, in a line."""
    state = f"staged, {_how(site)}" if site.staged else "dense"
    parts = [printable(site.reason)] if site.reason else []
    if site.staged and site.pruned is not None:
        parts.append(f"{percent(site.pruned)} pruned")
    if site.outlook is not None and site.outlook.zeros is not None:
        parts.append(f"{percent(site.outlook.zeros)} zeros")
    if site.latency_us is not None and site.latency_dense_us is not None:
        dense, now = duration_ms(site.latency_dense_us / 1e3), duration_ms(site.latency_us / 1e3)
        parts.append(f"timed {now} staged, {dense} dense")
    rule = f", {site.rule}" if site.rule else ""
    return f"'{printable(site.name)}' ({site.op}{rule}): {state}: {'; '.join(parts)}"


def _how(site: SiteReport) -> str:
    # A sparse site and an exact Conv have neither an estimate nor a test that could be wrong.
    parts = [part for part in (site.estimate, site.test) if part]
    return "+".join(parts) or ("exact" if site.op == "Conv" else "zeros")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, header_style="dim")


def _say_more(table: Table, total: int, columns: int) -> None:
    if total > _SITES_SHOWN:
        rest = f"... {total - _SITES_SHOWN} more"
        table.add_row(rest, *[""] * (columns - 1))


def shorten(name: str, width: int) -> str:
    """A name cut in the middle to ``width`` characters; its end tells layers apart."""
    name = printable(name)
    if len(name) <= width:
        return name
    tail = (width - 2) * 2 // 3
    return f"{name[: width - 2 - tail]}..{name[len(name) - tail :]}"


def printable(text: str) -> str:
    """Text from a model without control characters, which could drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def amount(value: float | None) -> str:
    """A count with a unit: ``1.23 G``."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return (
                f"{value / limit:.3g} {unit}" if abs(value) < limit * 999.5 else f"{value / limit:.0f} {unit}"
            )
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as ``12.3%``."""
    return UNKNOWN if value is None else f"{value * 100:.{digits}f}%"


def number(value: float | None, digits: int = 4) -> str:
    """A plain number with ``digits`` significant digits."""
    if value is None:
        return UNKNOWN
    return f"{value:.{digits}g}"


def duration_ms(value: float | None) -> str:
    """Milliseconds as ``1.23 ms`` or ``45.6 us``."""
    if value is None:
        return UNKNOWN
    return f"{value:.3g} ms" if value >= 1 else f"{value * 1e3:.3g} us"


def plural(count: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _samples(count: int | None, groups: int | None) -> str:
    return "samples unknown" if count is None else Extent(count, groups).in_brackets


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Prints to a stream (standard output), in what its encoding can say."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.replace("─", "-")
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
