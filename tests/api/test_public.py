"""The public names, and the examples in their documentation."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import exprune_cli
from exprune_cli import api, results
from exprune_cli.errors import ExpruneError


def test_every_public_name_is_there_once() -> None:
    homes = [name for names in exprune_cli._HOMES.values() for name in names]
    assert sorted(homes) == sorted(exprune_cli.__all__)
    for name in exprune_cli.__all__:
        assert getattr(exprune_cli, name).__doc__
        assert name in (exprune_cli.__doc__ or "")
    assert set(exprune_cli.__all__) <= set(dir(exprune_cli))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        exprune_cli.optimise  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("module", [api, results])
def test_the_examples_hold(module: object, folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    found = doctest.testmod(module, extraglobs={"images": images, "labels": labels})  # type: ignore[arg-type]
    assert found.failed == 0
    assert found.attempted > 0 or module is results


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, exprune_cli, exprune_cli.cli; "
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'scipy', 'olive') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("try --max-drop 0.02 or give more", "try max_drop=0.02 or give more"),
        ("--max-drop needs --data: samples", "max_drop needs data: samples"),
        ("--top-k logits=5: give OUTPUT=K", "top_k logits=5: give OUTPUT=K"),
        ("leave --no-measure out", "leave measure=False out"),
        ("below --min-speedup 1e+06 (", "below min_speedup=1e+06 ("),
        ("my--data.onnx: no such file", "my--data.onnx: no such file"),
    ],
)
def test_messages_name_parameters_in_python_and_options_on_the_command_line(
    message: str, expected: str
) -> None:
    error = ExpruneError(message)
    assert (str(error), error.command_line) == (expected, message)
