"""Results of library calls. Each has `to_json`, the document that the command prints with JSON output. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codi_hub.paths import path_text


class Result:
    """A result with a JSON form."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with paths as text and tuples as lists."""
        return asdict(self, dict_factory=lambda pairs: {key: _plain(value) for key, value in pairs})  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return path_text(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class RunReport(Result):
    """The result of a run over files.

    Attributes:
        adapter: reference, as task:version.
        steps: sampling steps.
        strength: scale of what the adapter added.
        also: adapters that took a further condition of every image: adapter, strength.
        ok, failed, skipped: number of items by status.
        seconds: of the whole run.
        batches: number of images in each batch, in the order computed.
        items: a row per item: input, output, status ("ok", "failed", "skipped"; in a dry run "planned"), seed, error,
            seconds (0 if nothing was computed), prompt if it has one, and variant from the input's second image on.
        left_out: files of the input folders that are neither items nor read for one: path, why.
    """

    task: str
    adapter: str
    steps: int
    strength: float = 1.0
    ok: int
    failed: int
    skipped: int
    seconds: float
    also: list[dict[str, Any]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    items: list[dict[str, Any]]
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Return the name of the task."""
        return self.task

    @property
    def summary(self) -> str:
        """Return the adapters, their steps and a strength other than 1, for people."""
        strength = f", strength {self.strength:g}" if self.strength != 1 else ""
        also = "".join(f" + {one['adapter']} at {one['strength']:g}" for one in self.also)
        return f"{self.adapter}{also}, {self.steps} step{'s' * (self.steps != 1)}{strength}"


@dataclass(frozen=True, kw_only=True)
class JobsReport(Result):
    """The result of a file of jobs: a report per adapter and settings.

    Attributes:
        jobs: the file.
        ok, failed, skipped, seconds: sums over `runs`.
    """

    jobs: Path
    ok: int
    failed: int
    skipped: int
    seconds: float
    runs: list[RunReport]

    @classmethod
    def of(cls, jobs: Path, runs: list[RunReport]) -> JobsReport:
        """Sum up the reports of all runs."""
        total = {name: sum(getattr(run, name) for run in runs) for name in ("ok", "failed", "skipped", "seconds")}
        return cls(jobs=jobs, runs=runs, **total)

    @property
    def title(self) -> str:
        """Return the name of the file."""
        return self.jobs.name

    @property
    def summary(self) -> str:
        """Return the adapters and their steps, for people."""
        return "; ".join(dict.fromkeys(run.summary for run in self.runs))

    @property
    def items(self) -> list[dict[str, Any]]:
        """Return the rows of all runs."""
        return [item for run in self.runs for item in run.items]

    @property
    def left_out(self) -> list[dict[str, str]]:
        """Return the files that no run reads; one that another run reads is not among them."""
        read = {item["input"] for item in self.items}
        entries = {(entry["path"], entry["why"]): entry for run in self.runs for entry in run.left_out}
        return [entry for (path, _), entry in entries.items() if path not in read]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Result):
    """A training that was decided and not started.

    Attributes:
        size: side of the images in pixels.
        batch, accumulate, lr: what the base's size decided, or the configuration.
        memory: bytes on the device by what holds them; `encoding` is needed instead of `step`, not beside it.
        total: bytes at the peak.
    """

    task: str
    base: str
    kind: str
    size: int
    batch: int
    accumulate: int
    lr: float
    memory: dict[str, int]
    total: int


@dataclass(frozen=True, kw_only=True)
class DistillResult(Result):
    """The version that a training registered.

    Attributes:
        adapter: reference, as task:version.
        steps: optimiser steps.
        seconds: of training alone.
        metrics: held-out scores.
        score: decides which version is `latest`; higher is better.
        latest: the version that `latest` names now.
        comparable: whether both were measured on the same held-out pairs; else `latest` stays.
        run_dir: folder of checkpoints, logs and samples.
        resumed_finished: whether the run that was resumed had finished, so that nothing was trained or registered.
    """

    task: str
    adapter: str
    base: str
    kind: str
    steps: int
    seconds: float
    metrics: dict[str, Any]
    score: float | None
    latest: str
    run_dir: Path
    comparable: bool = True
    resumed_finished: bool = False

    @property
    def moved_latest(self) -> bool:
        """Return whether `latest` is this version: False if the one before scored better, or does not compare."""
        return self.latest == self.adapter


@dataclass(frozen=True, kw_only=True)
class EvalReport(Result):
    """A table of measurements: one row per method and number of steps.

    Attributes:
        adapter: reference, as task:version.
        images: number of images measured.
        rows: `name`, `method` (an adapter, base, or a baseline such as bicubic), `steps` (None for a baseline), then a
            number or None per column.
        out: folder of the report and the images, if any.
        notes: what a reader must know about the figures.
    """

    task: str
    adapter: str
    base: str
    images: int
    columns: list[str]
    rows: list[dict[str, Any]]
    seconds: float
    out: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """An adapter written in another tool's format.

    Attributes:
        adapter: reference, as task:version.
        bytes: of all files in `folder`.
    """

    adapter: str
    base: str
    kind: str
    format: str
    dtype: str
    folder: Path
    bytes: int


@dataclass(frozen=True, kw_only=True)
class InstallResult(Result):
    """An adapter that came from elsewhere.

    Attributes:
        adapter: reference, as task:version; None in a dry run of one that is not there yet.
        sha256: of its weights.
        source: where it came from.
        created: whether a version was registered; False if the task has these weights already, and in a dry run.
        tags: of the version.
    """

    task: str
    adapter: str | None
    base: str
    kind: str
    sha256: str
    source: str
    created: bool
    tags: list[str]


@dataclass(frozen=True, kw_only=True)
class PushResult(Result):
    """An adapter on a hub, or below an URL.

    Attributes:
        adapter: reference, as task:version.
        destination: hub id or URL.
        url: of the commit on a hub.
        files: bytes of each file by its path.
        licence: of the adapter.
        base_licence: of its base; "unknown" where nothing says it.
        gated: whether the hub gives the base only to those who accept its terms.
        non_commercial: whether the licence of the base excludes commercial use.
        written: False in a dry run, and where the same adapter is below the URL already.
    """

    adapter: str
    base: str
    destination: str
    url: str
    files: dict[str, int]
    licence: str
    base_licence: str
    gated: bool
    non_commercial: bool
    written: bool


@dataclass(frozen=True, kw_only=True)
class ImportResult(Result):
    """The version that another tool's ControlNet became.

    Attributes:
        adapter: reference, as task:version.
        format: what was read, such as `diffusers folder`.
        sha256: of its weights file.
        latest: the version that `latest` names now.
        registered_task: whether the task is new.
    """

    task: str
    adapter: str
    base: str
    kind: str
    method: str
    format: str
    file: str
    sha256: str
    tags: tuple[str, ...]
    latest: str
    registered_task: bool
