"""What becomes of versions that are there: tags point to them, and they are removed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select, update

from codi_hub.errors import Conflict, NotFound, UsageError
from codi_hub.registry import versions
from codi_hub.registry.lookup import Lookup
from codi_hub.registry.models import READY, REMOVED, adapter, tag
from codi_hub.registry.references import LATEST, check_tag, parse
from codi_hub.registry.rows import AdapterRow, Removal


class Upkeep(Lookup):
    """Tags and removals. Rows only: the files of what is removed stay until `Registry.collect`."""

    def tag(self, ref: str, name: str, base: str | None = None) -> AdapterRow:
        """Points a tag, `latest` included, to a version. Raises NotFound or UsageError."""
        check_tag(name)
        with self._database.write() as connection:
            row = self._resolve(connection, parse(ref), base)
            versions.move_tag(connection, name, connection.execute(select(adapter).where(adapter.c.id == row.id)).one())
            return self._adapter(connection, adapter.c.id == row.id)

    def untag(self, ref: str, name: str, base: str | None = None) -> AdapterRow:
        """Removes a tag from the task of `ref`, on one base; the version that had it.

        Raises UsageError for `latest`, NotFound where there is no such tag, or where `ref` is a version that lacks it.
        """
        if name == LATEST:
            raise UsageError("every task has a latest version; move it with `codi tag TASK:VERSION latest`")
        reference = parse(ref)
        with self._database.write() as connection:
            base_row, base_id = self._base(connection, base)
            held = versions.tagged(connection, reference.task, base_id, name)
            if held is None:
                raise NotFound(f"{reference.task} has no tag {name!r} for base {base_row.name}; see `codi list`")
            if ":" in ref and self._resolve(connection, reference, base).id != held.id:
                raise NotFound(
                    f"the tag {name!r} is not on {ref} but on {held.task}:{held.version}; name that, or the task"
                )
            mine = (tag.c.task == held.task, tag.c.base_id == base_id, tag.c.name == name)
            connection.execute(tag.delete().where(*mine))
            return self._adapter(connection, adapter.c.id == held.id)

    def remove_adapters(self, refs: Sequence[str], base: str | None = None) -> Removal:
        """Takes versions and their tags out of every list: all of them, or none. Their numbers never come again.

        Raises:
            NotFound: one is not there. Conflict: one is bundled.
            UsageError: no reference, or a task alone that has several versions.
        """
        with self._database.write() as connection:
            base_row, base_id = self._base(connection, base)
            found = [self._removable(connection, ref, base_row.name) for ref in refs]
            rows = {row.id: row for row in found}
            for row in rows.values():
                connection.execute(update(adapter).where(adapter.c.id == row.id).values(status=REMOVED))
                versions.drop_tags(connection, row.task, base_id, row.version)
            latest: dict[str, AdapterRow | None] = {}
            for row in rows.values():
                if LATEST in row.tags:
                    best = versions.settle_latest(connection, row.task, base_id)
                    latest[row.task] = self._adapter(connection, adapter.c.id == best.id) if best else None
            return Removal(base_row.name, tuple(rows.values()), latest)

    def _removable(self, connection: Connection, ref: str, base: str) -> AdapterRow:
        row = self._resolve(connection, parse(ref), base)
        if ":" not in ref:
            base_id = self._base(connection, base)[1]
            mine = (adapter.c.status == READY, adapter.c.task == row.task, adapter.c.base_id == base_id)
            several = connection.scalar(select(func.count()).where(*mine)) or 0
            if several > 1:
                there = self._choices(connection, row.task, base_id)
                raise UsageError(f"{ref} has {several} versions for base {base}; say which: {there}")
        if row.bundled:
            raise Conflict(f"{row.ref} comes with CoDi Hub and cannot be removed")
        return row
