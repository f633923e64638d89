"""What is checked of every model of the corpus, and the counts."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from exprune_cli import api
from exprune_cli.runtime import session as native_session
from tests.corpus.sources import Item

#: Options of ``optimize`` that every model is tried with.
FORMS: dict[str, dict[str, Any]] = {
    "default": {"measure": False},
    "bound": {"objective": "flops", "test": "bound"},
    "stats": {"objective": "flops", "test": "stats"},
}
#: Rounding of sums in another order, relative to a result's largest value; deep networks add some up.
_TOLERANCE = 2e-5


@dataclass
class Counts:
    """What happened to a part of the corpus.

    Attributes:
        models: Models tried.
        runs: Times that ``optimize`` ran.
        staged: Models in which a site was staged, in one form at least.
        sites: Sites staged in the ``bound`` form.
        refused: Linear layers left dense there, by reason.
        without: Models that have no linear layer.
        not_run: Models that ONNX Runtime does not run, or that Python cannot feed.
        failures: One text each.
    """

    models: int = 0
    runs: int = 0
    staged: int = 0
    sites: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    without: int = 0
    not_run: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = ", ".join(f"{code} {count}" for code, count in sorted(self.refused.items()))
        return (
            f"{self.models} models tried ({self.runs} runs), {self.staged} staged ({self.sites} sites), "
            f"{self.without} without a linear layer, layers refused: {reasons or 'none'}; "
            f"not run by ONNX Runtime: {self.not_run}, failed: {len(self.failures)}"
        )


def check_all(items: Iterable[Item], folder: Path, forms: dict[str, dict[str, Any]] | None = None) -> Counts:
    """Runs every model through ``optimize`` in every form."""
    counts = Counts()
    for item in items:
        counts.models += 1
        try:
            _check(item, folder, counts, FORMS if forms is None else forms)
        except Exception as error:  # noqa: BLE001  every failure is counted
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            counts.failures.append(f"{item.name}: {text} ({Path(where.filename).name}:{where.lineno})")
    return counts


def _check(item: Item, folder: Path, counts: Counts, forms: dict[str, dict[str, Any]]) -> None:
    original = item.load()
    source, target = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(original.SerializeToString())
    feeds = item.feeds()
    wanted = [_run(source, feed, native=False) for feed in feeds]
    runs = bool(wanted) and all(values is not None for values in wanted)
    counts.not_run += not runs
    staged = False
    for form, options in forms.items():
        target.unlink(missing_ok=True)
        done = api.optimize(source, target, **options)
        counts.runs += 1
        if form == "bound":
            counts.sites += done.staged
            counts.refused.update(site.code for site in done.record.sites if not site.staged and site.code)
            counts.without += not done.record.sites
        if not done.staged:
            assert target.read_bytes() == source.read_bytes(), f"{form}: nothing staged, and not the same"
            continue
        staged = True
        result = onnx.load(target)
        check_valid(original, target)
        _same_interface(original, result)
        for feed, before in zip(feeds, wanted, strict=True):
            if before is None:
                continue
            for native in (True, False):
                after = _run(target, feed, native)
                assert after is not None, f"{form}: it does not run any more (native runtime: {native})"
                _compare(before, after, form, item.single)
    counts.staged += staged


def check_valid(original: onnx.ModelProto, target: Path) -> None:
    """The full checker passes the new model, where it passes the original."""
    try:
        onnx.checker.check_model(original, full_check=True)
    except Exception:  # noqa: BLE001  it raises several unrelated types
        onnx.checker.check_model(str(target))
        return
    onnx.checker.check_model(str(target), full_check=True)


def _same_interface(original: onnx.ModelProto, result: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in original.graph.initializer}
    before = [value for value in original.graph.input if value.name not in constants]
    assert [v for v in result.graph.input if v.name not in constants] == before
    assert list(result.graph.output) == list(original.graph.output)


def _run(path: Path, feeds: dict[str, Any], native: bool) -> list[Any] | None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = native_session(path, options, use_runtime=native)
        return session.run(None, feeds)
    except Exception:  # noqa: BLE001  ONNX Runtime has a type for every status, pybind others
        return None


def _compare(before: list[Any], after: list[Any], form: str, single: bool) -> None:
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        if not isinstance(a, np.ndarray):
            assert type(a) is type(b) and (not isinstance(a, list) or len(a) == len(b)), form
            continue
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{form}: {b.shape} {b.dtype}, not {a.shape} {a.dtype}"
        )
        if a.dtype.kind != "f":
            assert form == "stats" or np.array_equal(a, b), f"{form}: other results"
            continue
        scale = np.abs(a[np.isfinite(a)]).max(initial=0)
        near = np.isclose(b, a, rtol=_TOLERANCE, atol=_TOLERANCE * float(scale), equal_nan=True)
        if form == "stats":
            # A pruned output is 0; what else the test changes follows from that.
            near |= (b == 0) if single else np.isfinite(b) | ~np.isfinite(a)
        assert near.all(), f"{form}: off by {np.abs(a - b)[~near].max():.3g} of {scale:.3g}"
