"""What a report consists of: plain data, in the units that its JSON form has."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

#: Version of the JSON object, see ``report.schema.json``.
SCHEMA_VERSION = 1


@dataclass
class SiteReport:
    """One linear operator of the model. Units as in :class:`Totals`.

    Attributes:
        name: The site's name.
        op: ``Gemm``, ``MatMul``, ``Conv``, or another linear operator.
        rule: The rule that found it, or that refused it; None if no rule looked at it.
        staged: Whether it is staged in this file.
        reason: Why, or why not, in one sentence.
        estimate: Kind of estimate, None without one.
        test: Kind of test, None without one.
        flops_dense: FLOPs of the dense layer.
        flops: FLOPs spent, tests included: measured with data, expected without.
        pruned: Share of the site's outputs that its checks decided; for a sparse site the share
            of inputs that are zero; 0 where dense.
        latency_dense_us: Time of the dense layer alone, where it was timed when the file was made.
        latency_us: Time of the staged layer then.
    """

    name: str
    op: str
    rule: str | None
    staged: bool
    reason: str
    estimate: str | None = None
    test: str | None = None
    flops_dense: float | None = None
    flops: float | None = None
    pruned: float | None = None
    latency_dense_us: float | None = None
    latency_us: float | None = None


@dataclass
class Totals:
    """The whole model, staged or not.

    FLOPs are per sample with data, and per run at batch 1 without (dynamic first dimensions of
    inputs are set to 1). ``flops_reduction`` is ``1 - flops / flops_dense``. Latencies are
    medians per run, ``speedup`` is the median of the paired ratios.
    """

    flops_dense: float | None = None
    flops: float | None = None
    flops_reduction: float | None = None
    int8_macs: float | None = None
    latency_dense_ms: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None


@dataclass
class Fidelity:
    """What the results are worth: the mean metric of both models, and how often they agree."""

    metric: str | None = None
    baseline: float | None = None
    optimized: float | None = None
    drop: float | None = None
    agreement: float | None = None
    samples: int | None = None


@dataclass
class Certificate:
    """What was certified when the file was made: the drop stays within ``max_drop``.

    Attributes:
        max_drop: The largest drop that was allowed.
        confidence: At which confidence.
        holds: Whether it holds: as recorded, or on new data where it was checked again; None where
            new data exceed ``max_drop`` by no more than chance explains.
        samples: Samples that it rests on: the recorded ones, or the new ones where it was checked.
        p_value: Of the recorded test.
        data_digest: Of the samples that it was made with.
        checked: Whether :func:`check_certificate` checked it on new data.
        drop: The mean drop on the new data.
    """

    max_drop: float | None = None
    confidence: float | None = None
    holds: bool | None = None
    samples: int | None = None
    p_value: float | None = None
    data_digest: str | None = None
    checked: bool = False
    drop: float | None = None


@dataclass
class Timing:
    """How latencies were taken: see :class:`exprune_cli.measure.Latency`."""

    threads: int
    batch: int | None
    runs: int
    binding: str


@dataclass
class Report:
    """A report; its JSON form is described by ``report.schema.json``.

    Attributes:
        model: Path of the model, or ``<memory>``.
        sites: All linear operators, staged or not, in graph order.
        totals: The whole model.
        fidelity: Measured with data; otherwise what was verified when the file was made; else None.
        certificate: As the file records it, or None.
        optimized: Whether exprune made the file.
        runtime: How staged sites ran, ``native`` or ``function``; None without any.
        samples: Samples that FLOPs were measured on; None where they are expected values.
        timing: How latencies were taken; None if they were not.
        notes: Things to know when reading the numbers.
        schema_version: Of the JSON object.
    """

    model: str
    sites: list[SiteReport]
    totals: Totals
    fidelity: Fidelity | None = None
    certificate: Certificate | None = None
    optimized: bool = False
    runtime: str | None = None
    samples: int | None = None
    timing: Timing | None = None
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def staged(self) -> list[SiteReport]:
        """The staged sites."""
        return [site for site in self.sites if site.staged]

    def as_json(self) -> dict[str, object]:
        """The report as plain data; numbers that are unknown or not finite are None."""
        plain = {"schema_version": self.schema_version, **dataclasses.asdict(self)}
        return {key: _finite(value) for key, value in plain.items()}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
