"""Image tasks: one file each, found through the entry-point group `codi_hub.tasks`, so that packages can bring more."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from codi_hub.errors import NotFound
from codi_hub.tasks.base import Pair, Prepared, Task

__all__ = ["Pair", "Prepared", "Task", "builtin", "load"]

GROUP = "codi_hub.tasks"
# What this package brings, for when it runs from a checkout that is not installed and has no entry points.
_OWN = {
    "canny": "codi_hub.tasks.canny:Canny",
    "colorize": "codi_hub.tasks.colorize:Colorize",
    "deblur": "codi_hub.tasks.deblur:Deblur",
    "depth": "codi_hub.tasks.depth:Depth",
    "edit": "codi_hub.tasks.edit:Edit",
    "inpaint": "codi_hub.tasks.inpaint:Inpaint",
    "pairs": "codi_hub.tasks.pairs:Pairs",
    "superres": "codi_hub.tasks.superres:SuperRes",
}


def builtin() -> list[str]:
    """The names of every installed task, sorted."""
    return sorted(_places())


def load(like: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task called `like` with its options. Raises NotFound with the names there are, UsageError for an option."""
    places = _places()
    if like not in places:
        raise NotFound(f"no task {like!r} to be like; there are {', '.join(sorted(places))}")
    module, _, attribute = places[like].partition(":")
    made: Task = getattr(importlib.import_module(module), attribute)(options)
    return made


def _places() -> dict[str, str]:
    """`module:Class` by name; another package cannot replace one of this package's."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | _OWN
