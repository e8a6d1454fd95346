"""Queries for adapter versions, inside a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, select

from codi_hub.errors import NotFound
from codi_hub.registry import versions
from codi_hub.registry.models import READY, REMOVED, REPLACED, adapter, adapter_file, base, tag
from codi_hub.registry.references import Reference
from codi_hub.registry.rows import AdapterRow

_ADAPTER_COLUMNS = [column for column in adapter.c if column.name not in ("base_id", "folder")]
_TAG_OF_ADAPTER = (
    (tag.c.task == adapter.c.task) & (tag.c.base_id == adapter.c.base_id) & (tag.c.version == adapter.c.version)
)
# Every use of an adapter asks these. They are built once: building a statement costs more than SQLite's answer.
_OF_TASK_AND_BASE = (tag.c.task == bindparam("task_"), tag.c.base_id == bindparam("base_"))
_TAGGED = select(tag.c.version).where(*_OF_TASK_AND_BASE, tag.c.name == bindparam("name_"))
_TAGS = select(tag.c.name).where(*_OF_TASK_AND_BASE, tag.c.version == bindparam("version_")).order_by(tag.c.name)
_ROWS = select(*_ADAPTER_COLUMNS, base.c.name.label("base"), adapter.c.folder.is_not(None).label("bundled"))
_VERSION = _ROWS.where(
    adapter.c.base_id == base.c.id,
    adapter.c.task == bindparam("task_"),
    base.c.id == bindparam("base_"),
    adapter.c.version == bindparam("version_"),
)


def adapter_rows(
    connection: Connection, where: Sequence[ColumnElement[bool]], limit: int | None = None, offset: int = 0
) -> list[AdapterRow]:
    """Return the adapters that meet every condition, sorted by task, base and version."""
    # By base_id rather than the base's name: an index has this order, so that a far page needs no sorting.
    order = (adapter.c.task, adapter.c.base_id, adapter.c.version)
    page = select(adapter.c.id).where(*where).order_by(*order).limit(limit).offset(offset)
    rows = connection.execute(_ROWS.join(base).where(adapter.c.id.in_(page)).order_by(*order)).all()
    tags: dict[int, list[str]] = {}
    pairs = select(adapter.c.id, tag.c.name).join(tag, _TAG_OF_ADAPTER).order_by(tag.c.name)
    for part in versions.in_parts(row.id for row in rows):
        for adapter_id, name in connection.execute(pairs.where(adapter.c.id.in_(part))):
            tags.setdefault(adapter_id, []).append(name)
    return [AdapterRow(**row._mapping, tags=tuple(tags.get(row.id, ()))) for row in rows]


def adapter_row(connection: Connection, adapter_id: int) -> AdapterRow:
    """Return one adapter by its id, which must exist."""
    return adapter_rows(connection, (adapter.c.id == adapter_id,))[0]


def resolve(connection: Connection, reference: Reference, base_name: str, base_id: int) -> AdapterRow:
    """Return the adapter that a reference means on a base. Raises NotFound, naming what exists instead."""
    key: dict[str, Any] = {"task_": reference.task, "base_": base_id}
    version = reference.version
    if reference.tag is not None:
        version = connection.scalar(_TAGGED, key | {"name_": reference.tag})
    key["version_"] = version
    row = connection.execute(_VERSION, key).first()
    if row and row.status == READY:
        return AdapterRow(**row._mapping, tags=tuple(connection.scalars(_TAGS, key)))
    raise NotFound(_missing(connection, reference, base_name, base_id, row.status if row else None))


def choices(connection: Connection, task: str, base_id: int) -> str:
    """Return the last versions of a task on a base and its tags, as `depth:1|2|latest`; "" where it has none."""
    mine = (adapter.c.status == READY, adapter.c.task == task, adapter.c.base_id == base_id)
    last = select(adapter.c.version).where(*mine).order_by(adapter.c.version.desc()).limit(10)
    numbers = sorted(connection.scalars(last))
    names = select(tag.c.name).where(tag.c.task == task, tag.c.base_id == base_id)
    tags = connection.scalars(names.order_by(tag.c.version, tag.c.name).limit(10)) if numbers else ()
    return f"{task}:{'|'.join(map(str, (*numbers, *tags)))}" if numbers else ""


def file_record(connection: Connection, row: AdapterRow, name: str) -> Any:
    """Return the hash of an adapter's file, with the adapter's present folder and status. Raises NotFound."""
    columns = (adapter_file.c.sha256, adapter.c.folder, adapter.c.status)
    query = select(*columns).join(adapter).where(adapter.c.id == row.id, adapter_file.c.name == name)
    record = connection.execute(query).first()
    if record is None:
        raise NotFound(f"{row.ref} has no file {name!r}")
    return record


def _missing(connection: Connection, reference: Reference, base_name: str, base_id: int, status: str | None) -> str:
    """Return on one line why there is no such adapter (`status`: of its row, if any), and what exists instead."""
    if status == REPLACED:
        return f"{reference} came with another CoDi Hub and has been replaced; use {reference.task}:latest"
    removed = f"{reference} for base {base_name} has been removed" if status == REMOVED else ""
    if here := choices(connection, reference.task, base_id):
        return f"{removed or f'no {reference} for base {base_name}'}; there is {here}"
    also = f"{removed}, and " if removed else ""
    mine = (adapter.c.task == reference.task, adapter.c.status == READY)
    others = select(base.c.name).join(adapter).where(*mine).distinct().order_by(base.c.name)
    if bases := ", ".join(connection.scalars(others)):
        return also + (
            f"task {reference.task!r} has no adapter for base {base_name}, but for {bases}: name such a base, "
            f"or train an adapter with `codi distill {reference.task}`"
        )
    return also + f"task {reference.task!r} has no adapter yet; train one with `codi distill {reference.task}`"
