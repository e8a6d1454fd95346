"""Adapter versions: list, resolve, add, copy, tag and remove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, update

from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound, UsageError
from codi_hub.registry import lookup, recovery, versions
from codi_hub.registry.additions import fill_shared, storing
from codi_hub.registry.bases import Bases
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.models import READY, REMOVED, adapter, adapter_file, tag
from codi_hub.registry.references import LATEST, check_tag, check_task, parse
from codi_hub.registry.rows import AdapterRow, Recovery, Removal, now, storable
from codi_hub.registry.store import Stamp, Store
from codi_hub.registry.verify import check_file, record_hash

if TYPE_CHECKING:
    from codi_hub.record import AdapterRecord

WEIGHTS = "adapter.safetensors"


class Adapters:
    """The adapter versions of every task and base. Versions never change, and no number is used twice.

    Args:
        manifest: of the bundled models; None where nothing is bundled.
    """

    def __init__(self, database: Database, store: Store, bases: Bases, manifest: Manifest | None) -> None:
        self._database = database
        self._store = store
        self._bases = bases
        self._manifest = manifest

    # ---- queries

    def list(
        self, task: str | None = None, base: str | None = None, limit: int | None = None, offset: int = 0
    ) -> Sequence[AdapterRow]:
        """Return adapters sorted by task, base and version, from the `offset`th on.

        Raises NotFound for an unknown base; an unknown task has none.
        """
        with self._database.read() as connection:
            where = [adapter.c.status == READY]
            if task is not None:
                where.append(adapter.c.task == storable(task))
            if base is not None:
                where.append(adapter.c.base_id == self._bases.find(connection, base)[1])
            return lookup.adapter_rows(connection, where, limit, offset)

    def count(self) -> int:
        """Return the number of adapters."""
        with self._database.read() as connection:
            return connection.scalar(select(func.count()).where(adapter.c.status == READY)) or 0

    def bundled(self) -> Sequence[AdapterRow]:
        """Return the adapters that come with the package."""
        with self._database.read() as connection:
            return lookup.adapter_rows(connection, (adapter.c.status == READY, adapter.c.folder.is_not(None)))

    def resolve(self, ref: str, base: str | None = None) -> AdapterRow:
        """Return the adapter that `task`, `task:version` or `task:tag` means, on the base in use unless named.

        Raises:
            UsageError: not a reference. NotFound: no such adapter; the message names what exists instead.
        """
        reference = parse(ref)
        with self._database.read() as connection:
            base_row, base_id = self._bases.find(connection, base)
            return lookup.resolve(connection, reference, base_row.name, base_id)

    def files(self, row: AdapterRow) -> Sequence[str]:
        """Return the names of an adapter's files, sorted."""
        query = select(adapter_file.c.name).where(adapter_file.c.adapter_id == row.id).order_by(adapter_file.c.name)
        with self._database.read() as connection:
            return [*connection.scalars(query)]

    def file(self, row: AdapterRow, name: str) -> Path:
        """Return the path of an adapter's file, whose content is checked whenever the file has changed.

        Raises:
            NotFound: not one of its files, or a missing one. InvalidInput: its content is not what was registered.
        """
        with self._database.read() as connection:
            record = lookup.file_record(connection, row, name)
        if record.status == REMOVED:  # after `row` was read
            raise NotFound(f"{row.ref} for base {row.base} has been removed; see `codi list {row.task}`")
        what = f"{name} of {row.ref}"
        if record.folder is None:
            return self._stored(record.sha256, what)
        if self._manifest and row.status == READY:
            path = self._manifest.root / record.folder / name
        else:
            raise NotFound(f"{row.ref} came with another CoDi Hub, and this one lacks its files; use {row.task}:latest")
        return check_file(self._database, path, record.sha256, what)

    def _stored(self, digest: str, what: str) -> Path:
        """Return the path of a blob with the right content: a team's is copied here, again if the copy is damaged."""
        try:
            try:
                return check_file(self._database, self._store.fetched(digest), digest, what)
            except (NotFound, InvalidInput) as error:
                if not self._store.shared and isinstance(error, NotFound) and self._database.is_server:
                    raise NotFound(f"{error}; or share the files of all machines with CODI_STORE_URL") from error
                if not self._store.shared:
                    raise
            self._store.path(digest).unlink(missing_ok=True)
            return check_file(self._database, self._store.fetched(digest), digest, what)
        except OSError as error:
            raise CodiError(f"{what} cannot be copied to {self._store.root}: {error.strerror or error}") from error

    def holding(self, sha256: str, task: str, base: str) -> AdapterRow | None:
        """Return the newest version of a task on a base with these weights, None if it has none. Raises NotFound."""
        with self._database.read() as connection:
            where = (adapter.c.status == READY, adapter.c.sha256 == sha256, adapter.c.task == task)
            base_id = self._bases.find(connection, base)[1]
            rows = lookup.adapter_rows(connection, (*where, adapter.c.base_id == base_id))
        return rows[-1] if rows else None

    # ---- additions

    def add(
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
        """Copy every file of `folder` into the store and record them as the next version of (task, base).

        The method comes from its `adapter.json`.

        Args:
            metrics: values that JSON can hold; numbers that are not finite become null.
            score: held-out, higher is better; None or not finite means unknown.

        Returns:
            The new version, and whether `latest` moved to it: it does if both were measured on the same held-out pairs
            (`held_out_pairs` in the metrics, or `latest_before` with the holder's score on them), and its score is not
            worse than the holder's.

        Raises:
            NotFound: no such base. InvalidInput: no `adapter.safetensors` in the folder. CodiError: not stored.
        """
        check_task(task)
        with self._database.read() as connection:
            base_id = self._bases.find(connection, base)[1]
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if WEIGHTS not in files:
            raise InvalidInput(f"{folder} is not an adapter: it has no {WEIGHTS}")
        values = {"task": task, "base_id": base_id, "kind": kind, "steps": steps, "parameters": parameters}
        values |= {"metrics": versions.plain(metrics), "score": versions.finite(score), "parent": parent}
        from codi_hub.record import RECORD, recorded_method  # pydantic, which looking things up does not need

        values["method"] = recorded_method(folder / RECORD)
        with storing(self._database, self._store, f"the adapter in {folder}") as check:
            return self._record(values, {name: self._store.put(path) for name, path in files.items()}, check)

    def recover(self, runs: Path, score: Callable[[AdapterRecord], float | None]) -> Recovery:
        """Record the adapters that lie in the store and in run folders, and that the database does not know.

        Versions are numbered in the order in which their weights were written. Removed versions stay removed. A team's
        store is given the blobs that it lacks and this home has.

        Args:
            runs: the folder of the run folders.
            score: returns the held-out score of a record.

        Raises:
            CodiError: not stored.
        """
        rows: list[AdapterRow] = []
        left: list[str] = []
        with storing(self._database, self._store, "the adapters found") as check:
            copied = fill_shared(self._database, self._store)
            with self._database.read() as connection:
                found = recovery.find(connection, self._store, runs)
                bases = {row.name: row for row in self._bases.list()}
                ids = {name: self._bases.find(connection, name)[1] for name in bases}
            for one in found:
                record = one.record
                base = bases.get(record.base.name)
                if base is None or base.family != record.base.family:
                    left.append(f"{record.task} on base {record.base.name}, {one.files[WEIGHTS]}")
                    continue
                values = _values(record, record.task, ids[base.name], one.parameters, score(record))
                stored = {name: self._store.put(path) for name, path in one.files.items()}
                rows.append(self._record(values, stored, check)[0])
        if not left:
            with self._store.locked(), self._database.write() as connection:
                recovery.set_additions(connection, self._store.additions().get(self._database.store_key, 0))
        return Recovery(tuple(rows), tuple(left), copied)

    def install(
        self, files: Mapping[str, Path], record: AdapterRecord, *, task: str, base: str, score: float | None
    ) -> tuple[AdapterRow, bool]:
        """Copy the files of an adapter that was made elsewhere into the store, as the next version of (task, base).

        Args:
            files: by name; the weights have the hash that `record` has of them.
            record: what its `adapter.json` says.
            score: held-out, higher is better; None or not finite means unknown.

        Returns:
            The version, and whether it is new: nothing happens where the task has equal weights already.

        Raises:
            NotFound: no such base. InvalidInput: the weights are not the record's. CodiError: not stored.
        """
        check_task(task)
        parameters = recovery.parameters_of(files[WEIGHTS])
        if parameters is None or record.weights is None:
            raise InvalidInput(f"{WEIGHTS}: not readable as adapter weights")
        with storing(self._database, self._store, f"the adapter for {task}") as check:
            if existing := self.holding(record.weights, task, base):
                return existing, False
            with self._database.read() as connection:
                base_id = self._bases.find(connection, base)[1]
            stored = {name: self._store.put(path) for name, path in files.items()}
            if stored[WEIGHTS][0] != record.weights:  # changed since its hash was checked
                raise InvalidInput(f"{WEIGHTS}: changed while it was read; try again")
            return self._record(_values(record, task, base_id, parameters, score), stored, check)[0], True

    def copy(self, ref: str, task: str, base: str | None = None) -> tuple[AdapterRow, bool]:
        """Record an adapter's files as the next version of another task on the same base, with it as the parent.

        Returns:
            The version, and whether it is new: nothing happens where the task has equal weights already.

        Raises:
            NotFound, UsageError: see `resolve`. NotFound, InvalidInput: see `file`. CodiError: not stored.
        """
        check_task(task)
        with storing(self._database, self._store, ref) as check:  # no file is collected before it is recorded again
            source = self.resolve(ref, base)
            if existing := self.holding(source.sha256, task, source.base):
                return existing, False
            with self._database.read() as connection:
                base_id = self._bases.find(connection, source.base)[1]
            kept = ("kind", "steps", "parameters", "metrics", "score", "method")
            values = {"task": task, "base_id": base_id, "parent": source.ref}
            values |= {name: getattr(source, name) for name in kept}
            stored = {name: self._blob(source, name) for name in self.files(source)}
            return self._record(values, stored, check)[0], True

    def _blob(self, row: AdapterRow, name: str) -> tuple[str, int]:
        """Return (sha256, bytes) of an adapter's file in the store; a bundled file is copied there. See `file`."""
        with self._database.read() as connection:
            record = lookup.file_record(connection, row, name)
        path = self._store.path(record.sha256)
        if self._store.shared:  # what is here may not be there any more
            return self._store.put(self.file(row, name))
        try:
            check_file(self._database, path, record.sha256, f"{name} of {row.ref}")
        except (NotFound, InvalidInput):
            if record.folder is None:
                raise
            return self._store.put(self.file(row, name))
        return record.sha256, path.stat().st_size

    def _record(
        self, values: dict[str, Any], stored: dict[str, tuple[str, int]], check: Callable[[], None]
    ) -> tuple[AdapterRow, bool]:
        check()
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
            recovery.set_additions(connection, recovery.additions(connection) + 1)
            for digest, _ in stored.values():
                path = self._store.path(digest)
                record_hash(connection, path, digest, Stamp.of(path))
            return lookup.adapter_row(connection, adapter_id), moved

    # ---- tags and removals

    def tag(self, ref: str, name: str, base: str | None = None) -> AdapterRow:
        """Point a tag, `latest` included, to a version. Raises NotFound or UsageError."""
        check_tag(name)
        with self._database.write() as connection:
            row = self._resolve(connection, ref, base)
            versions.move_tag(connection, name, connection.execute(select(adapter).where(adapter.c.id == row.id)).one())
            return lookup.adapter_row(connection, row.id)

    def untag(self, ref: str, name: str, base: str | None = None) -> AdapterRow:
        """Remove a tag from the task of `ref` on one base; return the version that had it.

        Raises:
            UsageError: the tag `latest`. NotFound: no such tag, or `ref` is a version that does not have it.
        """
        if name == LATEST:
            raise UsageError("every task has a latest version; move it with `codi tag TASK:VERSION latest`")
        reference = parse(ref)
        with self._database.write() as connection:
            base_row, base_id = self._bases.find(connection, base)
            held = versions.tagged(connection, reference.task, base_id, name)
            if held is None:
                raise NotFound(f"{reference.task} has no tag {name!r} for base {base_row.name}; see `codi list`")
            if ":" in ref and lookup.resolve(connection, reference, base_row.name, base_id).id != held.id:
                raise NotFound(
                    f"the tag {name!r} is not on {ref} but on {held.task}:{held.version}; name that, or the task"
                )
            mine = (tag.c.task == held.task, tag.c.base_id == base_id, tag.c.name == name)
            connection.execute(tag.delete().where(*mine))
            return lookup.adapter_row(connection, held.id)

    def remove(self, refs: Sequence[str], base: str | None = None) -> Removal:
        """Remove versions and their tags: all of them, or none. Their files stay until `Registry.collect`.

        Raises:
            NotFound: one does not exist. Conflict: one is bundled.
            UsageError: not a reference, or a task alone that has several versions.
        """
        with self._database.write() as connection:
            base_row, base_id = self._bases.find(connection, base)
            removable = [_removable(connection, ref, base_row.name, base_id) for ref in refs]
            rows = {row.id: row for row in removable}
            for row in rows.values():
                connection.execute(update(adapter).where(adapter.c.id == row.id).values(status=REMOVED))
                versions.drop_tags(connection, row.task, base_id, row.version)
            latest: dict[str, AdapterRow | None] = {}
            for row in rows.values():
                if LATEST in row.tags:
                    best = versions.settle_latest(connection, row.task, base_id, row.metrics)
                    latest[row.task] = lookup.adapter_row(connection, best.id) if best else None
            return Removal(base_row.name, tuple(rows.values()), latest)

    def _resolve(self, connection: Connection, ref: str, base: str | None) -> AdapterRow:
        base_row, base_id = self._bases.find(connection, base)
        return lookup.resolve(connection, parse(ref), base_row.name, base_id)


def _values(record: AdapterRecord, task: str, base_id: int, parameters: int, score: float | None) -> dict[str, Any]:
    """Return the columns of an adapter that its record tells."""
    values = {"task": task, "base_id": base_id, "kind": record.kind, "steps": record.steps, "parameters": parameters}
    values |= {"metrics": versions.plain(record.metrics), "score": versions.finite(score), "parent": None}
    return values | {"method": record.method or None}


def _removable(connection: Connection, ref: str, base_name: str, base_id: int) -> AdapterRow:
    row = lookup.resolve(connection, parse(ref), base_name, base_id)
    if ":" not in ref:
        mine = (adapter.c.status == READY, adapter.c.task == row.task, adapter.c.base_id == base_id)
        several = connection.scalar(select(func.count()).where(*mine)) or 0
        if several > 1:
            there = lookup.choices(connection, row.task, base_id)
            raise UsageError(f"{ref} has {several} versions for base {base_name}; say which: {there}")
    if row.bundled:
        raise Conflict(f"{row.ref} comes with CoDi Hub and cannot be removed")
    return row
