"""Models staged by hand and data in memory, for tests of measuring and reporting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from exprune_cli.match import match
from exprune_cli.model import Model, load
from exprune_cli.record import Record, write_record
from exprune_cli.rewrite import refusal_records, rewrite
from exprune_cli.sites import Site, SitePlan


def plan_threshold(
    site: Site, limit: float = 0.0, pruned: tuple[float, ...] | None = (0.25, 0.5)
) -> SitePlan:
    """Natural order, checks after a quarter and half of the groups: prune what is below ``limit``."""
    ends = (max(1, site.groups // 4), max(2, site.groups // 2), site.groups)
    ones = np.ones((2, site.outputs), np.float32)
    if site.kind == "argmax":
        parameters = {"scale": ones, "shift": ones * 0, "margin": ones * np.float32(max(0.5, -limit))}
    else:
        parameters = {"scale": ones, "limit": ones * np.float32(limit)}
    order = np.arange(site.groups)
    return SitePlan(site.name, True, "by hand", "prefix", "threshold", order, ends, parameters, pruned=pruned)


def stage(
    source: Model, limit: float = 0.0, only: str = "", pruned: tuple[float, ...] | None = (0.25, 0.5)
) -> onnx.ModelProto:
    """All sites of a model (or the one named) staged with :func:`plan_threshold`."""
    matches = match(source)
    plans = {
        site.name: plan_threshold(site, limit, pruned)
        if not only or site.name == only
        else SitePlan(site.name, False, "left dense by hand")
        for site in matches.sites
    }
    proto, sites = rewrite(source, matches.sites, plans)
    records = sites + refusal_records(matches.refusals)
    write_record(proto, Record("exprune test", source.sha256, "flops", "threshold", records))
    return proto


def staged_model(source: onnx.ModelProto, **options: object) -> Model:
    """:func:`stage` on a ModelProto, loaded."""
    return load(stage(load(source), **options))  # type: ignore[arg-type]


@dataclass
class Batch:
    """As :class:`exprune_cli.data.Batch`."""

    feeds: dict[str, np.ndarray]
    label: np.ndarray | None
    count: int
    ids: np.ndarray
    where: str


class Samples:
    """A data set in memory, as :class:`exprune_cli.data.DataSet`: one array per input."""

    def __init__(self, labels: np.ndarray | None = None, **arrays: np.ndarray) -> None:
        self.arrays, self.labels = arrays, labels
        self.has_labels = labels is not None
        self.groups = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, batch_size: int = 1) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            feeds = {name: array[part] for name, array in self.arrays.items()}
            label = None if self.labels is None else self.labels[part]
            count = len(next(iter(feeds.values())))
            yield Batch(
                feeds, label, count, np.arange(start, start + count, dtype=np.uint64), f"sample {start}"
            )
