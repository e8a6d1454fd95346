"""The records that the registry returns: frozen dataclasses, independent of the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


def now() -> str:
    """Return the time in UTC as ISO 8601 to the microsecond; sorting the text sorts by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def storable(value: object) -> str:
    """Return the value as text that any database stores: bytes of file names that are not UTF-8 are escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class BaseRow:
    """A base model.

    `source`: an absolute folder or file, or a hub id. `default`: whether it is in use. `options` and `card`: the fields
    of `BaseOptions` that were set; how it is loaded, and what is known of its sampling (distilled, steps, shift,
    guidance).
    """

    name: str
    source: str
    family: str
    sketch: dict[str, Any] | None
    bundled: bool
    default: bool
    created: str
    options: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A registered task: a variant of the built-in task `like`, with options of its own."""

    name: str
    like: str
    options: dict[str, Any]
    created: str


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One immutable version of a task's adapter for one base.

    `bytes` and `sha256` are those of `adapter.safetensors`. `score` is held-out, higher is better, None if unknown.
    `method` is what was trained, such as "pe-codi" or "regression", None if not recorded.
    """

    id: int
    task: str
    version: int
    base: str
    kind: str
    steps: int
    parameters: int
    bytes: int
    sha256: str
    status: str
    bundled: bool
    metrics: dict[str, Any]
    score: float | None
    parent: str | None
    tags: tuple[str, ...]
    created: str
    method: str | None = None

    @property
    def ref(self) -> str:
        """`task:version`."""
        return f"{self.task}:{self.version}"

    def compares(self, other: AdapterRow) -> bool:
        """Return whether both were measured on the same held-out pairs: each by itself, or this one with `other`."""
        with_other = self.metrics.get("latest_before") or {}
        same = self.metrics.get("held_out_pairs") == other.metrics.get("held_out_pairs")
        return bool(same or with_other.get("adapter") == other.ref)


@dataclass(frozen=True, slots=True)
class Removal:
    """The removed `rows`, and for each task that lost its `latest` the version that has it now."""

    base: str
    rows: tuple[AdapterRow, ...]
    latest: dict[str, AdapterRow | None]


@dataclass(frozen=True, slots=True)
class Recovery:
    """The adapters that were recorded again, and those whose base is not registered, as text.

    `copied` counts the blobs that a team's store was given.
    """

    rows: tuple[AdapterRow, ...]
    left: tuple[str, ...]
    copied: int = 0


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run; `ok` and `failed` count its items so far. `finished` is None while it runs, or after it was killed.

    `shard`, such as "1/8", is its part of the run whose parts have the same `plan`; None for a run without shards.
    """

    id: int
    task: str
    adapter: str
    options: dict[str, Any]
    status: str
    started: str
    finished: str | None
    ok: int
    failed: int
    plan: str | None = None
    shard: str | None = None


@dataclass(frozen=True, slots=True)
class RunItemRow:
    """One input of a run. `input_hash`: sha256 of the file, if it could be read.

    `output_hash`, `output_bytes` and `output_mtime_ns` are those of the output's file as it was written. An object in a
    store has the number of its version in place of the time; `input_stamp` is that of an input in a store.
    """

    input: str
    output: str | None
    input_hash: str | None
    status: str
    seed: int
    error: str | None
    seconds: float
    prompt: str | None = None
    output_hash: str | None = None
    output_bytes: int | None = None
    output_mtime_ns: int | None = None
    input_stamp: int | None = None


@dataclass(frozen=True, slots=True)
class OutputRow:
    """The last record of an output.

    `same`: whether it was made with the adapter and the options that were asked about. `hash`, `bytes`, `mtime_ns`: of
    the file as it was written; None where they were not logged. `mtime_ns` and `input_stamp`: see `RunItemRow`.
    """

    same: bool
    input_hash: str | None
    prompt: str | None
    seed: int
    hash: str | None
    bytes: int | None
    mtime_ns: int | None
    input_stamp: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A difference between files and records. `kind`: missing | drift | orphan | leftover | lost."""

    kind: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that no adapter needs. `message` says what it was."""

    path: str
    bytes: int
    message: str
