"""A file of jobs: JSON Lines, each what one `codi run` would be told, read whole before anything is run.

{"task": "superres", "input": "imgs/a.png", "output": "out", "seed": 7}
{"task": "edit:2", "input": ["b.png", "more"], "prompt": "make it night", "steps": 1, "set": {"keep": 0}}
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from codi_hub import jsonl
from codi_hub.config.options import RunOptions
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.paths import display_path

WHOLE = (  # for all jobs
    "device",
    "dtype",
    "adapter_memory",
    "batch",
    "overwrite",
    "resume",
    "dry_run",
    "report",
    "allow_base_mismatch",
    "compile",
)
OPTIONS = tuple(f.name for f in fields(RunOptions) if f.name not in (*WHOLE, "out"))
KEYS = ("task", "input", "output", *OPTIONS)


@dataclass(frozen=True)
class Job:
    """One line; `where` names it."""

    where: str
    ref: str
    inputs: list[Path]
    options: RunOptions


def read_jobs(file: Path, common: RunOptions) -> Iterator[Job]:
    """The jobs of a file; `common` is what a line does not say itself. Paths are as on the command line.

    Raises:
        InvalidInput: naming the line that is no job, or where there is none at all.
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
    task, given = row.get("task"), row.get("input")
    inputs: list[Any] = given if isinstance(given, list) else [given]
    if not isinstance(task, str) or not inputs or not all(isinstance(path, str) and path for path in inputs):
        raise InvalidInput(f'{where} lacks a task or an input: write {{"task": "superres", "input": "imgs"}}')
    said = {name: row[name] for name in OPTIONS if row.get(name) is not None}
    if row.get("output") is not None:
        said["out"] = row["output"]
    for value in (*inputs, *said.values()):
        if isinstance(value, str) and not _can_name(value):
            raise InvalidInput(f"{where}: {value!r:.60} holds what no name can: leave it out")
    if type(said.get("tile")) is int:
        said["tile"] = str(said["tile"])
    try:
        options = _OPTIONS.validate_python(asdict(common) | said)
        options = replace(options, set={**common.set, **options.set})
    except ValidationError as error:
        problem = error.errors()[0]
        name = "output" if problem["loc"][:1] == ("out",) else ".".join(map(str, problem["loc"]))
        raise InvalidInput(f"{where}: {name}: {problem['msg'].lower()}, not {problem['input']!r:.60}") from None
    except UsageError as error:
        raise InvalidInput(f"{where}: {error}") from error
    return task, [Path(path) for path in inputs], options


def _can_name(value: str) -> bool:
    """Whether a file can be called so: no half characters, no zero byte."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


_OPTIONS = TypeAdapter(RunOptions)
