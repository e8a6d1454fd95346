"""The registry: one folder (`home`) with a database and the files it speaks of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import codi_hub
from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound, UsageError
from codi_hub.registry import versions
from codi_hub.registry.bundled import READY, Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.lookup import Lookup
from codi_hub.registry.models import adapter, adapter_file, base, setting, tag, task
from codi_hub.registry.references import LATEST, check_base, check_tag, check_task, parse
from codi_hub.registry.rows import AdapterRow, BaseRow, Problem, TaskRow, now
from codi_hub.registry.runs import RunLog, text
from codi_hub.registry.store import Stamp, Store
from codi_hub.registry.verify import checked, remember, verify

WEIGHTS = "adapter.safetensors"


class Registry(Lookup, RunLog):
    """What exists. Safe to use from several processes and threads at once. `Lookup` has the questions, `RunLog` runs.

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
        """Forgets a base. Raises NotFound, or Conflict for a bundled one and for one that adapters belong to."""
        with self._database.write() as connection:
            row, base_id = self._base(connection, name)
            if row.bundled:
                raise Conflict(f"base {name!r} comes with CoDi Hub and cannot be removed")
            if refs := self._refs(connection, base_id):
                some = ", ".join(refs[:3]) + (", ..." if len(refs) > 3 else "")
                raise Conflict(f"base {name!r} has to stay: {len(refs)} adapters were distilled on it ({some})")
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
        try:
            with self._store.locked():
                stored = {name: self._store.put(path) for name, path in files.items()}
                return self._record(values, stored)
        except OSError as error:
            where, why = self._store.root, error.strerror or error
            raise CodiError(f"the adapter in {folder} could not be stored under {where}: {why}") from error

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

    def tag(self, ref: str, name: str, base: str | None = None) -> AdapterRow:
        """Points a tag, `latest` included, to a version. Raises NotFound or UsageError."""
        check_tag(name)
        with self._database.write() as connection:
            row = self._resolve(connection, parse(ref), base)
            versions.move_tag(
                connection, name, connection.execute(adapter.select().where(adapter.c.id == row.id)).one()
            )
            return self._adapter(connection, adapter.c.id == row.id)

    def untag(self, ref: str, name: str, base: str | None = None) -> None:
        """Removes a tag from the task of `ref`, on one base. Raises NotFound, or UsageError for `latest`."""
        if name == LATEST:
            raise UsageError("every task has a latest version; move it with `codi tag TASK:VERSION latest`")
        with self._database.write() as connection:
            row, base_id = self._base(connection, base)
            mine = (tag.c.task == parse(ref).task, tag.c.base_id == base_id, tag.c.name == name)
            if not connection.execute(tag.delete().where(*mine)).rowcount:
                raise NotFound(f"{parse(ref).task} has no tag {name!r} for base {row.name}; see `codi list`")

    def file(self, row: AdapterRow, name: str) -> Path:
        """Where a file of an adapter lies; its content has been checked since it last changed.

        Raises NotFound for a file that is not part of it or not there, InvalidInput for one that was tampered with.
        """
        with self._database.read() as connection:
            found = self._file(connection, row, name)
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
