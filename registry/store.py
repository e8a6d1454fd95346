"""Files by their hash: `blobs/sha256/ab/abcd...`. A blob is there whole or not at all, and is never changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CHUNK = 1 << 20


class Stamp(NamedTuple):
    """What tells, without reading it, that a file has not changed."""

    inode: str
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        stat = path.stat()
        return cls(str(stat.st_ino), stat.st_size, stat.st_mtime_ns)


def sha256(path: Path) -> str:
    """Hash of the file's content, in lower-case hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Store:
    """The blobs under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.noted = root / "databases"
        self._temporary = root / "tmp"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Held from the first byte of a blob until its record: to whoever holds it next, no blob is half-way."""
        from filelock import FileLock  # not at the top: looking things up has no use for it

        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            yield

    def databases(self) -> set[str]:
        """Those that have put files in here. To one of them, the others' would look like nobody's."""
        try:
            return set(self.noted.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return set()

    def note(self, database: str) -> None:
        """Adds to `databases`, while locked. Raises OSError."""
        if database not in (names := self.databases()):
            self._temporary.mkdir(parents=True, exist_ok=True)
            temporary = self._temporary / f"{uuid.uuid4().hex}.part"
            temporary.write_text("\n".join(sorted(names | {database})), encoding="utf-8")
            os.replace(temporary, self.noted)

    def path(self, digest: str) -> Path:
        return self.root / "sha256" / digest[:2] / digest

    def put(self, source: Path) -> tuple[str, int]:
        """Copies a file in; its (sha256, bytes). Raises OSError, and then leaves nothing behind.

        A blob that is there already is replaced by the same content, which mends one that was damaged.
        """
        self._temporary.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / f"{uuid.uuid4().hex}.part"
        digest, size = hashlib.sha256(), 0
        try:
            with source.open("rb") as reading, temporary.open("xb") as writing:
                while chunk := reading.read(_CHUNK):
                    digest.update(chunk)
                    size += writing.write(chunk)
                writing.flush()
                if os.name == "posix":  # elsewhere it could not be replaced or deleted any more
                    temporary.chmod(0o444)
                os.fsync(writing.fileno())
            target = self.path(digest.hexdigest())
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for folder in (target.parent, target.parent.parent, self.root):
            sync_folder(folder)
        return digest.hexdigest(), size

    def blobs(self) -> set[Path]:
        """Every file among the blobs, also those that have no business there."""
        return {path for path in (self.root / "sha256").rglob("*") if not path.is_dir()}

    def leftovers(self) -> set[Path]:
        """Temporary files of processes that were killed; exact only while locked."""
        return {path for path in self._temporary.glob("*") if not path.is_dir()}
