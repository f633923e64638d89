"""What an optimised model says of itself: one JSON object in its ``metadata_props``.

``rewrite`` writes it, ``report`` reads it. It holds what cannot be read off the graph: the sites
that stayed dense and why, the expected shares, how the file was made.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field

import onnx

from exprune_cli import __version__
from exprune_cli.errors import ExpruneError
from exprune_cli.plain import from_plain

#: Key in ``ModelProto.metadata_props``.
KEY = "exprune"
SCHEMA_VERSION = 1
#: Ways to stage the model that a file remembers.
MOST_TRIED = 48


@dataclass
class SiteRecord:
    """One site, staged or not. Letters as in :mod:`exprune_cli.sites`.

    Attributes:
        name: The site's name (its linear node in the original model).
        op: ``Gemm``, ``MatMul`` or ``Conv``.
        rule: The rule that matched, or refused.
        kind: ``relu``, ``argmax`` or ``sparse``; None for a refusal.
        staged: Whether it is staged in this file.
        reason: Why, or why not, in one sentence.
        code: Short machine-readable reason of a refusal.
        estimate: ``prefix`` or None.
        test: Name of the test, None where nothing is tested.
        outputs: ``N``.
        groups: ``G``.
        taps: ``T``.
        ends: Cumulative group counts of the chunks.
        node: Name of the staged node in this file (None where dense).
        survivors: Name of its survivors output.
        input: Name of the linear op's data input.
        output: Name of the tensor that the site computes.
        pruned: Expected share of outputs decided at or before each check, ``[S]``.
        parameters: Scalars of the test that people ask for, e.g. ``z`` or ``lost_energy``.
        latency_dense_us: Median time of its dense layer where it was timed, in microseconds.
        latency_us: Median time of its staged form there.
        nonzero: Share of each chunk's weights that are not zero; empty where that is nearly all.
        input_nonzero: Expected share of each chunk's inputs that are not zero, where only those are
            multiplied: the survivors output then also has the multiply-accumulates of each chunk.
    """

    name: str
    op: str
    rule: str
    kind: str | None
    staged: bool
    reason: str
    code: str | None = None
    estimate: str | None = None
    test: str | None = None
    outputs: int | None = None
    groups: int | None = None
    taps: int | None = None
    ends: list[int] = field(default_factory=list)
    node: str | None = None
    survivors: str | None = None
    input: str | None = None
    output: str | None = None
    pruned: list[float] | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    latency_dense_us: float | None = None
    latency_us: float | None = None
    nonzero: list[float] = field(default_factory=list)
    input_nonzero: list[float] = field(default_factory=list)

    @property
    def checks(self) -> int | None:
        """How many of the survivors output's numbers are survivors; None: all."""
        return len(self.ends) - 1 if self.input_nonzero else None


@dataclass
class Record:
    """All that an optimised file records.

    Attributes:
        tool: ``exprune`` and its version.
        source_sha256: Digest of the model it was made from.
        objective: ``latency`` or ``flops``.
        test: The ``--test`` that was asked for.
        sites: In graph order.
        batch: Batch size that dynamic first dimensions were counted with.
        calibration: Digest of the calibration data, or None.
        quality: The verified drop: ``metric``, ``baseline``, ``optimized``, ``drop``,
            ``agreement``, ``samples``, and ``groups`` where samples are in some; None where nothing was verified.
        certificate: See the interface contract; None without one.
        top_k: Outputs that gave way to their K best, see :mod:`exprune_cli.top_k`.
        seed: Of all random choices; None in older files.
        options: Options of ``optimize`` that were given, by their names in Python.
        calibration_samples: How many samples calibrated it; None without, or in older files.
        fused: Operators that took the place of others around the sites, how many of each type; see
            :mod:`exprune_cli.fusion`.
        fused_speedup: By how much these alone made the model faster, where it was made.
        random_data: Whether the samples that calibrated it were random numbers.
        tried: What was tried on held-out samples, see :class:`exprune_cli.report_data.Alternative`; at
            most :data:`MOST_TRIED`.
    """

    tool: str
    source_sha256: str
    objective: str
    test: str
    sites: list[SiteRecord]
    batch: int = 1
    calibration: str | None = None
    quality: dict[str, object] | None = None
    certificate: dict[str, object] | None = None
    top_k: dict[str, int] = field(default_factory=dict)
    seed: int | None = None
    options: dict[str, object] = field(default_factory=dict)
    calibration_samples: int | None = None
    tried: list[dict[str, object]] = field(default_factory=list)
    random_data: bool = False
    fused: dict[str, int] = field(default_factory=dict)
    fused_speedup: float | None = None


def write_record(proto: onnx.ModelProto, record: Record) -> None:
    """Puts ``record`` into ``proto.metadata_props``, in place of an older one."""
    data = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(record)}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    for entry in proto.metadata_props:
        if entry.key == KEY:
            entry.value = text
            return
    proto.metadata_props.add(key=KEY, value=text)


def read_record(proto: onnx.ModelProto) -> Record | None:
    """The record of an optimised model, or None for a model that exprune did not write.

    Raises:
        ExpruneError: The entry is there but cannot be read (edited by hand, newer version).
    """
    text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
    if text is None:
        return None
    try:
        data = json.loads(text)
        version = data.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise ExpruneError(
                f"the model was written by {data.get('tool', 'another exprune')} (record version {version}); "
                f"this is exprune {__version__}, which reads version {SCHEMA_VERSION}: update exprune"
            )
        return _checked(from_plain(Record, data))
    except RecursionError:
        raise ExpruneError(
            f"the model's '{KEY}' metadata cannot be read (nested too deeply): optimise the original again"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExpruneError(
            f"the model's '{KEY}' metadata cannot be read ({error}): optimise the original again"
        ) from error


def _checked(record: Record) -> Record:
    """Checks what the types do not say."""
    from exprune_cli.report_data import Alternative, Certificate, Fidelity

    for kind, value in ((Fidelity, record.quality), (Certificate, record.certificate)):
        if value is not None:
            from_plain(kind, value, ignore_unknown=True)
    for point in record.tried:
        from_plain(Alternative, point, ignore_unknown=True)
    if not 1 <= record.batch < 2**31:
        raise ValueError(f"a batch of {record.batch} samples is not possible")
    if any(k < 1 for k in record.top_k.values()):
        raise ValueError("top_k has a K below 1")
    staged = [site.name for site in record.sites if site.staged]
    if len(set(staged)) < len(staged):
        raise ValueError("two staged sites have one name")
    for site in record.sites:
        sizes = [size for size in (site.outputs, site.groups, site.taps) if size is not None]
        if min([*sizes, *site.ends], default=0) < 0 or not all(map(math.isfinite, site.parameters.values())):
            raise ValueError(f"site '{site.name}' has impossible sizes")
    return record
