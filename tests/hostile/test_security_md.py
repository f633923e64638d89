"""SECURITY.md names tests and numbers: they are there, and the numbers are the code's."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from exprune_cli import interrupts, never_slower, reporting, shapes, structure

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def test_every_promise_names_a_test() -> None:
    promises = TEXT.split("## What is promised")[1].split("## ")[0].splitlines()
    rows = [
        line for line in promises if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
    ]
    assert len(rows) > 10
    assert [row for row in rows if "::test_" not in row] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_named_tests_exist(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_numbers_are_those_of_the_code() -> None:
    for label, value in {
        "subgraphs inside subgraphs": f"{structure.MAX_NESTING} levels",
        "functions that call functions": f"{structure.MAX_CALL_DEPTH} levels",
        "nodes, functions inlined": f"{structure.MAX_NODES:,}",
        "types inside types": f"{structure.MAX_TYPE_DEPTH} levels",
        "dimensions of a tensor, elements of a tensor": f"{structure.MAX_RANK}, 2^{structure.MAX_SIZE.bit_length() - 1}",
        "constants and sizes joined by `Concat`": f"2^{structure.MAX_SHAPE_SUM.bit_length() - 1}",
        "memory of one shape inference": (
            f"{shapes._MEMORY >> 30} GiB, and {shapes._MEMORY_PER_BYTE} bytes for each byte of the model without "
            "its weights"
        ),
        "a trial run on made-up inputs": f"{never_slower._TRIAL_SECONDS:g} s",
        "from a signal to the end of the process": f"{interrupts._GRACE:g} s",
    }.items():
        assert f"| {label} | {value} |" in TEXT
    assert reporting._ZEROS_SECONDS == never_slower._TRIAL_SECONDS
