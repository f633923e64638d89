"""A report as one self-contained HTML page.

The page is made from the report's JSON form, which it carries along: every number on it says by a JSON
pointer (``data-json``) where it comes from. It needs no network, and its Content-Security-Policy admits
nothing but its own style and script, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import jinja2
from markupsafe import Markup, escape

from exprune_cli.next_step import after_report
from exprune_cli.page import charts
from exprune_cli.render import amount, duration_ms, headline, number, percent, plural
from exprune_cli.report_data import Report

#: How numbers are written, by the name that stands in ``data-format``.
FORMATS: Mapping[str, Callable[[Any], str]] = {
    "amount": amount,
    "percent": percent,
    "percent2": lambda value: percent(value, 2),
    "number": number,
    "factor": lambda value: "-" if value is None else f"{number(value, 3)}x",
    "ms": duration_ms,
    "us": lambda value: duration_ms(None if value is None else value / 1e3),
    "count": lambda value: "-" if value is None else f"{value:,}",
}


def to_html(report: Report) -> str:
    """The page, with everything in it."""
    plain = report.as_json()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exprune_cli"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    loader = environment.loader
    assert loader is not None
    style = _compact(loader.get_source(environment, "report.css")[0])
    script = loader.get_source(environment, "report.js")[0].strip()
    environment.filters |= {"plural": plural, "percent": percent, "options": _options}
    page = environment.get_template("report.html").render(
        r=plain,
        v=lambda pointer, form, css="": _value(plain, pointer, form, css),
        headline=headline(report),
        name=report.model.replace("\\", "/").rpartition("/")[2],
        step=after_report(report, page=True),
        charts=charts,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=_embedded(plain),
    )
    return re.sub(r"\n\s*\n+", "\n", page)


def resolve(plain: object, pointer: str) -> Any:
    """What a JSON pointer leads to (RFC 6901, without escapes: no key needs them)."""
    found: Any = plain
    for part in pointer.split("/")[1:]:
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def _value(plain: object, pointer: str, form: str, css: str) -> Markup:
    text = FORMATS[form](resolve(plain, pointer))
    return Markup('<span class="{}" data-json="{}" data-format="{}">{}</span>').format(
        f"v {css}".strip(), pointer, form, text
    )


def _options(text: str) -> Markup:
    """A sentence with its options marked as code, which does not break within one."""
    parts = re.split(r"(?<![\w-])(--[a-z][a-z-]*(?: [A-Z]+\b)?)", text)
    marked = [Markup('<code class="option">{}</code>').format(part) for part in parts[1::2]]
    plain = [escape(part) for part in parts[::2]]
    return Markup("").join(piece for pair in zip_longest(plain, marked, fillvalue="") for piece in pair)


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing from anywhere, and only these two texts inline."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(plain: object) -> Markup:
    """JSON that can stand inside a script element whatever strings are in it."""
    text = json.dumps(plain, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _compact(style: str) -> str:
    return "\n".join(line.strip() for line in style.splitlines() if line.strip())
