"""A short round of every target with fixed seeds, and the inputs that once failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS, run_one

#: Inputs of a short round: some seconds together.
ROUND = {"model": 20, "calibration": 60, "data": 150, "record": 40, "options": 40}

#: Seeds that found something, by what it was.
FOUND = {
    "a staged node whose weight is a vector": ("model", 522889),
    "a tensor in segments, which nothing reads": ("model", 523270),
    "two staged sites with one name in a record": ("record", 130985),
    "a call with more inputs than its function has": ("model", 130301),
    "an input without a type, for which random numbers were to be made": ("model", 242),
    "an ArgMax with keepdims = -1": ("model", 20006420),
    "a NumPy header with a bracket left open, in a calibration file": ("calibration", 273),
    "a NumPy header with a bracket left open, in sample data": ("data", 1833),
}


@pytest.mark.parametrize("target", TARGETS)
def test_short_round(target: str, tmp_path: Path) -> None:
    for seed in range(ROUND[target]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            run_one(target, seed, folder)
        except Exception as error:  # noqa: BLE001
            pytest.fail(
                f"python -m tests.fuzz --target {target} --seed {seed}: {type(error).__name__}: {error}"
            )


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str, tmp_path: Path) -> None:
    target, seed = FOUND[name]
    run_one(target, seed, tmp_path)


def test_the_driver_finds_crashes_hangs_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver itself: a child that dies, one that hangs, one input that fails."""
    import tests.fuzz.__main__ as driver

    monkeypatch.setattr(driver, "_INPUT_SECONDS", 2.0)
    monkeypatch.chdir(Path(__file__).parents[2])
    done = fuzz("self-test", 9.0, 0, say=False)
    found = " ".join(done.failures)
    assert "FAIL 1 exit -11" in found and "FAIL 2 hang" in found and "FAIL 3 AssertionError" in found, found
