"""Opens the database: creates it, migrates it after a backup, and hands out transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from codi_hub.errors import CodiError, InvalidInput, UsageError
from codi_hub.registry import models
from codi_hub.registry.store import sync_folder

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30
_ADVISORY_LOCK = 0xC0D1


def revisions() -> list[str]:
    """Every revision this version knows, oldest first: the numbers that the migrations' file names begin with."""
    return sorted(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


class Database:
    """A registry's database at the newest revision. SQLite, or PostgreSQL by its URL.

    Raises CodiError when opened: an unreachable database, one of a newer version, a migration that failed.
    """

    def __init__(self, home: Path, url: str | None) -> None:
        self._home = home
        self._url = _parsed(url) if url else URL.create("sqlite", database=str(home / "registry.db"))
        self._file = Path(str(self._url.database)) if self._url.get_backend_name() == "sqlite" else None
        self.name = str(self._file or self._url.render_as_string(hide_password=True))
        # What the store calls it; for a file as seen from the home, which may move.
        self.mark = os.path.relpath(self._file.resolve(), home.resolve()) if self._file else self.name
        if self._file and not _has_content(self._file):
            self._create(self._file)
        self.engine = _engine(self._url)
        self._writer = self.engine.execution_options(write=True)
        try:
            if self._is_old():
                self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view. Raises CodiError when the database cannot be used."""
        with self._explained(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """The one writer: others wait. Commits at the end, or rolls back on any exception."""
        with self._explained(), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[set[Path]]:
        """What killed processes left of new databases and backups; meanwhile nobody makes any."""
        with self._locked():
            yield {*self._home.glob(".registry.db.*.part*"), *(self._home / "backups").glob("*.part*")}

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # not the database's state but a mistake in this package
            raise
        except DBAPIError as error:
            said = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            if "not a database" in said or "malformed" in said:
                raise InvalidInput(f"the registry {self.name} is damaged ({said}); restore it from a backup") from error
            raise CodiError(f"the registry {self.name} cannot be used: {said}; put that right and try again") from error

    # ---- revisions

    def _is_old(self) -> bool:
        with self.read() as connection:
            return _needs_migration(connection, self.name)

    def _create(self, file: Path) -> None:
        """Builds the file beside its place and renames it, so that nobody ever sees it empty or not in WAL mode."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if _has_content(file):
                return
            building = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
            try:
                _upgrade(self._url.set(database=str(building)))
                os.replace(building, file)
            finally:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    building.with_name(building.name + suffix).unlink(missing_ok=True)
            sync_folder(file.parent)

    def _migrate(self) -> None:
        with self._locked():
            if not self._is_old():  # another process has just done it
                return
            kept = f"a backup is at {_backup(self._file, self._home)}" if self._file else "nothing was changed"
            try:
                _upgrade(self._url)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise CodiError(
                    f"the registry {self.name} could not be brought to this version ({reason}); it is as it was, "
                    f"{kept}: use the previous version of CoDi Hub and report this"
                ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock  # not at the top: an open that changes nothing has no use for it

        with FileLock(self._home / ".registry.lock"):
            yield


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    except ArgumentError:
        raise UsageError("CODI_REGISTRY_URL is no database URL; write postgresql://user@host/database") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql") or not parsed.database:
        shown = parsed.render_as_string(hide_password=True)
        raise UsageError(f"a registry cannot be at {shown}; use postgresql://user@host/database or sqlite:///FILE")
    return parsed


def _engine(url: URL, *, migrating: bool = False) -> Engine:
    """`migrating`: without foreign keys, which SQLite can only switch outside a transaction, and in WAL mode."""
    sqlite = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}} if sqlite else {"pool_pre_ping": True}
    try:
        engine = create_engine(url, **options, **({"poolclass": NullPool} if migrating else {}))
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise UsageError(f"the driver for {url.drivername} is missing ({error}); pip install psycopg[binary]") from None

    def connected(dbapi_connection: Any, _: object) -> None:
        dbapi_connection.isolation_level = None  # the driver would begin late, and never before DDL
        dbapi_connection.execute(f"PRAGMA foreign_keys = {'OFF' if migrating else 'ON'}")
        if migrating:
            dbapi_connection.execute("PRAGMA journal_mode = WAL")

    def begun(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        if sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        elif write:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")

    if sqlite:
        event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    return engine


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _needs_migration(connection: Connection, name: str) -> bool:
    """Raises CodiError for a database that is newer than this version, or is not a registry."""
    known = revisions()
    inspector = inspect(connection)
    if not inspector.has_table("alembic_version"):
        if foreign := set(inspector.get_table_names()) & set(models.metadata.tables):
            raise InvalidInput(f"{name} is no registry: it has a table {min(foreign)} but no record of its version")
        return True
    current = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if current is not None and current not in known:
        raise CodiError(
            f"the registry {name} was written by a newer CoDi Hub (revision {current}, this one knows up to "
            f"{known[-1]}): update with `pip install -U codi-hub`, or set CODI_HOME to another folder"
        )
    return current != known[-1]


def _upgrade(url: URL) -> None:
    """Runs what migrations are missing in one transaction: all of them, or none."""
    from alembic import command
    from alembic.config import Config

    engine = _engine(url, migrating=True)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.execution_options(write=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if engine.dialect.name == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                if broken:
                    raise CodiError(f"row {broken[1]} of table {broken[0]} would point to nothing in {broken[2]}")
    finally:
        engine.dispose()


def _backup(file: Path, home: Path) -> Path:
    """A consistent copy by SQLite's own backup, which sees what still lies in the write-ahead log. Never overwrites."""
    folder = home / "backups"
    folder.mkdir(exist_ok=True)
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = folder / f"{file.stem}-{moment}.db"
    temporary = target.with_suffix(".part")
    source, copy = sqlite3.connect(file, timeout=BUSY_SECONDS), sqlite3.connect(temporary)
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
    os.replace(temporary, target)
    sync_folder(folder)
    return target
