"""The questions that a registry answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, select

from codi_hub.errors import NotFound
from codi_hub.registry import versions
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.models import READY, REMOVED, REPLACED, adapter, adapter_file, base, setting, tag, task
from codi_hub.registry.references import Reference, parse
from codi_hub.registry.rows import AdapterRow, BaseRow, TaskRow
from codi_hub.registry.runs import text

_ADAPTER_COLUMNS = [column for column in adapter.c if column.name not in ("base_id", "folder")]
_TAG_OF_ADAPTER = (
    (tag.c.task == adapter.c.task) & (tag.c.base_id == adapter.c.base_id) & (tag.c.version == adapter.c.version)
)
# What every use of an adapter asks: built once, since building a statement costs more than SQLite's answer.
_BASES = select(base).order_by(base.c.name)
_CHOSEN = select(setting.c.value).where(setting.c.name == bindparam("setting"))
_BASE_ID = select(base.c.id).where(base.c.name == bindparam("name_"))
_MINE = (tag.c.task == bindparam("task_"), tag.c.base_id == bindparam("base_"))
_TAGGED = select(tag.c.version).where(*_MINE, tag.c.name == bindparam("name_"))
_TAGS = select(tag.c.name).where(*_MINE, tag.c.version == bindparam("version_")).order_by(tag.c.name)
_VERSION = select(*_ADAPTER_COLUMNS, base.c.name.label("base"), adapter.c.folder.is_not(None).label("bundled")).where(
    adapter.c.base_id == base.c.id,
    adapter.c.task == bindparam("task_"),
    base.c.id == bindparam("base_"),
    adapter.c.version == bindparam("version_"),
)


class Lookup:
    """Everything that only reads. The methods with an underscore work inside a transaction of their caller's."""

    IN_USE = "base_in_use"
    _database: Database
    _manifest: Manifest | None

    def bases(self) -> list[BaseRow]:
        """Every base, by name."""
        with self._database.read() as connection:
            return self._bases(connection)

    def base(self, name: str | None = None) -> BaseRow:
        """A base by name; None: the one in use. Raises NotFound."""
        with self._database.read() as connection:
            return self._base(connection, name)[0]

    def tasks(self) -> list[TaskRow]:
        """Every registered task, by name. The built-in ones have no row."""
        with self._database.read() as connection:
            return [
                TaskRow(**row._mapping, builtin=False) for row in connection.execute(task.select().order_by("name"))
            ]

    def task(self, name: str) -> TaskRow | None:
        """A registered task; None where none has that name."""
        with self._database.read() as connection:
            return self._task(connection, text(name))

    def adapters(
        self, task: str | None = None, base: str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[AdapterRow]:
        """Adapters by task, base and version, from the `offset`th on. Raises NotFound for an unknown base.

        An unknown task has none.
        """
        with self._database.read() as connection:
            where = [adapter.c.status == READY]
            if task is not None:
                where.append(adapter.c.task == text(task))
            if base is not None:
                where.append(adapter.c.base_id == self._base(connection, base)[1])
            return self._adapters(connection, where, limit, offset)

    def count(self) -> int:
        """How many adapters there are."""
        with self._database.read() as connection:
            return connection.scalar(select(func.count()).where(adapter.c.status == READY)) or 0

    def bundled(self) -> list[AdapterRow]:
        """The adapters that come with the package."""
        with self._database.read() as connection:
            return self._adapters(connection, (adapter.c.status == READY, adapter.c.folder.is_not(None)))

    def resolve(self, ref: str, base: str | None = None) -> AdapterRow:
        """The adapter that `task`, `task:version` or `task:tag` means, on the base in use unless another is named.

        Raises UsageError for no reference, NotFound saying what there is instead.
        """
        reference = parse(ref)
        with self._database.read() as connection:
            return self._resolve(connection, reference, base)

    def files(self, row: AdapterRow) -> list[str]:
        """The names of an adapter's files."""
        query = select(adapter_file.c.name).where(adapter_file.c.adapter_id == row.id).order_by(adapter_file.c.name)
        with self._database.read() as connection:
            return list(connection.scalars(query))

    # ---- within a transaction

    def _bases(self, connection: Connection) -> list[BaseRow]:
        rows = connection.execute(_BASES).all()
        chosen = connection.scalar(_CHOSEN, {"setting": self.IN_USE})
        if chosen not in {row.name for row in rows}:
            chosen = next((row.name for row in rows if row.bundled), None)
        return [self._base_row(row, chosen) for row in rows]

    def _base_row(self, row: Any, chosen: str | None) -> BaseRow:
        values = dict(row._mapping)
        del values["id"]
        if row.bundled and self._manifest:
            values["source"] = str(self._manifest.root / Path(row.source))
        return BaseRow(**values, default=row.name == chosen)

    def _base(self, connection: Connection, name: str | None) -> tuple[BaseRow, int]:
        """The base and its id."""
        rows = self._bases(connection)
        found = next((row for row in rows if (row.default if name is None else row.name == name)), None)
        if found is None and name is None:
            raise NotFound("no base is in use; choose one with `codi base use NAME`, or `codi base add NAME FOLDER`")
        if found is None:
            known = ", ".join(row.name for row in rows) or "none yet"
            raise NotFound(f"no base {name!r}; there is {known} (add one with `codi base add NAME FOLDER`)")
        return found, int(connection.scalar(_BASE_ID, {"name_": found.name}) or 0)

    @staticmethod
    def _task(connection: Connection, name: str) -> TaskRow | None:
        row = connection.execute(task.select().where(task.c.name == name)).first()
        return TaskRow(**row._mapping, builtin=False) if row else None

    @staticmethod
    def _adapters(
        connection: Connection, where: Sequence[ColumnElement[bool]], limit: int | None = None, offset: int = 0
    ) -> list[AdapterRow]:
        # By base_id rather than the base's name: an index has this order, so that a far page needs no sorting.
        order = (adapter.c.task, adapter.c.base_id, adapter.c.version)
        page = select(adapter.c.id).where(*where).order_by(*order).limit(limit).offset(offset)
        query = select(*_ADAPTER_COLUMNS, base.c.name.label("base"), adapter.c.folder.is_not(None).label("bundled"))
        rows = connection.execute(query.join(base).where(adapter.c.id.in_(page)).order_by(*order)).all()
        tags: dict[int, list[str]] = {}
        pairs = select(adapter.c.id, tag.c.name).join(tag, _TAG_OF_ADAPTER).order_by(tag.c.name)
        for part in versions.in_parts(row.id for row in rows):
            for adapter_id, name in connection.execute(pairs.where(adapter.c.id.in_(part))):
                tags.setdefault(adapter_id, []).append(name)
        return [AdapterRow(**row._mapping, tags=tuple(tags.get(row.id, ()))) for row in rows]

    def _adapter(self, connection: Connection, *where: ColumnElement[bool]) -> AdapterRow:
        return self._adapters(connection, where)[0]

    def _resolve(self, connection: Connection, reference: Reference, base_name: str | None) -> AdapterRow:
        base_row, base_id = self._base(connection, base_name)
        mine: dict[str, Any] = {"task_": reference.task, "base_": base_id}
        version = reference.version
        if reference.tag is not None:
            version = connection.scalar(_TAGGED, mine | {"name_": reference.tag})
        mine["version_"] = version
        row = connection.execute(_VERSION, mine).first()
        if row and row.status == READY:
            return AdapterRow(**row._mapping, tags=tuple(connection.scalars(_TAGS, mine)))
        raise NotFound(self._missing(connection, reference, base_row.name, row.status if row else None))

    def _missing(self, connection: Connection, reference: Reference, base_name: str, status: str | None) -> str:
        """Why there is no such adapter (`status`: of its row, if any), and what there is instead, on one line."""
        if status == REPLACED:
            return f"{reference} came with another CoDi Hub and has been replaced; use {reference.task}:latest"
        removed = f"{reference} for base {base_name} has been removed" if status == REMOVED else ""
        if here := self._choices(connection, reference.task, self._base(connection, base_name)[1]):
            return f"{removed or f'no {reference} for base {base_name}'}; there is {here}"
        also = f"{removed}, and " if removed else ""
        mine = (adapter.c.task == reference.task, adapter.c.status == READY)
        others = select(base.c.name).join(adapter).where(*mine).distinct().order_by(base.c.name)
        if bases := ", ".join(connection.scalars(others)):
            return also + (
                f"task {reference.task!r} has no adapter for base {base_name}, but for {bases}: choose one with "
                f"--base, or make one with `codi distill {reference.task}`"
            )
        return also + f"task {reference.task!r} has no adapter yet; make one with `codi distill {reference.task}`"

    @staticmethod
    def _choices(connection: Connection, task: str, base_id: int) -> str:
        """`depth:1|2|latest`: the last versions of a task on a base, and its tags; nothing where it has none."""
        mine = (adapter.c.status == READY, adapter.c.task == task, adapter.c.base_id == base_id)
        last = select(adapter.c.version).where(*mine).order_by(adapter.c.version.desc()).limit(10)
        numbers = sorted(connection.scalars(last))
        names = select(tag.c.name).where(tag.c.task == task, tag.c.base_id == base_id)
        tags = connection.scalars(names.order_by(tag.c.version, tag.c.name).limit(10)) if numbers else ()
        return f"{task}:{'|'.join(map(str, (*numbers, *tags)))}" if numbers else ""

    @staticmethod
    def _refs(connection: Connection, base_id: int) -> list[str]:
        """Every version that a base has."""
        query = select(adapter.c.task, adapter.c.version).where(adapter.c.base_id == base_id, adapter.c.status == READY)
        return [f"{name}:{version}" for name, version in connection.execute(query.order_by("task", "version"))]

    def _file(self, connection: Connection, row: AdapterRow, name: str) -> Any:
        query = (
            select(adapter_file.c.sha256, adapter.c.folder, adapter.c.status)
            .join(adapter)
            .where(adapter.c.id == row.id)
        )
        found = connection.execute(query.where(adapter_file.c.name == name)).first()
        if found is None:
            raise NotFound(f"{row.ref} has no file {name!r}")
        return found
