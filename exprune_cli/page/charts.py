"""The charts of the page, as inline SVG: positions in percent, so that they fit any width undistorted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from exprune_cli.render import amount, duration_ms, number, percent

Plain = Mapping[str, Any]

#: Height of a bar, and of the two larger charts' drawing area, in pixels.
_BAR = 16
_PLOT = 240


@dataclass(frozen=True)
class Segment:
    """A part of a bar: what it stands for, and how many FLOPs."""

    kind: str
    flops: float


def segments(site: Plain) -> list[Segment]:
    """What a site's dense FLOPs are split into: ``dense``, or ``estimate``, ``finished`` and ``skipped``.

    A site that is not optimised yet has ``ready``, and ``skipped`` as it is expected. Where FLOPs are unknown
    the entries of the weight stand for them.
    """
    dense, spent = site["flops_dense"], site["flops"]
    if dense is None:
        kind = "ready" if site["outlook"] else "unknown" if site["staged"] else "dense"
        return [Segment(kind, float(site["weights"]))] if site["weights"] else []
    if not site["staged"]:
        outlook = site["outlook"]
        if outlook is None:
            return [Segment("dense", dense)]
        expected = outlook["flops_expected"]
        if expected is None:
            return [Segment("ready", dense)]
        return [Segment("ready", expected), Segment("skipped", dense - expected)]
    if spent is None:
        return [Segment("unknown", dense)]
    estimate = site["flops_estimate"] or 0.0
    kind = "integer" if site["estimate"] == "quantized" else "estimate"
    parts = [Segment(kind, estimate), Segment("finished", spent - estimate)]
    return [*parts, Segment("skipped", max(0.0, dense - spent))]


def largest(sites: Iterable[Plain]) -> float:
    """FLOPs that the full width of the bars stands for."""
    return max((sum(part.flops for part in segments(site)) for site in sites), default=0.0) or 1.0


_NAMES = {
    "dense": "dense",
    "ready": "can be staged",
    "unknown": "staged, spent unknown",
    "estimate": "estimate and tests",
    "integer": "estimate in 8 bits, and tests",
    "finished": "finished",
    "skipped": "skipped",
}


def bar(site: Plain, scale: float) -> Markup:
    """The bar of a site, in graph order with the others one picture."""
    parts = segments(site)
    text = ", ".join(f"{_NAMES[part.kind]} {amount(part.flops)}" for part in parts if part.flops > 0)
    shapes, start = Markup(""), 0.0
    for part in parts:
        width = 100 * part.flops / scale
        if width > 0:
            shapes += Markup(
                '<rect class="{}" x="{}%" width="{}%" height="{}" data-flops="{}"></rect>'
            ).format(part.kind, _short(start), _short(width), _BAR, repr(float(part.flops)))
        start += width
    if site["staged"] and site["flops_dense"] is not None:
        at = _short(100 * site["flops_dense"] / scale)
        shapes += Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="-2" y2="{1}"></line>').format(
            at, _BAR + 2
        )
    outlook = site["outlook"]
    if outlook and outlook["flops_limit"] is not None:
        at = _short(100 * outlook["flops_limit"] / scale)
        shapes += Markup('<line class="limit" x1="{0}%" x2="{0}%" y1="-2" y2="{1}"></line>').format(
            at, _BAR + 2
        )
    unit = "FLOPs" if site["flops_dense"] is not None else "Weights"
    return _svg("bar", _BAR, f"{unit}: {text or 'unknown'}", shapes)


def strip(spread: Plain) -> Markup:
    """A box plot of a share between 0 and 1."""
    text = (
        f"median {percent(spread['median'])}, half of the samples {percent(spread['p25'])} to "
        f"{percent(spread['p75'])}, all {percent(spread['least'])} to {percent(spread['most'])}"
    )
    at = {name: _short(100 * min(1.0, max(0.0, spread[name]))) for name in ("p5", "p95", "p25", "median")}
    width = _short(max(0.6, 100 * (spread["p75"] - spread["p25"])))
    middle = _BAR // 2
    shapes = (
        Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"></line>').format(middle)
        + Markup('<line class="whisker" x1="{}%" x2="{}%" y1="{}" y2="{}"></line>').format(
            at["p5"], at["p95"], middle, middle
        )
        + Markup('<rect class="box" x="{}%" width="{}%" y="3" height="{}"></rect>').format(
            at["p25"], width, _BAR - 6
        )
        + Markup('<line class="median" x1="{0}%" x2="{0}%" y1="1" y2="{1}"></line>').format(
            at["median"], _BAR - 1
        )
    )
    return _svg("strip", _BAR, text, shapes)


def trade_off(alternatives: Sequence[Plain], allowed: float | None) -> Markup:
    """Savings against drops: what was tried, what was chosen, what was allowed."""
    points = [(i, each) for i, each in enumerate(alternatives) if each["flops_reduction"] is not None]
    if not points:
        return Markup("")
    tops = [each["upper"] if each["upper"] is not None else each["drop"] for _, each in points]
    # One bold failure must not flatten all others.
    passed = [top for top, (_, each) in zip(tops, points, strict=True) if each["passed"]] or tops
    roof = max([max(passed), allowed or 0.0, *[top for top in tops if top <= 4 * max(allowed or 0, 1e-9)]])
    floor = min([0.0, *[each["drop"] for _, each in points]])
    rows = _ticks(floor, roof * 1.1 or 0.01)
    right = max(each["flops_reduction"] for _, each in points)
    left = min(0.0, *[each["flops_reduction"] for _, each in points])
    columns = _ticks(left, max(right, 0.01))

    def x(value: float) -> str:
        return _short(100 * (value - columns[0]) / (columns[-1] - columns[0]))

    def y(value: float) -> str:
        return _short(_PLOT * (1 - (min(value, rows[-1]) - rows[0]) / (rows[-1] - rows[0])))

    shapes = _grid(rows, columns, x, y, lambda value: percent(value, 0), lambda value: number(value, 3))
    if allowed is not None and rows[0] <= allowed <= rows[-1]:
        shapes += Markup(
            '<line class="allowed" x1="0" x2="100%" y1="{0}" y2="{0}"></line>'
            '<text class="note" x="4" y="{1}">allowed: {2}</text>'
        ).format(y(allowed), _short(float(y(allowed)) - 6), number(allowed))
    for index, each in points:
        at, height = x(each["flops_reduction"]), y(each["drop"])
        kind = "chosen" if each["chosen"] else "passed" if each["passed"] else "failed"
        text = f"{percent(each['flops_reduction'])} saved, drop {number(each['drop'], 3)}"
        if each["upper"] is not None:
            text += f" (upper limit {number(each['upper'], 3)})"
            shapes += Markup('<line class="whisker {}" x1="{}%" x2="{}%" y1="{}" y2="{}"></line>').format(
                kind, at, at, height, y(each["upper"])
            )
        shapes += Markup(
            '<circle class="{}" cx="{}%" cy="{}" r="{}" data-point="{}"><title>{}</title></circle>'
        ).format(kind, at, height, 8 if kind == "chosen" else 5, index, f"{kind}: {text}")
        if kind == "failed":  # not by colour alone
            shapes += Markup(
                '<svg x="{}%" y="{}" overflow="visible"><path class="cross" d="M-4,-4L4,4M-4,4L4,-4"/></svg>'
            ).format(at, height)
    label = f"FLOPs saved against the drop, {len(points)} points; the table below has the numbers"
    return _svg("plot", _PLOT, label, shapes)


def times(histogram: Plain, medians: Mapping[str, float]) -> Markup:
    """Histograms of both models' times over each other, with their medians."""
    edges = histogram["edges_ms"]
    sides = {name: histogram[name] for name in ("dense", "optimized") if histogram[name] is not None}
    most = max(max(counts) for counts in sides.values()) or 1
    low, high = edges[0], edges[-1]

    def x(value: float) -> str:
        return _short(100 * (min(max(value, low), high) - low) / (high - low))

    columns = [tick for tick in _ticks(low, high) if low <= tick <= high]
    shapes = _grid([], columns, x, lambda value: "0", lambda value: duration_ms(value), number)
    for name, counts in sides.items():
        for index, count in enumerate(counts):
            if count:
                height = _PLOT * 0.84 * count / most  # below the medians' labels
                start, width = float(x(edges[index])), 100 / len(counts)
                shapes += Markup(
                    '<rect class="times {}" x="{}%" width="{}%" y="{}" height="{}" data-count="{}"></rect>'
                ).format(name, _short(start), _short(width), _short(_PLOT - height), _short(height), count)
    for name, median in medians.items():
        at = x(median)
        side = "end" if float(at) > 70 else "start"
        shapes += Markup(
            '<line class="median {0}" x1="{1}%" x2="{1}%" y1="{4}" y2="{2}"></line>'
            '<svg x="{1}%" y="{4}" overflow="visible"><text class="note" text-anchor="{5}" x="{6}" y="10">{3}</text></svg>'
        ).format(
            name,
            at,
            _PLOT,
            f"{'dense' if name == 'dense' else 'now' if len(medians) > 1 else 'median'}: {duration_ms(median)}",
            18 if name == "dense" else 0,
            side,
            -6 if side == "end" else 6,
        )
    return _svg("plot", _PLOT, "How the times of single runs are spread; the table has the numbers", shapes)


def _grid(
    rows: Sequence[float], columns: Sequence[float], x: Any, y: Any, x_text: Any, y_text: Any
) -> Markup:
    shapes = Markup("")
    for value in rows:
        shapes += Markup(
            '<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"></line>'
            '<text class="tick" x="-8" y="{1}" text-anchor="end">{2}</text>'
        ).format(y(value), _short(float(y(value)) + 4), y_text(value))
    for value in columns:
        shapes += Markup(
            '<line class="axis" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"></line>'
            '<text class="tick" x="{0}%" y="{3}" text-anchor="middle">{4}</text>'
        ).format(x(value), _PLOT, _PLOT + 5, _PLOT + 20, x_text(value))
    return shapes + Markup('<line class="base" x1="0" x2="100%" y1="{0}" y2="{0}"></line>').format(_PLOT)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that include ``low`` and ``high``."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / count))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= count:
            step *= factor
            break
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _svg(kind: str, height: int, label: str, shapes: Markup) -> Markup:
    return Markup(
        '<svg class="{0}" width="100%" height="{1}" role="img" aria-label="{2}"><title>{2}</title>{3}</svg>'
    ).format(kind, height, label, shapes)


def _short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
