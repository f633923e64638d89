"""What a report consists of: plain data, in the units that its JSON form has."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

#: Version of the JSON object, see ``report.schema.json``.
SCHEMA_VERSION = 1


@dataclass
class Spread:
    """Quantiles of a number over runs of a model, one sample each where the model takes single samples.

    Attributes:
        least: The smallest value.
        p5: Of twenty values about one is below.
        p25: The lower quartile.
        median: The middle.
        p75: The upper quartile.
        p95: Of twenty values about one is above.
        most: The largest value.
        runs: How many values there were.
    """

    least: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    most: float
    runs: int


@dataclass
class SiteOutlook:
    """What staging could bring at a site of a model that is not optimised.

    Attributes:
        lossless: Whether its lossless form is expected to be faster, so that no data is needed to optimise
            it; None where that depends on activations that were not seen.
        zeros: Share of its work that no result depends on: outputs that its ReLU makes zero, classes that
            do not win, inputs that are zero. None without data (but for heads).
        flops_limit: FLOPs that would be left if exactly that work were skipped, and in Convs what multiplies a zero.
        flops_expected: FLOPs that a plan from the data is expected to spend; None without data.
    """

    lossless: bool | None
    zeros: float | None = None
    flops_limit: float | None = None
    flops_expected: float | None = None


@dataclass
class Outlook:
    """What could be gained at a model that is not optimised, and what is needed for it.

    Attributes:
        basis: ``weights``, or ``data`` where activations were looked at.
        samples: Samples that were looked at; None without data.
        sites: Places that can be staged.
        share: Their share of the model's FLOPs; None if unknown.
        weights_share: Their share of the linear operators' weights.
        reduction_limit: Share of the model's FLOPs that could be skipped at most with no result changed; None where unknown.
        reduction_expected: Share that is expected to be, at a small loss; None where unknown.
        findings: What was found, in sentences.
        needs: What would bring more, in sentences.
    """

    basis: str
    samples: int | None
    sites: int
    share: float | None
    weights_share: float | None
    reduction_limit: float | None
    reduction_expected: float | None
    findings: list[str]
    needs: list[str]


@dataclass
class RefusalGroup:
    """Linear operators that stay dense for the same reason.

    Attributes:
        code: Short machine-readable reason.
        reason: The reason, for all of them.
        advice: What could be done about it; empty where nothing can.
        sites: Their names, in graph order.
        share: Their share of the model's FLOPs; None if unknown.
    """

    code: str
    reason: str
    advice: str
    sites: list[str]
    share: float | None


@dataclass
class Alternative:
    """A way to stage the model that was tried on held-out samples when the file was made.

    Attributes:
        flops_reduction: Share of the model's FLOPs that it saved there; None if unknown.
        drop: Mean drop of the metric there.
        upper: Upper limit of the drop at 95 %; None where one sample gives none.
        p_value: Of "the drop is larger than allowed"; None where no certificate was asked for.
        passed: Whether it was within what was allowed.
        chosen: Whether it is the one in the file.
        staged: How many sites it staged.
    """

    flops_reduction: float | None
    drop: float
    upper: float | None
    p_value: float | None
    passed: bool
    chosen: bool
    staged: int


@dataclass
class Origin:
    """How an optimised file was made.

    Attributes:
        tool: ``exprune`` and its version.
        source_sha256: SHA-256 of the model it was made from.
        objective: ``latency`` or ``flops``.
        test: The test that was used.
        batch: The batch size that it is meant for.
        seed: Seed of all random choices; None in files that do not say.
        options: Options that were given, by their names in Python.
        calibration: Digest of the samples that calibrated it; None without.
        calibration_samples: How many there were; None without, or in files that do not say.
        random_data: Whether they were random numbers, and say nothing of real data.
        top_k: Outputs that gave way to their K best.
        fused: Operators that took the place of others around the sites, how many of each type.
        fused_speedup: By how much these alone made the model faster where it was made; None without.
    """

    tool: str
    source_sha256: str
    objective: str
    test: str
    batch: int
    seed: int | None
    options: dict[str, object]
    calibration: str | None
    calibration_samples: int | None
    random_data: bool
    top_k: dict[str, int]
    fused: dict[str, int]
    fused_speedup: float | None


@dataclass
class Environment:
    """What made this report.

    Attributes:
        exprune: Version.
        onnxruntime: Version.
        onnx: Version.
        kernels: Instruction set of the native kernels; None without the native runtime.
    """

    exprune: str
    onnxruntime: str
    onnx: str
    kernels: str | None


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
        code: Short machine-readable reason of a dense one; None where staged, or not optimised yet.
        flops_estimate: Of ``flops``, what goes to the estimate and the tests of a staged site; the rest
            finishes what they left open. None where dense or unknown.
        spread: Of ``pruned`` over single runs; None where it was not measured.
        outlook: What it could bring, for a site of a model that is not optimised.
        weights: Entries of its constant weight, whose multiply-accumulates every row or position takes;
            None where the weight is computed.
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
    code: str | None = None
    flops_estimate: float | None = None
    spread: Spread | None = None
    outlook: SiteOutlook | None = None
    weights: int | None = None


@dataclass
class Totals:
    """The whole model, staged or not.

    FLOPs are per sample with data, and per run at batch 1 without (dynamic first dimensions of
    inputs are set to 1). ``flops_reduction`` is ``1 - flops / flops_dense``. Latencies are
    medians per run, ``speedup`` is the median of the paired ratios. ``flops_reduction_spread`` is that of
    ``flops_reduction`` over single runs, where it was measured.
    """

    flops_dense: float | None = None
    flops: float | None = None
    flops_reduction: float | None = None
    int8_macs: float | None = None
    latency_dense_ms: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    flops_reduction_spread: Spread | None = None


@dataclass
class Fidelity:
    """What the results are worth: the mean metric of both models, and how often they agree.

    Over ``groups``, where ``samples`` are in groups: a group counts once, with its mean.
    """

    metric: str | None = None
    baseline: float | None = None
    optimized: float | None = None
    drop: float | None = None
    agreement: float | None = None
    samples: int | None = None
    groups: int | None = None


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
        groups: Groups that the samples are of: what was counted; None where each sample was.
    """

    max_drop: float | None = None
    confidence: float | None = None
    holds: bool | None = None
    samples: int | None = None
    p_value: float | None = None
    data_digest: str | None = None
    checked: bool = False
    drop: float | None = None
    groups: int | None = None


@dataclass
class Histogram:
    """How often times fell between two edges; the last bin also has all above.

    Attributes:
        edges_ms: Rising, one more than there are bins.
        dense: Runs of the baseline by bin; None without a baseline.
        optimized: Runs of the model by bin.
    """

    edges_ms: list[float]
    dense: list[int] | None
    optimized: list[int]


@dataclass
class Timing:
    """How latencies were taken, see :class:`exprune_cli.measure.Latency`, and how they are spread.

    Times of ``dense`` (None without a baseline) and ``optimized`` are in milliseconds.
    """

    threads: int
    batch: int | None
    runs: int
    binding: str
    dense: Spread | None = None
    optimized: Spread | None = None
    histogram: Histogram | None = None


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
        alternatives: What was tried when the file was made, from the safest to the boldest.
        refusals: The dense sites by reason, the largest share of the work first.
        outlook: What could be gained; None for an optimised model.
        origin: How the file was made; None for a model that is not optimised.
        environment: What made this report; None where that is not known.
        baseline: Path of the baseline, as it was given; None without one in a file.
        data: Path of the samples, as it was given; None without any in files.
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
    alternatives: list[Alternative] = field(default_factory=list)
    refusals: list[RefusalGroup] = field(default_factory=list)
    outlook: Outlook | None = None
    origin: Origin | None = None
    environment: Environment | None = None
    baseline: str | None = None
    data: str | None = None
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
