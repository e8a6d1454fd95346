"""Image tasks: one file each, with its evaluation. Other packages add tasks by entry points of `codi_hub.tasks`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from codi_hub.errors import NotFound
from codi_hub.evaluation.metrics import Column
from codi_hub.plugins import Plugins
from codi_hub.tasks.base import FLAG, Pair, Prepared, Task

__all__ = ["TASKS", "OptionFlag", "Pair", "Prepared", "Task", "builtin", "columns", "load", "option_flags"]

TASKS = Plugins(
    "task",
    "codi_hub.tasks",
    {
        "canny": "codi_hub.tasks.canny:Canny",
        "colorize": "codi_hub.tasks.colorize:Colorize",
        "deblur": "codi_hub.tasks.deblur:Deblur",
        "depth": "codi_hub.tasks.depth:Depth",
        "edit": "codi_hub.tasks.edit:Edit",
        "inpaint": "codi_hub.tasks.inpaint:Inpaint",
        "pairs": "codi_hub.tasks.pairs:Pairs",
        "superres": "codi_hub.tasks.superres:SuperRes",
    },
)


def builtin() -> list[str]:
    """Return the names of all installed tasks, sorted."""
    return sorted(TASKS.names())


def load(like: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return the task `like` with its options.

    Raises:
        NotFound: no such task.
        UsageError: an option that does not exist or has a wrong value.
    """
    if like not in TASKS:
        raise NotFound(f"no task {like!r}: choose one of {', '.join(builtin())}")
    return TASKS.load(like)(options)


@dataclass(frozen=True)
class OptionFlag:
    """A task option that has a command-line flag of its own.

    Attributes:
        name: of the option.
        type: int, float, bool or str.
        metavar: placeholder of the value, or None for that of the type.
        help: first sentence of the option's documentation, without the full stop.
    """

    name: str
    type: type
    metavar: str | None
    help: str


def option_flags() -> dict[str, OptionFlag]:
    """Return the flags of all installed tasks by option; of options of one name, the first task's. No torch."""
    flags: dict[str, OptionFlag] = {}
    for task in _classes():
        for name, field in task.Options.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and FLAG in extra and name not in flags:
                sentence = " ".join((field.description or name).split()).partition(". ")[0].rstrip(".")
                flags[name] = OptionFlag(name, _simple_type(field.annotation), str(extra[FLAG]) or None, sentence)
    return flags


def columns() -> dict[str, Column]:
    """Return the columns that installed tasks add to tables, by name."""
    described: dict[str, Column] = {}
    for task in _classes():
        described = {**task.columns, **described}
    return described


def _classes() -> list[type[Task]]:
    """Return the classes of all tasks; one of another package that cannot be imported is skipped with a warning."""
    return [task for _, task in sorted(TASKS.loadable())]


def _simple_type(annotation: Any) -> type:
    """Return the type that a command line parses for a field's annotation."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is Literal:
        annotation = type(get_args(annotation)[0])
    return annotation if annotation in (int, float, bool) else str
