"""The registry: one folder (`home`) with a database and the files it speaks of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import codi_hub
from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound, UsageError
from codi_hub.registry import versions
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.garbage import collect
from codi_hub.registry.lookup import Lookup
from codi_hub.registry.models import READY, REMOVED, adapter, adapter_file, base, setting, task
from codi_hub.registry.references import check_base, check_task
from codi_hub.registry.rows import AdapterRow, BaseRow, Garbage, Problem, TaskRow, now
from codi_hub.registry.runs import RunLog, text
from codi_hub.registry.store import Stamp, Store
from codi_hub.registry.upkeep import Upkeep
from codi_hub.registry.verify import checked, remember, verify

WEIGHTS = "adapter.safetensors"


class Registry(Upkeep, RunLog):
    """What exists. Safe to use from several processes and threads at once.

    `Lookup` has the questions, `Upkeep` tags and removes versions, `RunLog` has the runs.

    Every method raises CodiError where the database cannot be used.
    """

    def __init__(self, home: Path, database: Database, manifest: Manifest | None) -> None:
        self.home = home
        self._database = database
        self._manifest = manifest
        self._store = Store(home / "blobs")

    @classmethod
    def open(cls, home: Path | None = None, *, url: str | None = None, bundled: Path | None = None) -> Self:
        """Opens, and if need be creates or migrates.

        Args:
            home: default CODI_HOME, else the user's data folder.
            url: a PostgreSQL URL; default CODI_REGISTRY_URL, else SQLite in `home`.
            bundled: folder with the bundled models' `manifest.json`; default: the one in the package, if any.

        Raises:
            CodiError: `home` cannot be written, the database cannot be reached, is newer, or does not migrate.
        """
        home = (home or _default_home()).expanduser().absolute()
        try:
            home.mkdir(parents=True, exist_ok=True)
            database = Database(home, url or os.environ.get("CODI_REGISTRY_URL"))
        except OSError as error:
            reason = error.strerror or error
            raise CodiError(f"the home folder {home} cannot be used ({reason}); set CODI_HOME to another") from error
        try:
            manifest = Manifest.load((bundled or Path(str(codi_hub.__file__)).parent / "nano").absolute())
            if manifest:
                _register(database, manifest)
        except BaseException:
            database.close()
            raise
        return cls(home, database, manifest)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- bases

    def add_base(self, name: str, source: str | Path, *, family: str, sketch: dict[str, Any] | None = None) -> BaseRow:
        """Registers a base; the first one there is comes into use. The same again changes nothing.

        Raises UsageError for an impossible name, Conflict where the name stands for another base.
        """
        check_base(name)
        if text(source) != str(source):
            raise UsageError(f"the name of {text(source)} is not valid UTF-8; rename the folder")
        values = {"source": str(source), "family": family, "sketch": sketch, "bundled": False, "created": now()}
        with self._database.write() as connection:
            bases = {row.name: row for row in self._bases(connection)}
            if found := bases.get(name):
                if (found.source, found.family) != (str(source), family):
                    remedy = "choose another name" if found.bundled else f"`codi base rm {name}` first"
                    raise Conflict(
                        f"base {name!r} exists already, from {found.source} (family {found.family}); {remedy}"
                    )
                return found
            versions.insert(connection, base, {"name": name} | values)
            if not any(row.default for row in bases.values()):
                self._put_in_use(connection, name)
        return self.base(name)

    def use_base(self, name: str) -> BaseRow:
        """Makes it the one that every command uses unless told otherwise. Raises NotFound."""
        with self._database.write() as connection:
            self._base(connection, name)
            self._put_in_use(connection, name)
        return self.base(name)

    def remove_base(self, name: str) -> None:
        """Forgets a base, and the versions for it that were removed.

        Raises NotFound, or Conflict for a bundled one and for one that adapters belong to.
        """
        with self._database.write() as connection:
            row, base_id = self._base(connection, name)
            if row.bundled:
                raise Conflict(f"base {name!r} comes with CoDi Hub and cannot be removed")
            if refs := self._refs(connection, base_id):
                some = ", ".join(refs[:3]) + (", ..." if len(refs) > 3 else "")
                raise Conflict(
                    f"base {name!r} has to stay: {len(refs)} adapters were distilled on it ({some}); "
                    f"remove them first with `codi rm --base {name}`"
                )
            connection.execute(adapter.delete().where(adapter.c.base_id == base_id))
            connection.execute(base.delete().where(base.c.id == base_id))

    # ---- tasks

    def add_task(self, name: str, like: str, options: dict[str, Any]) -> tuple[TaskRow, bool]:
        """Registers a task; the row, and whether it is new.

        Raises UsageError for an impossible name, Conflict where it is registered with another template or options.
        """
        check_task(name)
        with self._database.write() as connection:
            found = self._task(connection, name)
            if found is None:
                row = TaskRow(name, like, versions.plain(options), False, now())
                values = {"name": name, "like": like, "options": row.options, "created": row.created}
                connection.execute(task.insert().values(values))
                return row, True
        if (found.like, found.options) != (like, versions.plain(options)):
            settings = " ".join(f"{key}={value}" for key, value in found.options.items()) or "no options"
            raise Conflict(
                f"task {name!r} is registered already, like {found.like} with {settings}; "
                f"to replace it, `codi task rm {name}` first (its adapters stay)"
            )
        return found, False

    def remove_task(self, name: str) -> None:
        """Forgets a registered task; its adapters stay. Raises NotFound."""
        with self._database.write() as connection:
            if not connection.execute(task.delete().where(task.c.name == name)).rowcount:
                raise NotFound(f"no task {name!r} is registered; see `codi task list`")

    # ---- adapters

    def add_adapter(
        self,
        folder: Path,
        *,
        task: str,
        base: str,
        kind: str,
        steps: int,
        parameters: int,
        metrics: dict[str, Any],
        score: float | None = None,
        parent: str | None = None,
    ) -> tuple[AdapterRow, bool]:
        """Copies every file of `folder` in and records them as the next version of (task, base).

        Args:
            metrics: what JSON can hold; numbers that are not finite become null.
            score: held-out, higher is better; None or not finite means unknown.

        Returns:
            The new version, and whether `latest` moved to it: it does unless its score is worse than the holder's.

        Raises:
            NotFound: no such base. InvalidInput: no `adapter.safetensors` in the folder. CodiError: not stored.
        """
        check_task(task)
        with self._database.read() as connection:
            base_id = self._base(connection, base)[1]
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if WEIGHTS not in files:
            raise InvalidInput(f"{folder} is no adapter: it has no {WEIGHTS}")
        values = {"task": task, "base_id": base_id, "kind": kind, "steps": steps, "parameters": parameters}
        values |= {"metrics": versions.plain(metrics), "score": versions.finite(score), "parent": parent}
        with self._storing(f"the adapter in {folder}"):
            return self._record(values, {name: self._store.put(path) for name, path in files.items()})

    def copy_adapter(self, ref: str, task: str, base: str | None = None) -> tuple[AdapterRow, bool]:
        """Records an adapter's files as the next version of another task on the same base, the adapter as its parent.

        Returns:
            The version, and whether it is new: nothing happens where the task has these very weights already.

        Raises:
            NotFound, UsageError: see `resolve`. NotFound, InvalidInput: see `file`. CodiError: not stored.
        """
        check_task(task)
        with self._storing(ref):  # so that no file goes between the look at it and the record that needs it
            source = self.resolve(ref, base)
            with self._database.read() as connection:
                base_id = self._base(connection, source.base)[1]
                same = (adapter.c.status == READY, adapter.c.sha256 == source.sha256)
                there = self._adapters(connection, (*same, adapter.c.task == task, adapter.c.base_id == base_id))
            if there:
                return there[-1], False
            kept = ("kind", "steps", "parameters", "metrics", "score")
            values = {"task": task, "base_id": base_id, "parent": source.ref}
            values |= {name: getattr(source, name) for name in kept}
            return self._record(values, {name: self._blob(source, name) for name in self.files(source)})[0], True

    def _blob(self, row: AdapterRow, name: str) -> tuple[str, int]:
        """(sha256, bytes) of an adapter's file that lies in the store; a bundled one is put there. See `file`."""
        with self._database.read() as connection:
            found = self._file(connection, row, name)
        path = self._store.path(found.sha256)
        try:
            checked(self._database, path, found.sha256, f"{name} of {row.ref}")
        except (NotFound, InvalidInput):
            if found.folder is None:
                raise
            return self._store.put(self.file(row, name))
        return found.sha256, path.stat().st_size

    @contextlib.contextmanager
    def _storing(self, what: str) -> Iterator[None]:
        """For a whole addition, from the first byte to the record. Raises CodiError where the disk does not take it."""
        try:
            with self._store.locked():
                self._store.note(self._database.mark)
                yield
        except OSError as error:
            where, why = self._store.root, error.strerror or error
            raise CodiError(f"{what} could not be stored under {where}: {why}") from error

    def _record(self, values: dict[str, Any], stored: dict[str, tuple[str, int]]) -> tuple[AdapterRow, bool]:
        digest, size = stored[WEIGHTS]
        values |= {"sha256": digest, "bytes": size, "status": READY, "created": now()}
        with self._database.write() as connection:
            holder = versions.latest(connection, values["task"], values["base_id"])
            values["version"] = versions.next_version(connection, values["task"], values["base_id"])
            adapter_id = versions.insert(connection, adapter, values)
            rows = [
                {"adapter_id": adapter_id, "name": name, "sha256": d, "bytes": n} for name, (d, n) in stored.items()
            ]
            connection.execute(adapter_file.insert(), rows)
            row = connection.execute(adapter.select().where(adapter.c.id == adapter_id)).one()
            moved = versions.move_latest(connection, row, holder)
            for digest, _ in stored.values():
                path = self._store.path(digest)
                remember(connection, path, digest, Stamp.of(path))
            return self._adapter(connection, adapter.c.id == adapter_id), moved

    def file(self, row: AdapterRow, name: str) -> Path:
        """Where a file of an adapter lies; its content has been checked since it last changed.

        Raises NotFound for a file that is not part of it or not there, InvalidInput for one that was tampered with.
        """
        with self._database.read() as connection:
            found = self._file(connection, row, name)
        if found.status == REMOVED:  # since it was looked up
            raise NotFound(f"{row.ref} for base {row.base} has been removed; see `codi list {row.task}`")
        if found.folder is None:
            path = self._store.path(found.sha256)
        elif self._manifest and row.status == READY:
            path = self._manifest.root / found.folder / name
        else:
            raise NotFound(f"{row.ref} came with another CoDi Hub, and this one lacks its files; use {row.task}:latest")
        return checked(self._database, path, found.sha256, f"{name} of {row.ref}")

    def verify(self) -> list[Problem]:
        """Rehashes every file and compares both ways; an empty list means that all is well."""
        return verify(self._database, self._store, self._manifest)

    def collect(self, *, dry_run: bool = False) -> list[Garbage]:
        """Deletes the files that no adapter needs any more; what they are, or were. See `garbage.collect`."""
        return collect(self._database, self._store, dry_run=dry_run)

    @staticmethod
    def _put_in_use(connection: Any, name: str) -> None:
        versions.put(connection, setting, {"name": Lookup.IN_USE}, {"value": name})


def _default_home() -> Path:
    if named := os.environ.get("CODI_HOME"):
        return Path(named)
    from platformdirs import user_data_dir

    return Path(user_data_dir("codi-hub", appauthor=False))


def _register(database: Database, manifest: Manifest) -> None:
    with database.read() as connection:
        if manifest.is_registered(connection):
            return
    with database.write() as connection:
        manifest.register(connection)
