"""The base models that adapters belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, select

from codi_hub.errors import Conflict, NotFound, UsageError
from codi_hub.registry import versions
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.models import READY, adapter, base, setting
from codi_hub.registry.references import check_base
from codi_hub.registry.rows import BaseRow, now, storable

_IN_USE = "base_in_use"
# Every use of an adapter asks these. They are built once: building a statement costs more than SQLite's answer.
_BASES = select(base).order_by(base.c.name)
_CHOSEN = select(setting.c.value).where(setting.c.name == bindparam("setting"))
_BASE_ID = select(base.c.id).where(base.c.name == bindparam("name_"))


class Bases:
    """List, add, choose and remove base models.

    Args:
        manifest: of the bundled models; None where nothing is bundled.
    """

    def __init__(self, database: Database, manifest: Manifest | None) -> None:
        self._database = database
        self._manifest = manifest

    def list(self) -> Sequence[BaseRow]:
        """Return every base, sorted by name."""
        with self._database.read() as connection:
            return self._rows(connection)

    def get(self, name: str | None = None) -> BaseRow:
        """Return a base by name; None means the base in use. Raises NotFound."""
        with self._database.read() as connection:
            return self.find(connection, name)[0]

    def add(
        self,
        name: str,
        source: str | Path,
        *,
        family: str,
        sketch: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
        replace: bool = False,
    ) -> BaseRow:
        """Register a base. The first base that is registered comes into use; an equal one again changes nothing.

        Args:
            source: an absolute folder or file, or a hub id.
            family, sketch: its fingerprint.
            options, card: see `BaseRow`.
            replace: the base of that name has the same weights, and is now to be read as this call says.

        Raises:
            UsageError: a name that is not allowed. Conflict: the name belongs to another base, or to one whose
                adapters were trained with another shift or guidance.
        """
        check_base(name)
        if storable(source) != str(source):
            raise UsageError(f"the name of {storable(source)} is not valid UTF-8; rename the folder")
        told = {"options": options or None, "card": card or None}
        values = {"source": str(source), "family": family, "sketch": sketch, "bundled": False, "created": now()} | told
        with self._database.write() as connection:
            bases = {row.name: row for row in self._rows(connection)}
            if (existing := bases.get(name)) and replace and not existing.bundled:
                self._check_sampling(connection, existing, card or {})
                changes = {key: values[key] for key in ("source", "options", "card")}
                connection.execute(base.update().where(base.c.name == name).values(changes))
            elif existing:
                same = (existing.source, existing.family, existing.options) == (str(source), family, options or {})
                if not same or not (replace or existing.sketch == sketch):
                    remedy = "choose another name" if existing.bundled else f"`codi base rm {name}` first"
                    raise Conflict(
                        f"base {name!r} exists already, from {existing.source} (family {existing.family}); {remedy}"
                    )
            else:
                versions.insert(connection, base, {"name": name} | values)
                if not any(row.default for row in bases.values()):
                    _put_in_use(connection, name)
        return self.get(name)

    def _check_sampling(self, connection: Connection, existing: BaseRow, card: dict[str, Any]) -> None:
        """Refuse another shift or guidance for a base while adapters depend on the one that they were trained with."""
        changed = [key for key in ("shift", "guidance") if card.get(key) != existing.card.get(key)]
        if changed and (adapters := _adapters(connection, self.find(connection, existing.name)[1])):
            key = changed[0]
            raise Conflict(
                f"base {existing.name!r} keeps its {key} ({existing.card.get(key, 'as it is')}): {adapters} were "
                "trained with it; choose another name"
            )

    def use(self, name: str) -> BaseRow:
        """Make a base the default of every command. Raises NotFound."""
        with self._database.write() as connection:
            self.find(connection, name)
            _put_in_use(connection, name)
        return self.get(name)

    def remove(self, name: str) -> None:
        """Delete a base's row, and the rows of its removed adapter versions.

        Raises:
            NotFound: no such base. Conflict: it is bundled, or adapters belong to it.
        """
        with self._database.write() as connection:
            row, base_id = self.find(connection, name)
            if row.bundled:
                raise Conflict(f"base {name!r} comes with CoDi Hub and cannot be removed")
            if adapters := _adapters(connection, base_id):
                raise Conflict(
                    f"base {name!r} has to stay: {adapters} were distilled on it; remove them first with `codi rm`"
                )
            connection.execute(adapter.delete().where(adapter.c.base_id == base_id))
            connection.execute(base.delete().where(base.c.id == base_id))

    def find(self, connection: Connection, name: str | None) -> tuple[BaseRow, int]:
        """Return a base and its id, inside a transaction; None means the base in use. Raises NotFound."""
        rows = self._rows(connection)
        row = next((row for row in rows if (row.default if name is None else row.name == name)), None)
        if row is None and name is None:
            raise NotFound("no base is in use; choose one with `codi base use NAME`, or `codi base add NAME FOLDER`")
        if row is None:
            known = ", ".join(row.name for row in rows) or "none yet"
            raise NotFound(f"no base {name!r}; there is {known} (add one with `codi base add NAME FOLDER`)")
        return row, int(connection.scalar(_BASE_ID, {"name_": row.name}) or 0)

    def _rows(self, connection: Connection) -> Sequence[BaseRow]:
        rows = connection.execute(_BASES).all()
        chosen = connection.scalar(_CHOSEN, {"setting": _IN_USE})
        if chosen not in {row.name for row in rows}:
            chosen = next((row.name for row in rows if row.bundled), None)
        return [self._row(row, chosen) for row in rows]

    def _row(self, row: Any, chosen: str | None) -> BaseRow:
        values = dict(row._mapping)
        del values["id"]
        if row.bundled and self._manifest:
            values["source"] = str(self._manifest.root / Path(row.source))
        values |= {name: values[name] or {} for name in ("options", "card")}
        return BaseRow(**values, default=row.name == chosen)


def _put_in_use(connection: Connection, name: str) -> None:
    versions.put(connection, setting, {"name": _IN_USE}, {"value": name})


def _adapters(connection: Connection, base_id: int) -> str:
    """Return the number and some names of a base's adapters; "" where it has none."""
    query = select(adapter.c.task, adapter.c.version).where(adapter.c.base_id == base_id, adapter.c.status == READY)
    refs = [f"{task}:{number}" for task, number in connection.execute(query.order_by("task", "version"))]
    some = ", ".join(refs[:3]) + (", ..." if len(refs) > 3 else "")
    return f"{len(refs)} adapters ({some})" if refs else ""
