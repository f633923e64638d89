"""Every model that onnx ships for its backend tests, and silero-vad's, goes through ``optimize`` unharmed.

Complete: ``pytest -m corpus``. In the default run: every so many-th model, and all with a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.corpus.checks import Counts, check_all
from tests.corpus.sources import KINDS, Item, items
from tests.pypi_models.silero import silero_feeds, silero_files

_STEP = 25
Check = Callable[..., Counts]


@pytest.fixture
def check(tmp_path: Path, record_property: Callable[[str, object], None]) -> Check:
    """Runs models through all forms; the counts go to the summary."""

    def run(name: str, models: Iterable[Item], forms: dict[str, dict[str, Any]] | None = None) -> Counts:
        counts = check_all(models, tmp_path, forms)
        record_property("corpus", f"{name}: {counts}")
        assert counts.models
        assert not counts.failures, "\n".join(counts.failures)
        return counts

    return run


@pytest.mark.corpus
@pytest.mark.parametrize("kind", KINDS)
def test_complete(kind: str, check: Check) -> None:
    counts = check(kind, items(kind))
    assert counts.staged or kind == "simple"


@pytest.mark.parametrize("kind", KINDS)
def test_sampled(kind: str, check: Check) -> None:
    check(f"{kind} (sampled)", items(kind, _STEP))


def test_timed(check: Check) -> None:
    """The default form takes times on this machine."""
    check("pytorch-operator (timed)", items("pytorch-operator", _STEP), {"timed": {}})


def test_silero_vad(check: Check, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = silero_files(tmp_path_factory.mktemp("silero"))
    models = [
        Item(name, partial(onnx.load, path), lambda path=path: [silero_feeds(path)])
        for name, path in files.items()
    ]
    assert check("silero-vad", models).staged
