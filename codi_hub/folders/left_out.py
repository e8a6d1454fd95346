"""Files of the input folders that a run leaves out, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codi_hub.errors import InvalidInput
from codi_hub.folders.prompts import Prompts
from codi_hub.images.formats import why_not_read
from codi_hub.images.sidecars import METADATA, TEXT, beside
from codi_hub.paths import display_path

if TYPE_CHECKING:
    from codi_hub.tasks import Task

OnLeftOut = Callable[[Path, str], object]
"""Takes a path and a reason."""

NO_IMAGE = "it belongs to no image that is read"
NO_NAME = "its name in the store is absolute or has an empty part, . or ..: rename the object"


def report_left_out(
    others: Sequence[Path],
    inputs: Iterable[Path],
    task: Task,
    on_left_out: OnLeftOut,
    prompts: Prompts | None,
    folders: Sequence[Path],
) -> None:
    """Report files of the input folders that no item reads.

    Args:
        others: files that are no items.
        inputs: of the items.
        prompts: those of the items, where each has its own.
        folders: input folders, whose metadata.jsonl are checked for lines without a file.
    """
    sidecars = {path for path in others if task.is_sidecar(path)}
    read = _companions(inputs, task) if sidecars else set()
    for path in others:
        if path in sidecars:
            why = None if path in read else NO_IMAGE
        elif path.name == METADATA:
            why = None
        elif path.suffix.lower() == TEXT:
            why = None if beside(path, tuple(task.input_extensions)) else NO_IMAGE
        else:
            why = why_not_read(path.suffix)
        if why is not None:
            on_left_out(path, why)
    for folder in folders if prompts else ():
        for file, name in prompts.unmatched(folder) if prompts else ():
            on_left_out(file, f"its line for {display_path(name)} names no file")


def _companions(inputs: Iterable[Path], task: Task) -> set[Path]:
    found: set[Path] = set()
    for path in inputs:
        try:
            found.update(task.companions(path))
        except InvalidInput:  # becomes the error of the item
            continue
    return found
