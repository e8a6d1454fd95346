"""What a run, a list of jobs, a distillation, an evaluation and an export answer. Knows no torch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class _Report:
    """An answer that prints as one JSON document."""

    def to_json(self) -> dict[str, Any]:
        """The fields, with paths and tuples as JSON knows them."""
        return asdict(self, dict_factory=lambda pairs: {key: _plain(value) for key, value in pairs})  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):  # bytes that are not UTF-8 escaped
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class RunReport(_Report):
    """What became of each input.

    `items`: input, output, status ("ok", "failed", "skipped", or of a dry run "planned"), seed, error, seconds (0 where
    nothing was computed), and prompt if it has one.
    """

    task: str
    adapter: str  # task:version
    steps: int
    ok: int
    failed: int
    skipped: int
    seconds: float
    items: list[dict[str, Any]]

    @property
    def by(self) -> str:
        """What made them, for people."""
        return f"{self.adapter}, {self.steps} step{'s' * (self.steps != 1)}"


@dataclass(frozen=True, kw_only=True)
class JobsReport(_Report):
    """What became of a file of jobs: a report for each adapter and way of running it."""

    jobs: Path
    ok: int
    failed: int
    skipped: int
    seconds: float
    runs: list[RunReport]

    @classmethod
    def of(cls, jobs: Path, runs: list[RunReport]) -> JobsReport:
        """Adds up."""
        total = {name: sum(getattr(run, name) for run in runs) for name in ("ok", "failed", "skipped", "seconds")}
        return cls(jobs=jobs, runs=runs, **total)

    @property
    def task(self) -> str:
        """What it is called, for people."""
        return self.jobs.name

    @property
    def by(self) -> str:
        """What made them, for people."""
        return "; ".join(dict.fromkeys(run.by for run in self.runs))

    @property
    def items(self) -> list[dict[str, Any]]:
        """Those of all runs."""
        return [item for run in self.runs for item in run.items]


@dataclass(frozen=True, kw_only=True)
class DistillResult(_Report):
    """The version that a distillation registered."""

    task: str
    adapter: str  # task:version
    base: str
    kind: str
    steps: int  # optimiser steps taken
    seconds: float  # of training alone
    metrics: dict[str, Any]  # held-out scores
    score: float | None  # what `latest` is decided by; higher is better
    latest: str  # the version `latest` names now
    run_dir: Path

    @property
    def moved_latest(self) -> bool:
        """False when the version it would have replaced scored better."""
        return self.latest == self.adapter


@dataclass(frozen=True, kw_only=True)
class EvalReport(_Report):
    """A table: one row per method and number of steps.

    `rows`: `name`, `method` (an adapter, base, or a reference such as bicubic), `steps` (None for a reference), then a
    number or None per column. `notes`: what a reader must know about the figures.
    """

    task: str
    adapter: str  # task:version
    base: str
    images: int
    columns: list[str]
    rows: list[dict[str, Any]]
    seconds: float
    out: Path | None = None  # where the report and the pictures are, if anywhere
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ExportResult(_Report):
    """What was written for another tool, and where."""

    adapter: str  # task:version
    base: str
    kind: str
    format: str
    dtype: str
    folder: Path
    bytes: int
