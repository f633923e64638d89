"""The architecture page's picture is what the imports say, and the steps go one way."""

from __future__ import annotations

from itertools import combinations

import pytest

from docs.pictures.architecture import TARGET, draw, part_graph
from docs.pictures.imports import cycles, import_graph

#: The way of a model through the program; none may use a later one, directly or not.
WAY = ("graph", "match", "rewrite", "measure", "search", "pipeline", "Python API", "commands")
STATISTICS = ("samples", "observe", "plan", "rewrite")


def test_no_module_imports_itself_by_a_detour() -> None:
    assert cycles(import_graph()) == []


def test_a_cycle_would_be_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]


def test_no_part_uses_itself_by_a_detour() -> None:
    assert cycles(part_graph(import_graph())) == []


@pytest.mark.parametrize(("early", "late"), [*combinations(WAY, 2), *combinations(STATISTICS, 2)])
def test_no_step_reaches_back(early: str, late: str) -> None:
    uses = part_graph(import_graph())
    reached, todo = set(), [early]
    while todo:
        for other in uses[todo.pop()] - reached:
            reached.add(other)
            todo.append(other)
    assert late not in reached


def test_the_committed_picture_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == draw(), "run: python -m docs.pictures.architecture"
