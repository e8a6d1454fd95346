"""The blobs of a team below an URL, such as s3://bucket/prefix or a folder that every machine mounts."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import time
import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from codi_hub.errors import CodiError, InvalidInput, NotFound
from codi_hub.filesystems import file_system_errors, opened, shown, write_whole

Answer = TypeVar("Answer")

WAITS = (0.2, 1.0, 4.0)  # seconds before a refused call is made again
CHUNK = 1 << 20
FULL = {errno.ENOSPC, errno.EDQUOT}


class Shared:
    """What all machines of a team have in common; each keeps copies of what it uses in its own store.

    Objects below the URL: `sha256/ab/abcd...`, as in a machine's own store, and `databases/NAME`, the number of
    adapters that a database has added. A call that is refused is made again, three times.

    Attributes:
        name: the URL, without a password.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = shown(url).rstrip("/")

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system and the root; opened by the first use, since most commands need none."""
        return opened(self._url)

    @staticmethod
    def path(digest: str) -> str:
        """Return the path of a blob below the URL."""
        return f"sha256/{digest[:2]}/{digest}"

    def where(self, digest: str) -> str:
        """Return where a blob is or would be, for messages."""
        return f"{self.name}/{self.path(digest)}"

    # ---- blobs

    def upload(self, source: Path, digest: str) -> None:
        """Write a blob, whole or not at all; one that is there is written again, which mends a damaged one.

        Raises:
            CodiError: it cannot be written.
        """
        self._write(self.path(digest), source)

    def download(self, digest: str, target: Path) -> None:
        """Copy a blob to a file that is not there yet, and check its content.

        Raises:
            NotFound: it is not there. InvalidInput: its content is another. CodiError: it cannot be read or copied.
        """
        self._call(lambda system, root: system.get_file(f"{root}/{self.path(digest)}", str(target)), self.path(digest))
        with target.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest:
            raise InvalidInput(f"{self.where(digest)} has other content (sha256 {actual[:12]}...): restore it")

    def sha256(self, digest: str) -> str:
        """Read a blob; return the hash of its content. Raises NotFound or CodiError."""

        def read(system: Any, root: str) -> str:
            found = hashlib.sha256()
            with system.open(f"{root}/{self.path(digest)}", "rb") as file:
                while chunk := file.read(CHUNK):
                    found.update(chunk)
            return found.hexdigest()

        return self._call(read, self.path(digest))

    def blobs(self) -> dict[str, int]:
        """Return the bytes of everything among the blobs, by its path such as `sha256/ab/abcd...`."""
        return self._sizes("sha256")

    def leftovers(self) -> dict[str, int]:
        """Return the bytes of the partial files of killed processes; exact only while nothing is added."""
        return self._sizes("tmp")

    def delete(self, path: str) -> None:
        """Delete one of `blobs` or `leftovers`. Raises CodiError."""
        with contextlib.suppress(NotFound):
            self._call(lambda system, root: system.rm_file(f"{root}/{path}"), path)

    # ---- databases

    def additions(self) -> dict[str, int]:
        """Return how many adapters each database has added, by its `store_key`."""

        def read(system: Any, root: str) -> dict[str, int]:
            contents = [json.loads(system.cat_file(f"{root}/{path}")) for path in self._sizes("databases")]
            return {content["database"]: content["additions"] for content in contents}

        return self._call(read, "databases")

    def set_additions(self, database: str, count: int) -> None:
        """Set how many adapters a database has added. Raises CodiError."""
        content = json.dumps({"database": database, "additions": count}).encode()
        name = f"databases/{hashlib.sha256(database.encode()).hexdigest()[:16]}.json"
        self._write(name, content)

    # ---- calls

    def seconds(self) -> dict[str, float]:
        """Return the seconds that it took to write, list, read and delete a small object. Raises CodiError."""
        path, content = f"tmp/{uuid.uuid4().hex}", b"0" * 1024
        calls: dict[str, Callable[[], object]] = {
            "write": lambda: self._write(path, content),
            "list": self.leftovers,
            "read": lambda: self._call(lambda system, root: system.cat_file(f"{root}/{path}"), path),
            "delete": lambda: self.delete(path),
        }
        found = {}
        self.leftovers()  # the first call opens the connection
        for what, call in calls.items():
            begun = time.perf_counter()
            call()
            found[what] = time.perf_counter() - begun
        return found

    def _sizes(self, folder: str) -> dict[str, int]:
        def find(system: Any, root: str) -> dict[str, int]:
            try:
                found = system.find(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
            return {name.removeprefix(f"{root}/"): int(entry["size"] or 0) for name, entry in found.items()}

        return self._call(find, folder)

    def _write(self, path: str, content: Path | bytes) -> None:
        self._call(lambda system, root: write_whole(system, f"{root}/{path}", content, f"{root}/tmp"), path)

    def _call(self, call: Callable[[Any, str], Answer], what: str) -> Answer:
        """Return what a call of the file system and the root returns. Raises CodiError where it is refused."""
        system, root = self._place
        with file_system_errors(f"{self.name}/{what}", missing="is not in the store"):
            for wait in WAITS:
                try:
                    return call(system, root)
                except Exception as error:
                    if not _may_pass(error):
                        raise
                time.sleep(wait)
            return call(system, root)


def _may_pass(error: Exception) -> bool:
    """Return whether the same call may succeed later."""
    final = isinstance(error, (FileNotFoundError, PermissionError, CodiError))
    return not final and getattr(error, "errno", None) not in FULL
