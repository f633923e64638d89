"""The messages that the sources can end or refuse with, read from the sources themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ERRORS = {"UsageError": 2, "ExpruneError": 3, "GateError": 1}
_REFUSALS = {"Reason": 0, "Refusal": 3}


@dataclass(frozen=True)
class Message:
    """A message of the sources.

    Attributes:
        kind: The error's class, or a refusal's code.
        text: The text; what is filled in is named in angle brackets.
        where: The module.
    """

    kind: str
    text: str
    where: str


def page() -> str:
    """The page, in Markdown."""
    found = list(_all())
    parts = [
        "# Messages",
        (
            "Every message of the sources: what stands in ⟨⟩ is filled in. "
            "What to do about the frequent ones is under [troubleshooting](../troubleshooting.md)."
        ),
    ]
    for name, title in (
        ("GateError", "Exit code 1: a gate failed"),
        ("UsageError", "Exit code 2: usage"),
        ("ExpruneError", "Exit code 3: bad model or data"),
    ):
        parts.append(f"## {title}")
        parts.append("\n".join(f"- {_escaped(m.text)}" for m in found if m.kind == name))
    parts.append("## Why an operator stays dense")
    parts.append("The JSON report has the codes, the tables have the sentences.")
    rows = sorted({(m.kind, m.text) for m in found if m.kind not in _ERRORS})
    parts.append(
        "| code | reason |\n| --- | --- |\n" + "\n".join(f"| `{k}` | {_escaped(t)} |" for k, t in rows)
    )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for character in "\\`*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return text


def _all() -> Iterator[Message]:
    for folder in ("exprune_cli", "rules"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "rules" in path.relative_to(ROOT).parts[1:]:
                continue  # the installed package's link to the other folder
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from _of_module(tree, path.stem)


def _of_module(tree: ast.Module, where: str) -> Iterator[Message]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in _ERRORS and (text := _text(node.args[0])):
            yield Message(name, text, where)
        elif name in _REFUSALS and len(node.args) > _REFUSALS[name] + 1:
            code, text = (_text(argument) for argument in node.args[_REFUSALS[name] : _REFUSALS[name] + 2])
            if code and text and not code.startswith("⟨"):
                yield Message(code, text, where)


def _text(node: ast.expr) -> str:
    """A string as it is written, with names for what is filled in; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        pieces = [
            str(part.value)
            if isinstance(part, ast.Constant)
            else f"⟨{ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ''}⟩"
            for part in node.values
        ]
        return "".join(pieces)
    return ""
