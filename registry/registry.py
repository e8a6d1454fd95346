"""The registry: one folder (`home`) with a database and the files that it records."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import codi_hub
from codi_hub.errors import CodiError
from codi_hub.registry.adapters import Adapters
from codi_hub.registry.bases import Bases
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.rows import Garbage, Problem
from codi_hub.registry.runs import RunLog
from codi_hub.registry.shared import Shared
from codi_hub.registry.store import Store
from codi_hub.registry.tasks import Tasks
from codi_hub.registry.verify import collect, verify


class Registry:
    """The bases, tasks, adapter versions and runs of one home folder.

    Safe to use from several processes and threads at once. Every method raises CodiError where the database cannot
    be used.

    Attributes:
        home: the state folder.
        database: where the rows are.
        bases: the base models.
        tasks: registered tasks; the built-in ones have no row.
        adapters: adapter versions, their files and tags.
        runs: the run log.
        shared: the store of a team, None where all is in `home`.
    """

    def __init__(self, home: Path, database: Database, manifest: Manifest | None, shared: Shared | None) -> None:
        self.home = home
        self.database = database
        self._manifest = manifest
        self.shared = shared
        self._store = Store(home / "blobs", shared)
        self.bases = Bases(database, manifest)
        self.tasks = Tasks(database)
        self.adapters = Adapters(database, self._store, self.bases, manifest)
        self.runs = RunLog(database)

    @classmethod
    def open(
        cls, home: Path | None = None, *, url: str | None = None, store: str | None = None, bundled: Path | None = None
    ) -> Self:
        """Open a registry; create or migrate it where necessary.

        Args:
            home: default CODI_HOME, else the user's data folder.
            url: a PostgreSQL URL; default CODI_REGISTRY_URL, else SQLite in `home`.
            store: URL of the store of a team's machines; default CODI_STORE_URL, else all is in `home`.
            bundled: folder with the bundled models' `manifest.json`; default: the package's own, if any.

        Raises:
            CodiError: `home` is no folder, the database cannot be reached, is newer, or does not migrate.
        """
        home = (home or _default_home()).expanduser().absolute()
        try:
            with contextlib.suppress(PermissionError):
                _make(home)
            database = Database(home, url or os.environ.get("CODI_REGISTRY_URL"))
        except OSError as error:
            reason = error.strerror or error
            raise CodiError(f"the home folder {home} cannot be used ({reason}); set CODI_HOME to another") from error
        try:
            manifest = Manifest.load((bundled or Path(str(codi_hub.__file__)).parent / "nano").absolute())
            if manifest:
                try:
                    _register(database, manifest)
                except CodiError:
                    if not database.freeze_if_unwritable():
                        raise
                    _register(database, manifest)
        except BaseException:
            database.close()
            raise
        place = store or os.environ.get("CODI_STORE_URL")
        return cls(home, database, manifest, Shared(place) if place else None)

    def close(self) -> None:
        """Close the database connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self) -> Sequence[Problem]:
        """Rehash every file and compare files and records both ways; an empty list means that they agree."""
        return verify(self.database, self._store, self._manifest)

    def collect(self, *, dry_run: bool = False) -> Sequence[Garbage]:
        """Delete the files that no adapter needs, and return them; see `verify.collect`."""
        try:
            return collect(self.database, self._store, dry_run=dry_run)
        except OSError as error:
            raise CodiError(f"nothing can be deleted in {self.home}: {error.strerror or error}") from error


def _default_home() -> Path:
    if named := os.environ.get("CODI_HOME"):
        return Path(named)
    from platformdirs import user_data_dir

    return Path(user_data_dir("codi-hub", appauthor=False))


def _make(home: Path) -> None:
    """Create the home folder; a disk that cannot be written has an empty registry in memory. Raises OSError."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise


def _register(database: Database, manifest: Manifest) -> None:
    with database.read() as connection:
        if manifest.is_registered(connection):
            return
    with database.write(to_copy=True) as connection:
        manifest.register(connection)
