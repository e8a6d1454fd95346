"""Further conditions of the images of a run: the file of each, beside the image that is its first condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import InvalidInput, NotFound, UsageError, describe
from codi_hub.folders.jobs import Also
from codi_hub.folders.plan import Item
from codi_hub.objects import is_file, is_folder, stamp
from codi_hub.paths import display_path
from codi_hub.urls import UrlPath, is_url

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
        if not (is_folder(one.input) or is_file(one.input)):
            raise NotFound(f"also {one.ref}: no such file or folder: {display_path(one.input)}")
        if not is_folder(one.input) and len(items) > 1:
            raise UsageError(
                f"also {one.ref}: {display_path(one.input)} is one file, and there are {len(items)} images: name a "
                "folder with a file for each"
            )
        found.append([_file(one, item, task) for item in items])
    return [replace(item, also=files) for item, *files in zip(items, *found, strict=True)]


def _file(one: Also, item: Item, task: Task) -> Path:
    if not is_folder(one.input):
        return one.input
    path = one.input / item.name
    endings = dict.fromkeys([path.suffix, *sorted(task.input_extensions)])
    files = [file for file in map(path.with_suffix, endings) if is_file(file) and not task.is_sidecar(file)]
    if not files:
        raise NotFound(f"also {one.ref}: {display_path(one.input)} has no file for {display_path(Path(item.name))}")
    return files[0]


def with_objects(items: Sequence[Item], tasks: Sequence[Task]) -> list[Item]:
    """Return the items; those with a file in a store with the objects that belong to it, and their stamp.

    Args:
        tasks: of the image and of its further conditions.
    """
    return [_with_objects(item, tasks) if is_url(item.input_file) or item.also else item for item in items]


def _with_objects(item: Item, tasks: Sequence[Task]) -> Item:
    files = [item.input, *item.also]
    if item.error is not None or not any(isinstance(path, UrlPath) for path in files):
        return item
    try:
        beside = [path for task, file in zip(tasks, files, strict=False) for path in task.companions(file)]
        objects = tuple(str(path) for path in beside if isinstance(path, UrlPath))
        return replace(item, companions=objects, stamp=stamp([*files, *beside]))
    except (InvalidInput, OSError) as error:  # such as no mask
        return replace(item, error=describe(error))
