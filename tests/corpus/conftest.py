"""The counts of the corpus stand at the end of the tests' output, passed or not."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the tests of this folder recorded, also those of other processes."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [text for report in reports for key, text in report.user_properties if key == "corpus"]
    if lines:
        terminalreporter.section("corpus")
        for line in sorted(lines):
            terminalreporter.write_line(str(line))
