"""How the matrix tells a value right at a limit from a fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import exprune_cli
from tests.compatibility.agreement import compare, outputs_at_first

SITES = (("first", False), ("second", True))


def test_the_native_runtime_and_the_functions_agree(staged_files: dict[str, tuple[Path, Path]]) -> None:
    model, data = staged_files["digits_resnet"]
    seen = compare(str(model), data, str(exprune_cli.runtime_library()), count=4)
    assert seen.samples >= 4
    assert seen.different == 0
    assert seen.relative <= 1e-5
    assert seen.outputs_at_first <= 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([9, 5], [7, 100, 200], None),
        ([9, 3], [4, 100, 200], 2),
        ([9, 5], [4, 100, 200], 3),
        ([9, 5], [7, 100, 150], 0),
    ],
    ids=["same", "the first site alone counts", "at the second", "work alone is rounding"],
)
def test_the_first_site_that_differs_is_what_counts(
    first: list[int], second: list[int], expected: int | None
) -> None:
    native = [np.array([9, 5]), np.array([7, 100, 200])]
    assert outputs_at_first(native, [np.array(first), np.array(second)], SITES) == expected
