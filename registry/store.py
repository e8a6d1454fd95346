"""The content-addressed store: `blobs/sha256/ab/abcd...`. A blob is written whole or not at all and never changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from codi_hub.registry.shared import Shared

_CHUNK = 1 << 20


class Stamp(NamedTuple):
    """Inode, size and time of a file: equal stamps mean, without reading it, that it has not changed."""

    inode: str
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the stamp of a file. Raises OSError."""
        stat = path.stat()
        return cls(str(stat.st_ino), stat.st_size, stat.st_mtime_ns)


def sha256(path: Path) -> str:
    """Return the hash of a file's content in lower-case hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush renames inside `folder` to disk, on systems that can open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def hold(file: Path, *, needed: bool = True) -> Iterator[None]:
    """Hold a lock file; see `Store.locked`. Raises OSError."""
    from filelock import FileLock  # not at the top: queries need no lock

    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(file))
        except OSError:
            if needed:
                raise
        yield


class Store:
    """The blobs under `root`.

    Attributes:
        root: the folder.
        shared: the store of a team, of which this one has copies; None: the blobs are here alone.
        databases_place: what lists the databases with files in the store, for messages.
    """

    def __init__(self, root: Path, shared: Shared | None = None) -> None:
        self.root, self.shared = root, shared
        self._databases_file = root / "databases"
        self.databases_place = f"{shared.name}/databases" if shared else str(self._databases_file)
        self._additions_file = root / "additions.json"
        self._temporary = root / "tmp"

    @contextlib.contextmanager
    def locked(self, *, needed: bool = True) -> Iterator[None]:
        """Hold the store's lock: from the first byte of a blob until its record, and during garbage collection.

        Args:
            needed: False for what only reads, which goes on where the lock cannot be written.

        Raises:
            OSError: the lock cannot be written.
        """
        with hold(self.root / ".lock", needed=needed):
            yield

    def databases(self) -> set[str]:
        """Return the `store_key` of every database with files in this store: none knows the others' files."""
        if self.shared:
            return set(self.shared.additions())
        try:
            return set(self._databases_file.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return set()

    def add_database(self, database: str) -> None:
        """Add to `databases`, while locked. Raises OSError."""
        if self.shared is None and database not in (names := self.databases()):
            self._write(self._databases_file, "\n".join(sorted(names | {database})))

    def additions(self) -> dict[str, int]:
        """Return how many adapters each database has added, of those that have since it is counted."""
        if self.shared:
            return self.shared.additions()
        try:
            return dict(json.loads(self._additions_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    def set_additions(self, database: str, count: int) -> None:
        """Set how many adapters a database has added, unless it is more already, while locked. Raises OSError."""
        counts = self.additions()
        if counts.get(database, -1) >= count:
            return
        if self.shared:
            self.shared.set_additions(database, count)
        else:
            self._write(self._additions_file, json.dumps(counts | {database: count}))

    def _write(self, file: Path, text: str) -> None:
        self._temporary.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / f"{uuid.uuid4().hex}.part"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)

    def path(self, digest: str) -> Path:
        """Return where the blob of a hash is, or would be."""
        return self.root / "sha256" / digest[:2] / digest

    def fetched(self, digest: str) -> Path:
        """Return `path`, where a blob of the team's store is copied to first unless it is there.

        Raises:
            NotFound, InvalidInput, CodiError: see `Shared.download`. OSError: it cannot be copied.
        """
        path = self.path(digest)
        if self.shared and not path.exists():
            with self._temporary_file() as temporary:
                self.shared.download(digest, temporary)
                self._place(temporary, path)
        return path

    @contextlib.contextmanager
    def _temporary_file(self) -> Iterator[Path]:
        """Give the name of a file that is removed unless it was placed."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / f"{uuid.uuid4().hex}.part"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _place(temporary: Path, target: Path) -> None:
        if os.name == "posix":  # elsewhere a read-only file cannot be replaced or deleted
            temporary.chmod(0o444)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)

    def put(self, source: Path) -> tuple[str, int]:
        """Copy a file into the store; return its (sha256, bytes).

        An existing blob is replaced by the same content, which repairs a damaged one.

        Raises:
            OSError: not written; no partial file remains. CodiError: not written to the team's store.
        """
        digest, size = hashlib.sha256(), 0
        with self._temporary_file() as temporary:
            with source.open("rb") as reading, temporary.open("xb") as writing:
                while chunk := reading.read(_CHUNK):
                    digest.update(chunk)
                    size += writing.write(chunk)
                writing.flush()
                os.fsync(writing.fileno())
            target = self.path(digest.hexdigest())
            self._place(temporary, target)
        if self.shared:
            self.shared.upload(target, target.name)
        for folder in (target.parent, target.parent.parent, self.root):
            sync_folder(folder)
        return digest.hexdigest(), size

    def blobs(self) -> set[Path]:
        """Return every file among the blobs, including any that is not a blob."""
        return {path for path in (self.root / "sha256").rglob("*") if not path.is_dir()}

    def leftovers(self) -> set[Path]:
        """Return the temporary files of killed processes; exact only while locked."""
        return {path for path in self._temporary.glob("*") if not path.is_dir()}
