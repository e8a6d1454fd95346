"""Further conditions of the images of a run: the file of each, beside the image that is its first condition."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import NotFound, UsageError
from codi_hub.folders.jobs import Also
from codi_hub.folders.plan import Item
from codi_hub.paths import display_path

if TYPE_CHECKING:
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Task


@dataclass(frozen=True)
class FurtherCondition:
    """An adapter that takes a further condition of every image, and the task that prepares it."""

    row: AdapterRow
    task: Task
    strength: float

    @property
    def recorded(self) -> dict[str, Any]:
        """What reports and outputs say of it."""
        return {"adapter": self.row.ref, "strength": self.strength}

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the outputs, beside the file."""
        options = self.task.recorded_options()
        return {"adapter_sha256": self.row.sha256, "strength": self.strength, "task_options": options}


def with_conditions(items: Sequence[Item], also: Sequence[Also], tasks: Sequence[Task]) -> list[Item]:
    """Return the items with the file of each further condition.

    Args:
        also: the conditions.
        tasks: of each, for the extensions that its files may have.

    Raises:
        NotFound: an image without one. UsageError: one file for several images.
    """
    if not also:
        return list(items)
    found = []
    for one, task in zip(also, tasks, strict=True):
        if not os.path.exists(one.input):
            raise NotFound(f"also {one.ref}: no such file or folder: {display_path(one.input)}")
        if not os.path.isdir(one.input) and len(items) > 1:
            raise UsageError(
                f"also {one.ref}: {display_path(one.input)} is one file, and there are {len(items)} images: name a "
                "folder with a file for each"
            )
        found.append([_file(one, item, task) for item in items])
    return [replace(item, also=files) for item, *files in zip(items, *found, strict=True)]


def _file(one: Also, item: Item, task: Task) -> Path:
    if not os.path.isdir(one.input):
        return one.input
    path = one.input / item.name
    endings = dict.fromkeys([path.suffix, *sorted(task.input_extensions)])
    files = [file for file in map(path.with_suffix, endings) if os.path.isfile(file) and not task.is_sidecar(file)]
    if not files:
        raise NotFound(f"also {one.ref}: {display_path(one.input)} has no file for {display_path(Path(item.name))}")
    return files[0]
