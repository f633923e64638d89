"""The library with sanitizers: addresses, undefined behaviour and races.

That a race is found was tried once: without ScratchPool's lock the thread sanitizer's run ends with a report.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from . import sanitizers
from .conftest import ISAS
from .fuzz import fuzz


def library_with(kind: str, tmp_path_factory) -> str:
    """The library with a sanitizer, or skips."""
    if not sanitizers.preload(kind):
        pytest.skip(f"needs a native Linux compiler with the {kind} sanitizer")
    return str(sanitizers.build(kind, tmp_path_factory.mktemp(kind) / "exprune.so"))


@pytest.fixture(scope="module")
def address_library(tmp_path_factory) -> str:
    """With the address and the undefined behaviour sanitizer."""
    return library_with("address", tmp_path_factory)


@pytest.fixture(scope="module")
def thread_library(tmp_path_factory) -> str:
    """With the thread sanitizer."""
    return library_with("thread", tmp_path_factory)


def drive(kind: str, library: str, isa: str | None = None) -> None:
    """Runs the driver in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.sanitizer_driver", kind, library],
        check=False,
        cwd=sanitizers.ROOT,
        env=sanitizers.environment(library, isa),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("isa", ISAS)
def test_addresses(address_library, isa):
    drive("address", address_library, isa)


def test_addresses_of_broken_calls(address_library):
    counts, faults = fuzz(address_library, 1, first=2 * 10**6, batch=240)
    assert not faults, "\n".join(faults)
    assert sum(counts.values()) >= 240


def test_races(thread_library):
    drive("thread", thread_library)
