"""A database that cannot be written is read from a copy in memory: on a read-only, foreign or full disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import uuid
from pathlib import Path

from sqlalchemy import URL

SPACE = 1 << 16  # bytes; opening SQLite's write-ahead log takes 32 kB
NO_SPACE = ("No space left on device", "Disk quota exceeded")


def unwritable(file: Path) -> str | None:
    """Return why a database file and its log cannot be written, by their permissions; None if they can be."""
    folder = file.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    beside = [path for suffix in ("", "-wal", "-shm") if (path := file.with_name(file.name + suffix)).exists()]
    for path in (folder, *beside):
        if path.exists() and not os.access(path, os.W_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY
            return "Read-only file system" if read_only else "Permission denied"
    return None


def write_error(folder: Path) -> str | None:
    """Return why no file can be written in a folder, such as "No space left on device"; None if one can be."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SPACE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


class Copy:
    """A copy of a SQLite database in memory, which any thread of this process can open; empty without a file.

    Attributes:
        url: opens it, as long as it is not closed.

    Raises:
        sqlite3.Error, OSError: the database cannot be read.
    """

    def __init__(self, file: Path) -> None:
        name = f"file:/codi-{uuid.uuid4().hex}"
        self.url = URL.create("sqlite", database=name, query={"vfs": "memdb", "uri": "true"})
        self._connection = sqlite3.connect(f"{name}?vfs=memdb", uri=True, check_same_thread=False)  # keeps it alive
        if file.exists() and file.stat().st_size:
            try:
                _read(file, f"{name}?vfs=memdb")
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Forget the copy."""
        self._connection.close()


def _read(file: Path, target: str) -> None:
    try:
        _write_into(f"{file.absolute().as_uri()}?mode=ro", target)
    except sqlite3.OperationalError:  # the files beside it that reading needs cannot be created
        log = file.with_name(file.name + "-wal")
        if not log.exists() or not log.stat().st_size:
            _write_into(f"{file.absolute().as_uri()}?immutable=1", target)
            return
        with tempfile.TemporaryDirectory() as folder:
            for path in (file, log):
                shutil.copyfile(path, Path(folder, path.name))
            _write_into(Path(folder, file.name).as_uri(), target)


def _write_into(source: str, target: str) -> None:
    """Copy a database; unlike SQLite's backup, without its WAL mode, which a database in memory cannot have."""
    connection = sqlite3.connect(source, uri=True)
    try:
        connection.execute("VACUUM INTO ?", (target,))
    finally:
        connection.close()
