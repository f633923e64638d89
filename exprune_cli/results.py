"""What the Python interface returns: the steps' plain data, with what people do with it.

``to_dict()`` is the commands' JSON object, ``save()`` writes a file whole or not at all, and notebooks
show a summary.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exprune_cli import report_data, sites
from exprune_cli.errors import ExpruneError, UsageError
from exprune_cli.extent import Extent
from exprune_cli.paths import PathLike, check_output
from exprune_cli.progress import counting

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

    from exprune_cli.progress import Progress
    from exprune_cli.record import Record

_Kind = TypeVar("_Kind")


@dataclass(repr=False)
class Certificate(report_data.Certificate):
    """What is certified of a model: its drop stays within ``max_drop`` on data from the same source."""

    def to_dict(self) -> dict[str, object]:
        """The ``certificate`` of the JSON report."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        from exprune_cli.render import number, percent

        state = {True: "holds", False: "does not hold", None: "not decided"}[self.holds]
        sure = percent(self.confidence, 2)
        basis = "samples unknown" if self.samples is None else Extent(self.samples, self.groups).text
        return f"<Certificate: drop <= {number(self.max_drop)} at {sure} confidence {state}, {basis}>"

    def _repr_html_(self) -> str:
        from exprune_cli.notebook import as_table

        return as_table(repr(self).strip("<>"), self.to_dict())


@dataclass(repr=False)
class Report(report_data.Report):
    """What a model's sites are, what they cost and what they are worth."""

    def to_dict(self) -> dict[str, object]:
        """The object that ``exprune report --format json`` prints: see ``report.schema.json``."""
        return self.as_json()

    def check(
        self,
        *,
        min_saving: float | None = None,
        max_drop: float | None = None,
        min_speedup: float | None = None,
        min_staged: int | None = None,
    ) -> None:
        """Demands bounds, as the options of ``exprune report`` do: see :class:`exprune_cli.gates.Bounds`.

        Raises:
            GateError: The report leaves one of them.
        """
        from exprune_cli.gates import Bounds

        Bounds(min_saving, max_drop, min_speedup, min_staged).check(self)

    def save(self, path: PathLike) -> None:
        """Writes the report as its name says: ``.json``, ``.html``, or ``.txt`` for the table.

        Raises:
            UsageError: It has another ending.
            ExpruneError: The file cannot be written.
        """
        from exprune_cli import page, render

        forms = {".json": render.to_json, ".html": page.to_html, ".txt": render.to_table}
        suffix = Path(path).suffix.lower()
        if suffix not in forms:
            raise UsageError(f"{os.fspath(path)}: a report is written as {', '.join(forms)}: name it so")
        check_output(path, {})
        _write((forms[suffix](self).rstrip("\n") + "\n").encode(), path)

    def __repr__(self) -> str:
        from exprune_cli.render import headline

        parts = [headline(self), *_summary(self).values()]
        return f"<Report of {', '.join(parts)}>"

    def __str__(self) -> str:
        """The table that ``exprune report`` prints."""
        from exprune_cli.render import to_table

        return to_table(self)

    def _repr_html_(self) -> str:
        from exprune_cli.notebook import report_fragment

        return report_fragment(self)


@dataclass(repr=False)
class Calibration(sites.Calibration):
    """Statistics of a model's sites over sample data: what ``optimize`` plans with."""

    @classmethod
    def load(cls, path: PathLike) -> Calibration:
        """Reads a file that ``calibrate`` or :meth:`save` wrote.

        Raises:
            ExpruneError: It cannot be read, or is none.
        """
        from exprune_cli.calibration import load_calibration

        return widen(cls, load_calibration(path))

    def save(self, path: PathLike) -> None:
        """Writes the calibration file.

        Raises:
            ExpruneError: The file cannot be written.
        """
        from exprune_cli.calibration import save_calibration

        check_output(path, {})
        save_calibration(self, path)

    def to_dict(self) -> dict[str, object]:
        """What it is of, without the statistics themselves; ``sites`` are the shares of zeros in their inputs."""
        return {
            "model_sha256": self.model_sha256,
            "data_digest": self.data_digest,
            "seed": self.seed,
            "samples": self.samples,
            "groups": None if self.group_ids is None else len(self.group_ids),
            "random": self.random,
            "sites": {name: _zeros(site) for name, site in self.sites.items()},
        }

    def __repr__(self) -> str:
        from exprune_cli.render import plural

        kind = "random sample" if self.random else "sample"
        return f"<Calibration of {plural(len(self.sites), 'site')} from {plural(self.samples, kind)}>"

    def _repr_html_(self) -> str:
        from exprune_cli.notebook import as_table
        from exprune_cli.render import percent

        shares = {name: percent(_zeros(site)) for name, site in self.sites.items()}
        return as_table(f"{repr(self).strip('<>')}: zeros in their inputs", shares)


@dataclass(repr=False)
class Optimized:
    """What ``optimize`` did.

    Attributes:
        report: The report of the new model, without measured parts.
        record: What the new model records of itself.
        model: The new model; the original where nothing was staged.
        staged: How many sites are staged.
        output: Where it was written; None if it was not.
        original: The original's path or bytes, where the new model is its equal; else None.
        weights: Holds the files that the weights of a large model are in, as long as this object is there.
    """

    report: Report
    record: Record
    model: onnx.ModelProto
    staged: int
    output: Path | None
    original: Path | bytes | None = dataclasses.field(default=None, repr=False)
    weights: object = dataclasses.field(default=None, repr=False)

    @property
    def certificate(self) -> Certificate | None:
        """What was certified; None without ``confidence``."""
        found = self.report.certificate
        return widen(Certificate, found) if found is not None else None

    def session(self, sess_options: Any = None, **kwargs: Any) -> InferenceSession:
        """An ONNX Runtime session of the new model, see :func:`exprune_cli.session`."""
        from exprune_cli.runtime import session

        return session(self.model, sess_options, **kwargs)

    def save(self, path: PathLike, progress: Progress | None = None) -> None:
        """Writes the model, whole or not at all; over 2 GB its weights go to ``<name>.data`` beside it.

        Args:
            path: The file.
            progress: Where progress is shown.

        Raises:
            ExpruneError: The file cannot be written.
        """
        from exprune_cli.model import save

        check_output(path, {})
        if self.original is None:
            save(self.model, path, counting(progress, "saving", in_bytes=True))
            return
        try:
            content = self.original if isinstance(self.original, bytes) else self.original.read_bytes()
        except OSError as error:
            raise ExpruneError(f"{self.original!s}: cannot be read ({error.strerror or error})") from None
        _write(content, path)

    def to_dict(self) -> dict[str, object]:
        """The object that ``exprune optimize --format json`` prints."""
        return {**self.report.to_dict(), "output": str(self.output) if self.output is not None else None}

    def __repr__(self) -> str:
        from exprune_cli.render import headline

        parts = [headline(self.report), *_summary(self.report).values()]
        if self.output is not None:
            parts.append(f"written to {self.output}")
        return f"<Optimized {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def widen(kind: type[_Kind], plain: Any) -> _Kind:
    """Plain data as one of the classes here, which add no fields."""
    values = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    certificate = values.get("certificate")
    if kind is Report and certificate is not None:
        values["certificate"] = widen(Certificate, certificate)
    return kind(**values)


def _summary(report: report_data.Report) -> Mapping[str, str]:
    """The known totals, in a few words each."""
    from exprune_cli.render import number, percent

    totals, fidelity = report.totals, report.fidelity
    found = {}
    if report.optimized and totals.flops_reduction is not None:
        found["saved"] = f"{percent(totals.flops_reduction)} of FLOPs saved"
    if totals.speedup is not None:
        found["speedup"] = f"{number(totals.speedup, 3)}x as fast"
    if fidelity is not None and fidelity.drop is not None:
        found["drop"] = f"{fidelity.metric} drops by {number(fidelity.drop)}"
    return found


def _zeros(site: sites.SiteStatistics) -> float | None:
    total = site.elements * len(site.input_zeros)
    return float(site.input_zeros.sum()) / total if total else None


def _write(content: bytes, path: PathLike) -> None:
    from exprune_cli.model import write_bytes

    try:
        write_bytes(content, Path(path))
    except OSError as error:
        raise ExpruneError(f"{os.fspath(path)}: cannot be written ({error.strerror or error})") from None
