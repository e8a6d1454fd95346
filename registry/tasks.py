"""Registered tasks: variants of a built-in task with options of their own. Built-in tasks have no row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from codi_hub.errors import Conflict, NotFound
from codi_hub.registry import versions
from codi_hub.registry.database import Database
from codi_hub.registry.models import task
from codi_hub.registry.references import check_task
from codi_hub.registry.rows import TaskRow, now, storable


class Tasks:
    """List, add and remove registered tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> Sequence[TaskRow]:
        """Return every registered task, sorted by name."""
        with self._database.read() as connection:
            return [TaskRow(**row._mapping) for row in connection.execute(task.select().order_by("name"))]

    def get(self, name: str) -> TaskRow | None:
        """Return a registered task; None where no task is registered under that name."""
        with self._database.read() as connection:
            return _row(connection, storable(name))

    def add(self, name: str, like: str, options: dict[str, Any]) -> tuple[TaskRow, bool]:
        """Register a task; return its row, and whether it is new.

        Raises:
            UsageError: a name that is not allowed. Conflict: it is registered with another template or options.
        """
        check_task(name)
        with self._database.write() as connection:
            existing = _row(connection, name)
            if existing is None:
                row = TaskRow(name, like, versions.plain(options), now())
                values = {"name": name, "like": like, "options": row.options, "created": row.created}
                connection.execute(task.insert().values(values))
                return row, True
        if (existing.like, existing.options) != (like, versions.plain(options)):
            settings = " ".join(f"{key}={value}" for key, value in existing.options.items()) or "no options"
            raise Conflict(
                f"task {name!r} is registered already, like {existing.like} with {settings}; "
                f"to replace it, `codi task rm {name}` first (its adapters stay)"
            )
        return existing, False

    def remove(self, name: str) -> None:
        """Delete a registered task; its adapters stay. Raises NotFound."""
        with self._database.write() as connection:
            if not connection.execute(task.delete().where(task.c.name == name)).rowcount:
                raise NotFound(f"no task {name!r} is registered; see `codi task list`")


def _row(connection: Connection, name: str) -> TaskRow | None:
    row = connection.execute(task.select().where(task.c.name == name)).first()
    return TaskRow(**row._mapping) if row else None
