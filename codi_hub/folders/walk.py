"""Walking through an input folder: every file once, whatever links there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def walk(root: Path, skip: frozenset[str] = frozenset(), recursive: bool = True) -> Iterator[tuple[str, str | None]]:
    """Yield (name relative to `root`, with slashes, None) of each file, (folder, error) of one that cannot be listed.

    Each real folder is visited once. Not followed are links to a folder inside `root` (it is walked anyway) or to one
    that contains `root` (a loop), hidden names, and the real paths in `skip`.
    """
    top = os.path.realpath(root)
    seen = {top}
    stack = [("", top)]
    while stack:
        folder, real = stack.pop()
        try:
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as exc:
            yield folder, f"this folder cannot be listed: {exc.strerror}"
            continue
        below = []
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield relative, None
            elif recursive:
                linked = entry.is_symlink()
                target = os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)
                if target not in seen and target not in skip and not (linked and _nested(target, top)):
                    seen.add(target)
                    below.append((relative, target))
        stack.extend(reversed(below))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: an item, whose row reports the error
        return False


def _nested(one: str, other: str) -> bool:
    return os.path.commonpath([one, other]) in (one, other)
