"""Reference pages: the commands' help, the rules' and modules' docstrings, the ops' functions, the schema."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import onnx
from exprune_cli.rules import RULES

import exprune_cli
from exprune_cli import functions
from exprune_cli.cli import exprune
from exprune_cli.functions import (
    DOMAIN,
    FUSED_DOMAIN,
    FUSED_OPS,
    MIN_OPSET,
    OPS,
    function_proto,
    fused_function_proto,
)

#: The opset that the ops' bodies are shown in.
_OPSET = 17


def all_pages() -> dict[str, str]:
    """Markdown by the page's name."""
    makers: dict[str, Callable[[], str]] = {
        "commands": commands,
        "python": python,
        "data": data,
        "json": schema,
        "rules": rules,
        "ops": ops,
    }
    return {name: make() for name, make in makers.items()}


def commands() -> str:
    """What ``-h`` prints, for every command."""
    parts = ["# Commands\n\nWhat `-h` prints. Results go to standard output, messages to standard error."]
    parts.append(
        "| exit code | meaning |\n| --: | --- |\n"
        "| 0 | done, also where there was nothing to stage |\n"
        "| 1 | a gate failed: `--max-drop` cannot be met, or cannot be certified |\n"
        "| 2 | wrong usage |\n| 3 | bad model or data |\n| 130 | interrupted |"
    )
    for command in (exprune, *exprune.commands.values()):
        name = "exprune" if command is exprune else f"exprune {command.name}"
        context = click.Context(command, info_name=name, max_content_width=80, terminal_width=80)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def python() -> str:
    """The public names of the package, by mkdocstrings."""
    parts = ["# Python\n\nWhat `import exprune_cli` offers. The commands are thin layers over it."]
    parts += [f"::: exprune_cli.{name}" for name in sorted(exprune_cli.__all__)]
    return "\n\n".join(parts) + "\n"


def data() -> str:
    """Samples and metrics, from the docstrings of the modules that read them."""
    layout, metrics = (importlib.import_module(f"exprune_cli.{name}") for name in ("data", "metrics"))
    parts = ["# Samples and metrics", "## Samples (`--data`)", _text(layout), "## Metrics (`--metric`)"]
    return "\n\n".join([*parts, _text(metrics)]) + "\n"


def rules() -> str:
    """The rules in the order they are tried, each with its docstring."""
    parts = [
        "# Rules",
        (
            "A rule knows one pattern: what stands there before, what takes its place, and why that is the same. "
            "They are tried in this order; the first that fits takes the site. "
            "Why a rule refuses an operator stands under [messages](messages.md#why-an-operator-stays-dense)."
        ),
    ]
    for rule in RULES:
        path = Path(inspect.getfile(rule)).name
        parts += [f"## {rule.NAME}", f"`rules/{path}`", _text(rule)]
    return "\n\n".join(parts) + "\n"


def ops() -> str:
    """The staged operators: inputs, outputs, attributes and the body in standard ONNX."""
    parts = [
        "# Operators",
        (
            f"The operators of the domain `{DOMAIN}`, version 1. A staged file holds the body of each that it "
            f"uses as a model-local function, in the file's own opset ({MIN_OPSET} or newer; shown: {_OPSET}). "
            "Where the [runtime](../deploy.md) is registered its kernels run instead."
        ),
        (
            "`N` outputs, `G` reduction groups, `S` checks, `C = S + 1` chunks. `survivors` counts the outputs that "
            "were still undecided after each check: reports measure with it."
        ),
    ]
    for module in _families(OPS):
        parts += [f"## {_summary(module)}", _text(module, skip_title=True)]
        parts += [part for op in OPS if op in module.FUNCTIONS for part in _op(function_proto(op, _OPSET))]
    parts += [
        f"# Operators of the domain `{FUSED_DOMAIN}`",
        "They take the place of operators around staged layers, where that is faster (`--no-fuse` leaves these).",
    ]
    for module in _families(FUSED_OPS):
        parts += [f"## {_summary(module)}", _text(module, skip_title=True)]
        parts += [part for op in module.FUNCTIONS for part in _op(fused_function_proto(op, _OPSET))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _families(ops: Sequence[str]) -> list[ModuleType]:
    """The modules that define these operators, in the order of their first one."""
    names = [f"exprune_cli.functions.{found.name}" for found in pkgutil.iter_modules(functions.__path__)]
    modules = map(importlib.import_module, names)
    ours = [module for module in modules if set(getattr(module, "FUNCTIONS", ())) & set(ops)]
    return sorted(ours, key=lambda module: ops.index(next(iter(module.FUNCTIONS))))


def _op(function: onnx.FunctionProto) -> Iterator[str]:
    yield f"### {function.name}"
    yield function.doc_string
    rows = [("inputs", function.input), ("outputs", function.output)]
    rows.append(("attributes", [_attribute(a) for a in function.attribute_proto] + list(function.attribute)))
    table = "\n".join(f"| {kind} | {', '.join(f'`{n}`' for n in names)} |" for kind, names in rows if names)
    yield f"| | |\n| --- | --- |\n{table}"
    body = onnx.printer.to_text(function).strip()
    yield f'??? note "Body"\n\n    ```text\n{_indented(body)}\n    ```'


def _attribute(attribute: onnx.AttributeProto) -> str:
    return f"{attribute.name} = {onnx.helper.get_attribute_value(attribute)}"


def schema() -> str:
    """The JSON report's keys, and its schema."""
    text = (Path(exprune_cli.__file__).parent / "report.schema.json").read_text(encoding="utf-8")
    content = json.loads(text)
    parts = [
        "# JSON report",
        content["description"],
        "The schema is the file `report.schema.json` of the package; the tests check reports against it.",
        "| key | type | meaning |\n| --- | --- | --- |\n" + "\n".join(_keys(content, "", content)),
        f'??? note "Schema"\n\n    ```json\n{_indented(text.strip())}\n    ```',
    ]
    return "\n\n".join(parts) + "\n"


def _keys(node: dict[str, Any], prefix: str, root: dict[str, Any]) -> Iterator[str]:
    for key, value in node.get("properties", {}).items():
        value = _resolved(value, root)
        kind = value.get("type", "")
        kind = " or ".join(kind) if isinstance(kind, list) else kind or json.dumps(value.get("const", ""))
        name = f"{prefix}{key}"
        yield f"| `{name}` | {kind} | {value.get('description', '')} |"
        yield from _keys(value, f"{name}.", root)
        if "items" in value:
            yield from _keys(_resolved(value["items"], root), f"{name}[].", root)


def _resolved(value: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    for choice in (value, *value.get("anyOf", ()), *value.get("oneOf", ())):
        if "$ref" in choice:
            found: Any = root
            for step in choice["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            return {**found, **{k: v for k, v in value.items() if k == "description"}}
    return value


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").splitlines()[0].rstrip(".")


def _text(module: ModuleType, *, skip_title: bool = False) -> str:
    """A module's docstring as Markdown: tables and literal blocks as they are, roles as code."""
    text = inspect.cleandoc(module.__doc__ or "")
    if skip_title:
        text = text.partition("\n")[2].strip()
    return "\n\n".join(_block(block) for block in _blocks(text))


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs; a table is one, and so is a literal block with what announces it."""
    held: list[str] = []
    for block in re.split(r"\n\n+", text):
        if held and block.startswith("    "):
            held.append(block)
            continue
        if held:
            yield "\n\n".join(held)
        held = []
        if block.endswith("::"):
            held = [block]
        else:
            yield block
    if held:
        yield "\n\n".join(held)


def _block(block: str) -> str:
    if block.startswith("==="):
        return f"```text\n{block}\n```"
    head, colons, body = block.partition("::\n\n")
    if colons:
        return f"{_roles(head)}:\n\n```text\n{inspect.cleandoc(body)}\n```"
    # A term with an indented explanation below it.
    return re.sub(r"^(\S.*)\n {4}(?=\S)", r"\n\1\n:   ", _roles(block), flags=re.MULTILINE).strip()


def _roles(text: str) -> str:
    return re.sub(r":\w+:`[~.]*([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
