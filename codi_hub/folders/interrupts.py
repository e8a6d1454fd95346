"""Runs that end early: Ctrl-C, and errors that leave a partial report."""

from __future__ import annotations

from typing import Any

from codi_hub.errors import CodiError
from codi_hub.interrupts import EXIT_CODE
from codi_hub.reports import JobsReport, RunReport


class Stopped(CodiError):
    """A run that could not be completed, or whose report page could not be written; `report` has its rows."""

    def __init__(self, message: str, report: RunReport | JobsReport) -> None:
        super().__init__(message)
        self.report: Any = report


class Interrupted(Stopped):
    """Ctrl-C, SIGTERM or SIGHUP: the current batch is finished and reported, the rest is left."""

    exit_code = EXIT_CODE

    def __init__(self, report: RunReport | JobsReport, planned: int) -> None:
        count = f"{len(report.items)} of {planned} images"
        super().__init__(f"interrupted after {count}: the same command again continues from there", report)


class WorkersLost(CodiError):
    """All processes of a run died: what they had made has its rows."""
