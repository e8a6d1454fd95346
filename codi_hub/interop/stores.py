"""Adapters in a folder of any file system that fsspec knows: file://, memory://, s3://, ..."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codi_hub.errors import Conflict, InvalidInput, one_line
from codi_hub.filesystems import file_system_errors, opened, shown
from codi_hub.interop.package import FILES, LIMITS
from codi_hub.record import RECORD

CHUNK = 1 << 20
EXAMPLES = "examples"


class UrlFolder:
    """The files of an adapter below an URL.

    Args:
        url: such as s3://bucket/depth.
        scratch: an empty folder for local copies.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self.name, self._scratch = shown(url), scratch
        self._system, self._root = opened(url)

    def fetch(self, name: str) -> Path:
        target, limit, written = self._scratch / name, LIMITS.get(name), 0
        with (
            file_system_errors(self.name, missing=f"is not an adapter: it has no {name}"),
            self._system.open(f"{self._root}/{name}", "rb") as reading,
            target.open("wb") as writing,
        ):
            while chunk := reading.read(CHUNK):
                written += writing.write(chunk)
                if limit is not None and written > limit:
                    raise InvalidInput(f"{self.name}: {name} has over {limit} bytes, which none of an adapter has")
        return target


def push(url: str, files: Mapping[str, Path | bytes]) -> bool:
    """Write files below an URL: all of them, or none if one cannot be written.

    The record is written last, so that what a kill left is no adapter.

    Returns:
        False where the same adapter is there already: nothing is written then.

    Raises:
        UsageError: no file system of that name. Conflict: something else is there. CodiError: it cannot be written.
    """
    name = shown(url)
    system, root = opened(url)
    written: list[str] = []
    with file_system_errors(name):
        there = {entry.rstrip("/").rpartition("/")[2] for entry in _listed(system, root)}
        if RECORD in there:
            if system.cat_file(f"{root}/{RECORD}") == _bytes(files[RECORD]):
                return False
            raise Conflict(f"{name} has another adapter, or another version of it: choose another place")
        if other := sorted(there - {*FILES, EXAMPLES}):
            raise Conflict(f"{name} has {one_line(other[0], 60)}, which is not an adapter's: choose another place")
        try:
            for path in sorted(files, key=lambda path: path == RECORD):
                target = f"{root}/{path}"
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                written.append(target)
                _write(system, target, files[path])
        except BaseException:
            for target in written:
                with suppress(Exception):  # as much as can be removed
                    system.rm_file(target)
            raise
    return True


def _listed(system: Any, root: str) -> list[str]:
    try:
        return [str(name) for name in system.ls(root, detail=False)]
    except FileNotFoundError:
        return []


def _bytes(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _write(system: Any, target: str, content: Path | bytes) -> None:
    with system.open(target, "wb") as writing:
        if isinstance(content, bytes):
            writing.write(content)
        else:
            with content.open("rb") as reading:
                shutil.copyfileobj(reading, writing, CHUNK)
