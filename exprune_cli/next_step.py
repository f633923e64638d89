"""What to do next, as a command that can be pasted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exprune_cli.report_data import Report

#: What is suggested as ``--max-drop`` where none was given.
SUGGESTED_DROP = "0.01"
#: Savings below this are not worth a suggestion.
_LITTLE = 0.005


@dataclass(frozen=True)
class NextStep:
    """A sentence, and the command that it leads to; either may be None."""

    hint: str | None
    command: str | None

    def lines(self) -> list[str]:
        """As they are printed, the command last."""
        found = [self.hint] if self.hint else []
        return found + ([f"next: {self.command}"] if self.command else [])


def command_line(*words: str) -> str:
    """A command as a shell takes it."""
    return " ".join(shlex.quote(word) for word in words)


def beside(model: str) -> str:
    """The name of the optimised model next to the original."""
    path = Path(model)
    return str(path.with_name(f"{path.stem}.exprune{path.suffix or '.onnx'}"))


def after_report(report: Report, *, page: bool = False) -> NextStep:
    """What to do after a report was read.

    Args:
        report: The report.
        page: Whether it is read as a page already.
    """
    model = report.model
    if not report.optimized:
        return _after_untouched(report)
    known = ["--baseline", report.baseline] if report.baseline is not None else []
    if report.samples is None:
        missing = "--data DIR" if known else "--baseline IN --data DIR"
        return NextStep(
            f"to measure what it saves, add {missing} to the next command",
            command_line("exprune", "report", model, *known),
        )
    if page or report.data is None:
        return NextStep(None, None)
    words = [
        "report",
        model,
        *known,
        "--data",
        report.data,
        "--format",
        "html",
        "-o",
        f"{Path(model).stem}.html",
    ]
    return NextStep("to see it as a page, with charts:", command_line("exprune", *words))


def after_gate(report: Report, max_drop: float | None = None) -> NextStep:
    """What may bring a report within the bounds that it has left.

    Args:
        report: The report.
        max_drop: The drop that it was held to, if any.
    """
    if not report.optimized:
        return _after_untouched(report)
    if report.baseline is None or report.data is None:
        return after_report(report)
    drop = SUGGESTED_DROP if max_drop is None or max_drop <= 0 else f"{max_drop:g}"
    words = ["exprune", "optimize", report.baseline, report.model, "--data", report.data, "--max-drop", drop]
    return NextStep(None, command_line(*words))


def _after_untouched(report: Report) -> NextStep:
    outlook, model = report.outlook, report.model
    words = ["exprune", "optimize", model, beside(model)]
    if outlook is None or not outlook.sites:
        output = _large_head(report)
        if output is None:
            return NextStep("nothing here can be staged; quantising is what makes such layers faster", None)
        return NextStep(
            "if the best score of the large head is all you need:",
            command_line(*words, "--top-k", f"{output}=1"),
        )
    if report.data is None:
        return NextStep(
            "lossless, and only what is faster here; add --data DIR to skip more:", command_line(*words)
        )
    if outlook.reduction_expected is not None and outlook.reduction_expected < _LITTLE:
        return NextStep("little is expected beyond what is lossless:", command_line(*words))
    return NextStep(None, command_line(*words, "--data", report.data, "--max-drop", SUGGESTED_DROP))


def _large_head(report: Report) -> str | None:
    """The output whose scores are all returned by a large head, as the refusal names it."""
    for site in report.sites:
        found = re.search(r"--top-k (\S+)=1 ", site.reason) if site.code == "scores-returned" else None
        if found:
            return found[1]
    return None


def after_calibrate(model: str, calibration: str) -> NextStep:
    """What to do with a calibration file."""
    return NextStep(
        None, command_line("exprune", "optimize", model, beside(model), "--calibration", calibration)
    )


def after_optimize(
    source: str,
    output: str,
    data: str | None,
    *,
    staged: bool,
    dry_run: bool,
    custom_ops: Sequence[str] = (),
) -> NextStep:
    """What to do after a model was optimised, or was not.

    Args:
        source: The original.
        output: Where the optimised model is, or would be.
        data: The ``--data`` that was given.
        staged: Whether anything was staged.
        dry_run: Whether nothing was written.
        custom_ops: The libraries that were given.
    """
    options = ["--data", data] if data else []
    options += [word for library in custom_ops for word in ("--custom-ops", library)]
    if not staged:
        return NextStep(None, command_line("exprune", "report", source, *options))
    if dry_run:
        return NextStep(None, None)
    hint = "to measure what it saves, add --data DIR to the next command"
    if data:
        hint = "to measure what it saves; samples that it was not made with, given as --data, say it without bias:"
    return NextStep(hint, command_line("exprune", "report", output, "--baseline", source, *options))
