"""Temporary files and folders beside what they will replace: held while they are written, cleaned after a kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def temporary(folder: Path, create: Callable[[Path], object] = Path.touch) -> Iterator[Path]:
    """Yield a new temporary file of `folder`, and remove it unless the block has renamed it.

    Its name is hidden and has no image's extension, so that no program takes it for a result.

    Args:
        folder: exists.
        create: creates it; `Path.mkdir` for a folder.

    Raises:
        OSError: it cannot be created.
    """
    path, holder = _held(folder, create)
    try:
        yield path
    finally:
        _remove(path)
        if holder is not None:
            os.close(holder)


def clean(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, and no others."""
    for path in folder.glob(".codi-*.part"):
        with contextlib.suppress(OSError):
            holder = os.open(path, os.O_RDONLY) if fcntl else None
            try:
                if holder is not None:
                    fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while a process holds it
                _remove(path)
            finally:
                if holder is not None:
                    os.close(holder)


def _held(folder: Path, create: Callable[[Path], object]) -> tuple[Path, int | None]:
    """Create a temporary file and lock it; again where `clean` of another process has come between."""
    while True:
        path = folder / f".codi-{uuid.uuid4().hex}.part"
        create(path)
        if fcntl is None:
            return path, None
        with contextlib.suppress(FileNotFoundError):
            holder = os.open(path, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: `clean` leaves the file there
                fcntl.flock(holder, fcntl.LOCK_EX)
            if os.path.lexists(path):
                return path, holder
            os.close(holder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
