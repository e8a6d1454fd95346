"""The database of a registry: created on first use, migrated after a backup, used in transactions."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from codi_hub.errors import CodiError, InvalidInput, UsageError
from codi_hub.interrupts import delayed_interrupts
from codi_hub.registry import frozen, models
from codi_hub.registry.store import hold, sync_folder

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30
LOCK = ".registry.lock"
_ADVISORY_LOCK, _STORE_LOCK = 0xC0D1, 0xC0D2
_IDENTITY = "identity"  # setting: the random name of a database on a server
# Its pool logs what is raised while a connection closes, such as Ctrl-C, and raises it again: no second text on stderr.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())


def revisions() -> list[str]:
    """Return the known revisions, oldest first: the numbers at the beginning of the migrations' file names."""
    return sorted(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


class Database:
    """A registry's database at the newest revision: SQLite in `home`, or PostgreSQL by its URL.

    Attributes:
        name: its file, or its URL without the password.
        store_key: its name in the store's list of databases: a file's path, relative to `home`, which may move; a
            server's own random name, since its URL can be written in several ways.
        engine: SQLAlchemy's engine; use `read` and `write` for transactions.
        frozen: why the database cannot be written; it is then used as a copy in memory. None where it can be.

    Raises:
        CodiError: the database cannot be reached, is of a newer version, or does not migrate.
    """

    def __init__(self, home: Path, url: str | None) -> None:
        self._home = home
        self._url = _parsed(url) if url else URL.create("sqlite", database=str(home / "registry.db"))
        self._file = Path(str(self._url.database)) if self._url.get_backend_name() == "sqlite" else None
        self.name = str(self._file or self._url.render_as_string(hide_password=True))
        self.store_key = os.path.relpath(self._file.resolve(), home.resolve()) if self._file else ""
        self.frozen: str | None = None
        self._copy: frozen.Copy | None = None
        cause = frozen.unwritable(self._file) if self._file else None
        if cause is not None:
            self._freeze(cause)
            return
        try:
            self._open()
        except (CodiError, DBAPIError, OSError):
            if not self.freeze_if_unwritable():
                raise

    def _open(self) -> None:
        if self._file and not _has_content(self._file):
            self._create(self._file)
        self._connect(self._url)
        try:
            if self._is_old():
                self._migrate()
            if not self._file:
                self.store_key = f"postgresql:{self._identity()}"
        except BaseException:
            self.close()
            raise

    def _identity(self) -> str:
        """Return the random name of this database, which the first caller gives it."""
        query = select(models.setting.c.value).where(models.setting.c.name == _IDENTITY)
        with self.read() as connection:
            if found := connection.scalar(query):
                return str(found)
        with self.write() as connection:
            if not (found := connection.scalar(query)):
                found = uuid.uuid4().hex
                connection.execute(models.setting.insert().values(name=_IDENTITY, value=found))
            return str(found)

    @contextlib.contextmanager
    def storing(self, *, alone: bool = False, needed: bool = True) -> Iterator[Callable[[], None]]:
        """Hold what keeps additions to the store and garbage collection apart on all machines that use the database.

        Args:
            alone: for garbage collection; additions hold it together.
            needed: False for what only reads, which goes on where a file cannot be locked.

        Yields:
            A function that raises CodiError if it is no longer held, since the server was restarted.
        """
        if self._file:
            with hold(self._file.with_name(f".{self._file.name}.store.lock"), needed=needed):
                yield lambda: None
            return
        engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        with self._database_errors(), engine.connect() as connection:
            connection.detach()  # the lock is the session's: it ends with it, however this process ends
            shared = "" if alone else "_shared"
            connection.exec_driver_sql(f"SELECT pg_advisory_lock{shared}({_STORE_LOCK})")
            yield lambda: self._check(connection)

    def _check(self, connection: Connection) -> None:
        with self._database_errors():
            connection.exec_driver_sql("SELECT 1")

    def _connect(self, url: URL) -> None:
        self.engine = _engine(url)
        self._writer = self.engine.execution_options(write=True)

    @property
    def is_server(self) -> bool:
        """Whether the database is a server's, which other machines may use too."""
        return self._file is None

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()
        if self._copy:
            self._copy.close()

    # ---- a disk that cannot be written

    def freeze_if_unwritable(self) -> bool:
        """Go on with a copy in memory if nothing can be written beside the database; return whether it is so."""
        cause = frozen.write_error(self._file.parent) if self._file and not self.frozen else None
        if cause is not None:
            self._freeze(cause)
        return cause is not None

    def refresh(self) -> None:
        """Copy the database again, if it is used as a copy."""
        if self.frozen:
            self.close()
            self._freeze(self.frozen)

    def check_writable(self) -> None:
        """Raise CodiError, with the cause, where the database is used as a copy."""
        if self.frozen:
            raise self._unwritable(self.frozen)

    def _freeze(self, cause: str) -> None:
        assert self._file is not None
        try:
            self._copy = frozen.Copy(self._file)
        except (OSError, sqlite3.Error) as error:
            raise CodiError(f"the registry {self.name} cannot be read ({error}), nor written ({cause})") from error
        self.frozen = cause
        self._connect(self._copy.url)
        if self._is_old():
            _upgrade(self._copy.url, self._home)

    def _unwritable(self, cause: str) -> CodiError:
        remedy = "make room there (`codi gc`)" if cause in frozen.NO_SPACE else "allow writing there"
        folder = self._file.parent if self._file else self._home
        return CodiError(f"the home folder {folder} cannot be written ({cause}): {remedy}, or set CODI_HOME to another")

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a transaction that reads one consistent state. Raises CodiError where the database cannot be used."""
        with delayed_interrupts(), self._database_errors(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self, *, to_copy: bool = False) -> Iterator[Connection]:
        """Begin the only transaction that may write, while others wait; commit it, or roll it back on an exception.

        Args:
            to_copy: write to the copy where the database cannot be written; it is lost with the process.

        Raises:
            CodiError: the database cannot be used, or not be written.
        """
        if not to_copy:
            self.check_writable()
        with delayed_interrupts(), self._database_errors(), self._writer.begin() as connection:
            yield connection

    def note(self, write: Callable[[Connection], object]) -> None:
        """Call `write` in a transaction for what reading can do without; where it fails, nothing is written."""
        with contextlib.suppress(CodiError), self.write(to_copy=True) as connection:
            write(connection)

    @contextlib.contextmanager
    def leftovers(self, *, needed: bool = True) -> Iterator[set[Path]]:
        """Lock creation and migration (see `hold`); give the partial databases and backups of killed processes."""
        with hold(self._home / LOCK, needed=needed):
            yield {*self._home.glob(".registry.db.*.part*"), *(self._home / "backups").glob("*.part*")}

    @contextlib.contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # a mistake in this package, not a state of the database
            raise
        except DBAPIError as error:
            reason = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            if "not a database" in reason or "malformed" in reason:
                raise InvalidInput(
                    f"the registry {self.name} is damaged ({reason}); restore it from a backup"
                ) from error
            if self._file and not self.frozen and (cause := frozen.write_error(self._file.parent)):
                raise self._unwritable(cause) from error
            raise CodiError(f"the registry {self.name} cannot be used: {reason}; correct that and try again") from error

    # ---- revisions

    def _is_old(self) -> bool:
        with self.read() as connection:
            return _needs_migration(connection, self.name)

    def _create(self, file: Path) -> None:
        """Create the file under another name and rename it: no process sees it empty or without WAL mode."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with hold(self._home / LOCK):
            if _has_content(file):
                return
            building = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
            try:
                _upgrade(self._url.set(database=str(building)), self._home)
                os.replace(building, file)
            finally:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    building.with_name(building.name + suffix).unlink(missing_ok=True)
            sync_folder(file.parent)

    def _migrate(self) -> None:
        with hold(self._home / LOCK):
            if not self._is_old():  # migrated by another process meanwhile
                return
            safe = f"a backup is at {_backup(self._file, self._home)}" if self._file else "nothing was changed"
            try:
                _upgrade(self._url, self._home)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise CodiError(
                    f"the registry {self.name} could not be brought to this version ({reason}); it is as it was, "
                    f"{safe}: use the previous version of CoDi Hub and report this"
                ) from error


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    except ArgumentError:
        raise UsageError("CODI_REGISTRY_URL is not a database URL; write postgresql://user@host/database") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql") or not parsed.database:
        shown = parsed.render_as_string(hide_password=True)
        raise UsageError(f"a registry cannot be at {shown}; use postgresql://user@host/database or sqlite:///FILE")
    return parsed


def _engine(url: URL, *, migrating: bool = False) -> Engine:
    """Return an engine; `migrating` turns foreign keys off, which SQLite allows only outside a transaction."""
    sqlite = url.get_backend_name() == "sqlite"
    if url.drivername == "postgresql":  # SQLAlchemy 2.0 would look for psycopg2
        url = url.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}} if sqlite else {"pool_pre_ping": True}
    try:
        engine = create_engine(url, **options, **({"poolclass": NullPool} if migrating else {}))
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise UsageError(f"the driver for {url.drivername} is missing ({error}); pip install psycopg[binary]") from None

    def connected(dbapi_connection: Any, _: object) -> None:
        dbapi_connection.isolation_level = None  # otherwise the driver begins late, and never before DDL
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
    """Return whether migrations are missing. Raises CodiError for a newer database, or one that is not a registry."""
    known = revisions()
    inspector = inspect(connection)
    if not inspector.has_table("alembic_version"):
        if foreign := set(inspector.get_table_names()) & set(models.metadata.tables):
            raise InvalidInput(f"{name} is not a registry: it has a table {min(foreign)} but no record of its version")
        return True
    current = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if current is not None and current not in known:
        raise CodiError(
            f"the registry {name} was written by a newer CoDi Hub (revision {current}, this one knows up to "
            f"{known[-1]}): update with `pip install -U codi-hub`, or set CODI_HOME to another folder"
        )
    return current != known[-1]


def _upgrade(url: URL, home: Path) -> None:
    """Run the missing migrations in one transaction: all of them, or none."""
    from alembic import command
    from alembic.config import Config

    engine = _engine(url, migrating=True)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.execution_options(write=True).begin() as connection:
            config.attributes |= {"connection": connection, "home": home}
            command.upgrade(config, "head")
            if engine.dialect.name == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                if broken:
                    raise CodiError(f"row {broken[1]} of table {broken[0]} has no counterpart in {broken[2]}")
    finally:
        engine.dispose()


def _backup(file: Path, home: Path) -> Path:
    """Copy the database with SQLite's backup function, which includes the write-ahead log; return the new file."""
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
