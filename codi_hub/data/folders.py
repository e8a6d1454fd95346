"""What lies in a folder of pictures: pictures, or two folders that make pairs. Rows of paths; nothing is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import InvalidInput

if TYPE_CHECKING:
    from codi_hub.tasks import Task

Example = dict[str, Any]

# Two folders that make pairs, the condition's first.
PAIRED = (("condition", "target"), ("input", "output"), ("A", "B"))
_log = logging.getLogger("codi_hub.data")


def listed(folder: Path, task: Task) -> Iterator[Example]:
    """Rows of `image`, and also of `condition` where two folders of `PAIRED` are all there is and the task reads it.

    Raises InvalidInput where the two have no name in common.
    """
    for condition, target in PAIRED:
        if task.reads_pairs and _alone(folder, condition, target):
            return _paired(folder / condition, folder / target, task)
    return _pictures(folder, task)


def _alone(folder: Path, *names: str) -> bool:
    """Whether these folders lie here, and no other folder or picture that is not hidden does."""
    from codi_hub.tasks.base import IMAGES

    there = [path for path in folder.iterdir() if not path.name.startswith(".")]
    kept = {path.name for path in there if path.is_dir() or path.suffix.lower() in IMAGES}
    return kept == set(names) and all((folder / name).is_dir() for name in names)


def _paired(conditions: Path, targets: Path, task: Task) -> Iterator[Example]:
    """Pictures of one name, but for the extension, in two folders; what is alone is counted in a warning."""
    there = [
        {Path(row["image"]).relative_to(folder).with_suffix(""): row["image"] for row in _pictures(folder, task)}
        for folder in (conditions, targets)
    ]
    alone = [path for one, other in (there, there[::-1]) for name, path in one.items() if name not in other]
    if not set(there[0]) & set(there[1]):
        first = f"the first alone: {alone[0]}" if alone else "both are empty"
        raise InvalidInput(f"no picture in {conditions} has the name of one in {targets} ({first})")
    if alone:
        _log.warning("%s: skipped %d pictures without a partner, such as %s", conditions.parent, len(alone), alone[0])
    for name, path in there[0].items():
        if name in there[1]:
            yield {"image": there[1][name], "condition": path}


def _pictures(folder: Path, task: Task) -> Iterator[Example]:
    from codi_hub.tasks.base import IMAGES

    for here, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            if path.suffix.lower() in IMAGES and not name.startswith(".") and not task.is_sidecar(path):
                yield {"image": str(path)}
