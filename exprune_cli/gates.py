"""Bounds that a report has to keep, for builds that must fail when a model leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exprune_cli.errors import GateError, UsageError
from exprune_cli.report_data import Report


@dataclass(frozen=True)
class Bounds:
    """What is demanded; None is no demand.

    Attributes:
        min_saving: Least share of the model's FLOPs that is saved, e.g. 0.2.
        max_drop: Greatest drop of the metric, in its own unit, e.g. 0.01.
        min_speedup: Least speed-up over the baseline, e.g. 1.1.
        min_staged: Least number of staged sites.
    """

    min_saving: float | None = None
    max_drop: float | None = None
    min_speedup: float | None = None
    min_staged: int | None = None

    def check_options(self, *, data: bool, baseline: bool) -> None:
        """Checks, before any work, that what the bounds are about will be known.

        Raises:
            UsageError: A bound needs data or a baseline that are not given, or is no possible value.
        """
        for option, value, low, high in (
            ("--min-saving", self.min_saving, -float("inf"), 1.0),
            ("--max-drop", self.max_drop, -float("inf"), float("inf")),
            ("--min-speedup", self.min_speedup, 0.0, float("inf")),
        ):
            if value is not None and not low <= value < high:
                raise UsageError(f"{option} {value:g} is no possible bound: {_EXAMPLES[option]}")
        if self.max_drop is not None and not (data and baseline):
            raise UsageError("--max-drop needs --data and --baseline: both models are run on samples")
        if self.min_speedup is not None and not (data and baseline):
            raise UsageError("--min-speedup needs --data and --baseline: both models are timed")

    def failure(self, report: Report) -> GateError | None:
        """The error of a report that leaves a bound; it says for each which, the value, and what to do."""
        broken = list(self._broken(report))
        return GateError(f"{report.model}: {'; '.join(broken)}") if broken else None

    def check(self, report: Report) -> None:
        """Checks a report.

        Raises:
            GateError: It leaves a bound.
        """
        error = self.failure(report)
        if error is not None:
            raise error

    def _broken(self, report: Report) -> Iterator[str]:
        totals = report.totals
        saved = totals.flops_reduction if report.optimized else 0.0
        if self.min_staged is not None and len(report.staged) < self.min_staged:
            yield (
                f"{len(report.staged)} staged sites are fewer than --min-staged {self.min_staged}: "
                "see in the report why sites stay dense"
            )
        if self.min_saving is not None and saved is None:
            yield "it is not known what is saved, and --min-saving asks: give --data to measure it"
        elif self.min_saving is not None and saved is not None and saved < self.min_saving:
            yield (
                f"{saved:.2%} of FLOPs saved is below --min-saving {self.min_saving:g}: optimise again with more "
                "samples or a larger drop, or lower the bound"
            )
        drop = report.fidelity.drop if report.fidelity is not None else None
        if self.max_drop is not None and drop is None:
            yield "no metric fits the outputs, and --max-drop asks for its drop: give labels in the data"
        elif self.max_drop is not None and drop is not None and drop > self.max_drop:
            metric = report.fidelity.metric if report.fidelity is not None else "metric"
            yield (
                f"{metric} drops by {drop:.4g}, more than --max-drop {self.max_drop:g}: optimise again with a "
                "smaller --max-drop, or raise the bound"
            )
        if self.min_speedup is not None and totals.speedup is None:
            yield "no speed-up was measured, and --min-speedup asks for it: give --data and --baseline"
        elif (
            self.min_speedup is not None and totals.speedup is not None and totals.speedup < self.min_speedup
        ):
            hint = "the native runtime is missing here" if report.runtime == "function" else "times are noisy"
            yield (
                f"{totals.speedup:.3g}x as fast is below --min-speedup {self.min_speedup:g} ({hint}): optimise for "
                "this machine, or lower the bound"
            )


_EXAMPLES = {
    "--min-saving": "give a share below 1, e.g. 0.2",
    "--max-drop": "give a number, e.g. 0.01",
    "--min-speedup": "give 0 or more, e.g. 1.1",
}
