"""One combination of the matrix: ``pytest -m matrix``. All of them: ``python -m tests.compatibility.matrix``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compatibility.matrix import MATRIX, outcomes, pythons


@pytest.mark.matrix
def test_the_wheel_of_the_sdist_works_on_the_oldest_onnxruntime(tmp_path: Path) -> None:
    found = list(outcomes(tmp_path, short=True))
    assert [outcome.problem for outcome in found] == [None]


def test_the_running_python_is_found() -> None:
    found = pythons()
    assert found and set(found) <= set(MATRIX)
