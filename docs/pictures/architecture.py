"""The picture of the package: its parts from the commands down, and who uses whom, from the imports.

``python -m docs.pictures.architecture`` writes it to ``docs/contribute/architecture.svg``; a test says when
that is due. Arrows that a longer way implies are left out.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

from docs.pictures.imports import PACKAGE, ROOT, Graph, import_graph

TARGET = ROOT / "docs" / "contribute" / "architecture.svg"

#: The parts, and the modules of each; a package stands for its modules.
PARTS = {
    "commands": ("__main__", "cli", "commands", "integrations"),
    "Python API": ("api", "arguments", "results", "gates"),
    "pipeline": (
        "pipeline",
        "choice",
        "never_slower",
        "block_plans",
        "together",
        "whole_model",
        "labels",
        "fusing",
    ),
    "search": ("search", "sensitivity"),
    "certify": ("certify",),
    "report": ("reporting", "outlook", "recheck"),
    "output": ("render", "notebook", "advice", "next_step", "page"),
    "measure": ("measure", "latency", "counting", "timing", "metrics"),
    "observe": ("observe", "observe_blocks", "calibration", "sampling"),
    "match": ("match", "top_k"),
    "plan": ("planning",),
    "rewrite": ("rewrite", "joined_guards"),
    "fuse": ("fusion",),
    "verify": ("verify",),
    "rules": ("rules",),
    "functions": ("functions",),
    "run": ("sessions", "runtime", "custom_ops", "instrument", "random_feeds", "site_values", "static"),
    "costs": ("flops", "memory"),
    "samples": ("data",),
    "graph": ("graph", "shapes", "dense_layer"),
    "files": ("model", "protobuf", "record", "paths", "external_data", "weights", "structure", "plain"),
    "plain data": (
        PACKAGE,
        "apart",
        "available",
        "interrupts",
        "sites",
        "report_data",
        "staged_nodes",
        "distribution",
        "errors",
        "extent",
        "onnxruntime_errors",
        "progress",
    ),
}

_WIDTH, _HEIGHT, _GAP, _ROW = 150, 62, 20, 104
_STYLE = """<style>
  .part { fill: #f4f6fb; stroke: #5c6bc0; }
  .name { font: 600 14px sans-serif; fill: #1a237e; }
  .modules { font: 10px sans-serif; fill: #37474f; }
  .use { stroke: #90a4ae; fill: none; }
</style>"""


def part_of(module: str) -> str:
    """The part that a module belongs to.

    Raises:
        KeyError: It belongs to none.
    """
    for part, members in PARTS.items():
        if module in members or module.partition(".")[0] in members:
            return part
    raise KeyError(f"no part of docs/pictures/architecture.py has the module {module}: add it to one")


def part_graph(graph: Graph) -> Graph:
    """Which parts use which."""
    uses: Graph = {part: set() for part in PARTS}
    for module, imported in graph.items():
        uses[part_of(module)] |= {part_of(other) for other in imported}
    return {part: others - {part} for part, others in uses.items()}


def draw() -> str:
    """The picture as SVG."""
    uses = part_graph(import_graph())
    depth = {part: _depth(part, uses) for part in PARTS}
    rows = [[part for part in PARTS if depth[part] == row] for row in range(max(depth.values()) + 1)]
    width = max(len(row) for row in rows) * (_WIDTH + _GAP) + _GAP
    at: dict[str, tuple[float, float]] = {}
    for index, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _GAP) + _GAP) / 2
        for place, part in enumerate(row):
            at[part] = left + place * (_WIDTH + _GAP), _GAP + index * _ROW
    lines = [_arrow(at[part], at[other]) for part in PARTS for other in sorted(_direct(part, uses))]
    lines += [_box(part, *at[part]) for part in PARTS]
    height = _GAP + len(rows) * _ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The parts of exprune and who uses whom">'
    )
    arrow = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#90a4ae"/></marker></defs>'
    )
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff" rx="6"/>'
    return "\n".join([head, _STYLE, arrow, ground, *lines, "</svg>"]) + "\n"


def _depth(part: str, uses: Mapping[str, set[str]]) -> int:
    return 1 + max((_depth(user, uses) for user in PARTS if part in uses[user]), default=-1)


def _direct(part: str, uses: Mapping[str, set[str]]) -> set[str]:
    """The parts that are used, without those that a used one uses too."""
    implied: set[str] = set()
    todo = list(uses[part])
    while todo:
        for other in uses[todo.pop()]:
            if other not in implied:
                implied.add(other)
                todo.append(other)
    return uses[part] - implied


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    to_x, to_y = end[0] + _WIDTH / 2, end[1] - 2
    bend = (_ROW - _HEIGHT) * 0.8
    path = f"M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"
    return f'<path class="use" d="{path}" marker-end="url(#tip)"/>'


def _box(part: str, x: float, y: float) -> str:
    names = ", ".join(name for name in PARTS[part] if name != "__main__")
    middle = x + _WIDTH / 2
    texts = [
        f'<text class="modules" x="{middle:g}" y="{y + 36 + 11 * index:g}" text-anchor="middle">'
        f"{html.escape(line)}</text>"
        for index, line in enumerate(_wrapped(names))
    ]
    return (
        f'<g><rect class="part" x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{middle:g}" y="{y + 19:g}" text-anchor="middle">{html.escape(part)}</text>'
        + "".join(texts)
        + "</g>"
    )


def _wrapped(names: str, most: int = 28) -> list[str]:
    lines = [""]
    for word in names.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


if __name__ == "__main__":
    Path(TARGET).write_text(draw(), encoding="utf-8")
