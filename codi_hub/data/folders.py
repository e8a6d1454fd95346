"""Listing of image folders: single images, or two folders of pairs. Returns rows of paths and opens no file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from codi_hub.errors import InvalidInput
from codi_hub.images.formats import EXTENSIONS
from codi_hub.images.sidecars import METADATA, TEXT, beside, name_key, read_caption

Example = dict[str, Any]

# Names of two folders of pairs: the conditions, the targets.
PAIRED = (("condition", "target"), ("input", "output"), ("A", "B"))
_log = logging.getLogger("codi_hub.data")


class DataTask(Protocol):
    """What a data source knows of a task."""

    @property
    def whole_images(self) -> bool:
        """Whether examples are resized images rather than crops at full resolution."""

    @property
    def reads_pairs(self) -> bool:
        """Whether `make_pair` uses an example's own `condition`."""

    def is_sidecar(self, path: Path) -> bool:
        """Return whether a file belongs to another input."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Any:
        """Return a training pair, or raise InvalidInput for an example that lacks a key."""


def listed(folder: Path, task: DataTask) -> Iterator[Example]:
    """Return rows of `image`, and of `condition` where the folder consists of two `PAIRED` ones that the task reads.

    Raises:
        InvalidInput: the two folders have no name in common.
    """
    for condition, target in PAIRED:
        if task.reads_pairs and _contains_only(folder, condition, target):
            return _paired(folder / condition, folder / target, task)
    return _images(folder, task)


def _contains_only(folder: Path, *names: str) -> bool:
    """Return whether the folder has these folders and no other visible folder or image."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    relevant = {path.name for path in entries if path.is_dir() or path.suffix.lower() in EXTENSIONS}
    return relevant == set(names) and all((folder / name).is_dir() for name in names)


def _paired(conditions: Path, targets: Path, task: DataTask) -> Iterator[Example]:
    """Yield images of the same name, extension aside, in two folders; log a warning that counts the others."""
    by_name: list[dict[str, Example]] = []
    for folder in (conditions, targets):
        rows = _images(folder, task)
        by_name.append({name_key(str(Path(row["image"]).relative_to(folder).with_suffix(""))): row for row in rows})
    unpaired = [
        row["image"] for one, other in (by_name, by_name[::-1]) for name, row in one.items() if name not in other
    ]
    if not set(by_name[0]) & set(by_name[1]):
        first = f"the first unpaired one: {unpaired[0]}" if unpaired else "both are empty"
        raise InvalidInput(f"no image in {conditions} has the name of one in {targets} ({first})")
    if unpaired:
        _log.warning(
            "%s: skipped %d images without a partner, such as %s", conditions.parent, len(unpaired), unpaired[0]
        )
    for name, condition in by_name[0].items():
        if name in by_name[1]:  # of two captions, the target's
            yield {**condition, **by_name[1][name], "condition": condition["image"]}


def _images(folder: Path, task: DataTask) -> Iterator[Example]:
    """Yield the visible images of a folder and its subfolders, sorted, each with the caption beside it, NAME.txt.

    Sidecars of other images are left out; text files that belong to no image are counted in a warning.
    """
    lost: list[Path] = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path, extension = Path(parent, name), Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if extension == TEXT and beside(path, tuple(EXTENSIONS)) is None:
                lost.append(path)
            elif extension in EXTENSIONS and not task.is_sidecar(path):
                yield {"image": str(path)} | _caption(path)
    if lost:
        _log.warning("%s: %d text files belong to no image, such as %s", folder, len(lost), lost[0].name)


def _caption(image: Path) -> Example:
    """Return the text beside an image as its caption, if there is one; one that cannot be read is named."""
    try:
        text = read_caption(image)
    except InvalidInput as error:
        _log.warning("%s: %s", image, error)
        return {}
    return {} if text is None else {"caption": text}


def hidden(file: Path, folder: Path) -> bool:
    """Return whether a file's name below a folder has a hidden part."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def warn_unlisted(folder: Path, rows: Sequence[Example], columns: Set[str], task: DataTask) -> None:
    """Log a warning that counts the images of a folder that no row of its metadata.jsonl names."""
    listed = {str(value) for row in rows for name, value in row.items() if name in columns}
    others = [row["image"] for row in _images(folder, task) if row["image"] not in listed]
    if others:
        _log.warning("%s: %d images have no line in %s, such as %s", folder, len(others), METADATA, others[0])
