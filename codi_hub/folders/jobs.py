"""A file of jobs: JSON Lines, each with the arguments of one run. It is read whole before anything is run.

{"task": "superres", "input": "imgs/a.png", "output": "out", "seed": 7}
{"task": "edit:2", "input": ["b.png", "more"], "prompt": "make it night", "steps": 1, "set": {"keep": 0}}
{"task": "depth", "input": "maps", "also": [{"task": "canny", "input": "edges", "strength": 0.5}]}
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codi_hub import jsonl
from codi_hub.config.options import RunOptions
from codi_hub.errors import InvalidInput, UsageError, prefixed
from codi_hub.paths import display_path
from codi_hub.urls import place

SHARED = (  # options of the whole run, which a line cannot set
    "device",
    "devices",
    "shard",
    "ray",
    "dtype",
    "adapter_memory",
    "batch",
    "overwrite",
    "resume",
    "verify_outputs",
    "dry_run",
    "report",
    "allow_base_mismatch",
    "compile",
)
OPTIONS = tuple(name for name in RunOptions.model_fields if name not in (*SHARED, "out"))
KEYS = ("task", "input", "output", "also", *OPTIONS)
ALSO_KEYS = ("task", "input", "strength", "set")


@dataclass(frozen=True)
class Also:
    """A further condition of every image of a job.

    Attributes:
        input: a file for one image, or a folder with a file for each, of the same relative name but for the extension.
        strength: of its adapter.
        set: options of its task.
    """

    ref: str
    input: Path
    strength: float
    set: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One line; `where` is its file and number, for messages."""

    where: str
    ref: str
    inputs: list[Path]
    options: RunOptions
    also: tuple[Also, ...] = ()


def read_jobs(file: Path, common: RunOptions) -> Iterator[Job]:
    """Yield the jobs of a file. Paths are relative to the working directory.

    Args:
        common: values of the options that a line does not set.

    Raises:
        InvalidInput: a line that is not a job, by its number, or a file without any.
    """
    number = 0
    for number, row in jsonl.objects(file):
        where = f"{display_path(file)} line {number}"
        yield Job(where, *_read(row, common, where))
    if not number:
        raise InvalidInput(
            f'{display_path(file)} has no job: write lines such as {{"task": "superres", "input": "imgs"}}'
        )


def _read(row: dict[str, Any], common: RunOptions, where: str) -> tuple[str, list[Path], RunOptions, tuple[Also, ...]]:
    _check_keys(row, KEYS, where, "a job")
    task, value = row.get("task"), row.get("input")
    inputs: list[Any] = value if isinstance(value, list) else [value]
    if not isinstance(task, str) or not inputs or not all(isinstance(path, str) and path for path in inputs):
        raise InvalidInput(f'{where} lacks a task or an input: write {{"task": "superres", "input": "imgs"}}')
    values = {name: row[name] for name in OPTIONS if row.get(name) is not None}
    if row.get("output") is not None:
        values["out"] = row["output"]
    for value in (*inputs, *values.values()):
        if isinstance(value, str) and not _is_path(value):
            raise InvalidInput(f"{where}: {value!r:.60} contains characters that no path can have: remove them")
    if type(values.get("tile")) is int:
        values["tile"] = str(values["tile"])
    try:
        options = RunOptions(**(dict(common) | values))
        options = options.replace(set={**common.set, **options.set})
    except UsageError as error:
        text = str(error)
        raise InvalidInput(f"{where}: {'output' + text[3:] if text.startswith('out ') else text}") from error
    with prefixed(where):
        places = [place(path) for path in inputs]
    return task, places, options, _read_also(row.get("also"), where)


def _check_keys(row: dict[str, Any], known: tuple[str, ...], where: str, what: str) -> None:
    if unknown := [key for key in row if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"did you mean {near[0]!r}" if near else f"{what} has {', '.join(known)}"
        raise InvalidInput(f"{where}: no option {unknown[0]!r:.60}; {meant}")


def _read_also(value: Any, where: str) -> tuple[Also, ...]:
    """Return the further conditions of a job: one object, or a list of them."""
    found = []
    for row in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key] for key in ALSO_KEYS[:2]):
            raise InvalidInput(f'{where}: also: write {{"task": "canny", "input": "edges", "strength": 0.5}}')
        _check_keys(row, ALSO_KEYS, f"{where}: also", "a condition")
        if not _is_path(row["input"]):
            raise InvalidInput(f"{where}: {row['input']!r:.60} contains characters that no path can have: remove them")
        try:
            options = RunOptions(**{key: row[key] for key in ALSO_KEYS[2:] if row.get(key) is not None})
        except UsageError as error:
            raise InvalidInput(f"{where}: also: {error}") from error
        with prefixed(f"{where}: also"):
            found.append(Also(row["task"], place(row["input"]), options.strength, options.set))
    return tuple(found)


def _is_path(value: str) -> bool:
    """Return whether a file can have the name: no half surrogate pairs, no zero byte."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False
