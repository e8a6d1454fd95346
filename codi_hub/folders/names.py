"""Names of outputs that would otherwise be one file: their own extension, or the folder of their input, is added."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from codi_hub.paths import absolute_path, display_path
from codi_hub.urls import as_path, is_url

if TYPE_CHECKING:
    from codi_hub.folders.plan import Item

ONE_CASE = sys.platform in ("win32", "darwin")  # A.png and a.png are one file, on most disks


def places() -> Callable[[str], str]:
    """Return a function from a path's text to a key that is equal for names of one file; it remembers real folders."""

    @functools.cache
    def real_folder(folder: str) -> str:
        return os.path.realpath(folder)

    def place(path: str) -> str:
        if is_url(path):
            return path
        folder, name = os.path.split(path)
        found = os.path.join(real_folder(folder), name)
        return found.casefold() if ONE_CASE else found

    return place


def separate(items: Sequence[Item]) -> list[Item]:
    """Return the items with an output each.

    Items of one input keep theirs, as do those that clash with a file that the user named, for `check_outputs` to
    refuse.

    Of inputs in one folder that differ in their extension alone, the one whose name the output has keeps it, and the
    others add their extension: a.png and a.webp become a.png and a.webp.png. Of inputs in several folders, the outputs
    get the folders' names: cats/1.png and dogs/1.png. Items that were separated already, as those of one job, can be
    given again with others.
    """
    place, separated = places(), list(items)
    for index in _clashing(separated, place, same_folder=True):
        item = separated[index]
        if f"{item.input.stem}{item.suffix}{item.mark}{item.input.suffix}" != item.output.name:
            name = f"{item.input.name}{item.suffix}{item.mark}{item.output.suffix}"
            separated[index] = replace(item, output_file=str(item.output.with_name(name)))
    depth = 1
    while clashing := _clashing(separated, place):
        roots = {index: _root(separated[index]) for index in clashing}
        if depth >= max(len(root.parts) for root in roots.values()):
            break
        for index, root in roots.items():
            separated[index] = replace(separated[index], output_file=str(_below(separated[index], root, depth)))
        depth += 1
    return separated


def renamed(before: Sequence[Item], after: Sequence[Item]) -> str | None:
    """Return a sentence about the outputs that `separate` has renamed; None if there are none."""
    changed = [new for old, new in zip(before, after, strict=True) if old.output_file != new.output_file]
    if not changed:
        return None
    first = changed[0]
    example = f"{display_path(first.input)} -> {display_path(first.output)}"
    return (
        f"Outputs named by extension or folder too, as several inputs have one name: {len(changed)}, such as {example}"
    )


def _clashing(items: Sequence[Item], place: Callable[[str], str], *, same_folder: bool = False) -> list[int]:
    """Return the indices of items of several inputs with one output; with `same_folder`, of inputs in one folder."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    named = {place(item.output_file) for item in items if item.out is None}
    for index in _repeated(items, place):
        item = items[index]
        folder = place(os.path.join(os.path.dirname(item.input_file), "x")) if same_folder else ""
        if (output := place(item.output_file)) not in named:
            groups.setdefault((output, folder), {})[index] = place(item.input_file)
    return [index for group in groups.values() if len(set(group.values())) > 1 for index in group]


def _repeated(items: Sequence[Item], place: Callable[[str], str]) -> list[int]:
    """Return the indices of items whose output may be another's, by hashes, which take less memory than texts."""
    hashes: set[int] = set()
    repeated: set[int] = set()
    for item in items:
        key = hash(place(item.output_file))
        (repeated if key in hashes else hashes).add(key)
    if not repeated:
        return []
    return [index for index, item in enumerate(items) if hash(place(item.output_file)) in repeated]


def _root(item: Item) -> Path:
    """Return the folder that an item's name is relative to."""
    return as_path(absolute_path(item.input_file)).parents[len(PurePosixPath(item.name).parts) - 1]


def _below(item: Item, root: Path, depth: int) -> Path:
    """Return the output of an item in a folder with the last `depth` names of its root."""
    assert item.out is not None
    return item.out.joinpath(*root.parts[-depth:], PurePosixPath(item.name).parent, item.output.name)
