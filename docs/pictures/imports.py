"""The import graph of the package, read from its sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "exprune_cli"

Graph = dict[str, set[str]]


@cache
def import_graph() -> Graph:
    """What every module imports of the package, by names without the package's own (``planning.relu``).

    Imports inside functions count; those for type checkers alone do not. The rules are imported by
    name (:data:`exprune_cli.rules.ORDER`): the package ``rules`` stands for them all.
    """
    sources = _sources()
    graph: Graph = {}
    for module, path in sources.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {_known(name, sources) for name in _imports(tree, module, path.name == "__init__.py")}
        graph[module] = {name for name in found if name is not None} - {module}
    graph["rules"] |= {module for module in graph if module.startswith("rules.") and "._" not in module}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """A cycle for every edge that closes one, each as the modules along it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for other in sorted(graph[module]):
            walk(other, [*path, module])
        done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def _sources() -> dict[str, Path]:
    sources = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if parts[0] != "rules":  # the installed package's link to the folder below
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE] = path
    for path in sorted((ROOT / "rules").glob("*.py")):
        sources["rules" if path.stem == "__init__" else f"rules.{path.stem}"] = path
    return sources


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            # "from package import name" takes a module of that name, or else a name of the package.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        yield from _imports(node, module, is_package)


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    own = [PACKAGE, *([] if module == PACKAGE else module.split("."))]
    own = own[: len(own) - node.level + (1 if is_package else 0)]
    return ".".join([*own, *([node.module] if node.module else [])])


def _known(name: str, sources: Mapping[str, Path]) -> str | None:
    if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
        return None
    inner = name.removeprefix(PACKAGE).removeprefix(".")
    while inner and inner not in sources:
        inner = inner.rpartition(".")[0]
    return inner or PACKAGE
