"""Checking a certificate again, on new data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exprune_cli.record import Record
from exprune_cli.report_data import Report

if TYPE_CHECKING:
    from exprune_cli.measure import Measurement


def check_certificate(report: Report, record: Record | None, measured: Measurement) -> None:
    """Checks the certificate of a model on new data, and says so in its report.

    It holds where the mean drop is within what was certified. It does not hold where the drop is
    larger and chance does not explain it: the betting test of :mod:`exprune_cli.certify`, at the
    certificate's own confidence, of the hypothesis that the expected drop is within. Where the new data are in
    groups, these are what is counted.

    Args:
        report: Changed in place; ``certificate.holds`` is what the new data say.
        record: Of the model.
        measured: Per-sample scores of the model and its baseline on the new data.
    """
    found = report.certificate
    if found is None or found.max_drop is None or found.confidence is None:
        return
    from exprune_cli.certify import contradicts
    from exprune_cli.data.groups import means_by_group

    before, after = measured.scores_baseline, measured.scores_optimized
    metric = record.quality.get("metric") if record is not None and record.quality else None
    if before is None or after is None or measured.metric != metric:
        need = "--baseline" if before is None else f"data with the metric '{metric}'"
        report.notes.append(f"the certificate is as recorded: to check it on these samples, give {need}")
        return
    if found.groups is not None and measured.groups is None:
        report.notes.append(
            "the certificate counts groups, and these samples have none: each was taken for a draw of its own"
        )
    losses = means_by_group(before - after, measured.groups)
    found.checked, found.samples, found.drop = True, len(before), float(losses.mean())
    found.groups = None if measured.groups is None else len(losses)
    found.holds = True
    if found.drop > found.max_drop:
        found.holds = False if contradicts(losses, found.max_drop, found.confidence) else None
