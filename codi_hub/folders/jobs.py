"""A file of jobs: JSON Lines, each with the arguments of one run. It is read whole before anything is run.

{"task": "superres", "input": "imgs/a.png", "output": "out", "seed": 7}
{"task": "edit:2", "input": ["b.png", "more"], "prompt": "make it night", "steps": 1, "set": {"keep": 0}}
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
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.paths import display_path

SHARED = (  # options of the whole run, which a line cannot set
    "device",
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
KEYS = ("task", "input", "output", *OPTIONS)


@dataclass(frozen=True)
class Job:
    """One line; `where` is its file and number, for messages."""

    where: str
    ref: str
    inputs: list[Path]
    options: RunOptions


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


def _read(row: dict[str, Any], common: RunOptions, where: str) -> tuple[str, list[Path], RunOptions]:
    if unknown := [key for key in row if key not in KEYS]:
        near = difflib.get_close_matches(unknown[0], KEYS, 1)
        meant = f"did you mean {near[0]!r}" if near else f"a job has {', '.join(KEYS)}"
        raise InvalidInput(f"{where}: no option {unknown[0]!r:.60}; {meant}")
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
    return task, [Path(path) for path in inputs], options


def _is_path(value: str) -> bool:
    """Return whether a file can have the name: no half surrogate pairs, no zero byte."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False
