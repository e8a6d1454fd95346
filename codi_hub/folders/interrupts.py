"""Runs that end early: Ctrl-C, and errors that leave a partial report."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from codi_hub.errors import CodiError
from codi_hub.reports import JobsReport, RunReport


class Stopped(CodiError):
    """A run that could not be completed, or whose report page could not be written; `report` has its rows."""

    def __init__(self, message: str, report: RunReport | JobsReport) -> None:
        super().__init__(message)
        self.report: Any = report


class Interrupted(Stopped):
    """Ctrl-C: the current batch is finished and reported, the rest is left."""

    exit_code = 130

    def __init__(self, report: RunReport | JobsReport, planned: int) -> None:
        count = f"{len(report.items)} of {planned} images"
        super().__init__(f"interrupted after {count}: the same command again continues from there", report)


@contextlib.contextmanager
def first_interrupt(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at the first Ctrl-C, so that nothing is cut off; the second one interrupts as usual.

    A handler of the caller's own stays, as does the default one outside the main thread.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or previous is not signal.default_int_handler:
        yield
        return

    def first(signum: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
