"""Changes to versions and tags of one task on one base, inside a transaction of the caller's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, func, select, update
from sqlalchemy import insert as sql_insert

from codi_hub.registry.models import READY, adapter, tag
from codi_hub.registry.references import LATEST

PAIRS = "held_out_pairs"  # in an adapter's metrics: identifies the pairs that it was measured on
BEFORE = "latest_before"  # in an adapter's metrics: the version that was `latest`, and its score on the same pairs


def insert(connection: Connection, table: Table, values: dict[str, Any]) -> int:
    """Add a row; return its id."""
    key = connection.execute(sql_insert(table), values).inserted_primary_key
    return int(key[0]) if key else 0


def put(connection: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Update the row of a key, or add it; there is no race, since only one transaction writes at a time."""
    where = and_(*(table.c[name] == value for name, value in key.items()))
    if not connection.execute(update(table).where(where).values(values)).rowcount:
        connection.execute(sql_insert(table), key | values)


def in_parts(values: Iterable[Any], size: int = 500) -> Iterator[list[Any]]:
    """Yield the values in lists of at most `size`, the number of parameters of one statement."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def next_version(connection: Connection, task: str, base_id: int) -> int:
    """Return the highest version so far plus one. Rows of removed versions stay, so no number is used twice."""
    query = select(func.max(adapter.c.version)).where(adapter.c.task == task, adapter.c.base_id == base_id)
    return (connection.scalar(query) or 0) + 1


def latest(connection: Connection, task: str, base_id: int) -> Any:
    """Return the adapter row that `latest` points to, or None."""
    return tagged(connection, task, base_id, LATEST)


def tagged(connection: Connection, task: str, base_id: int, name: str) -> Any:
    """Return the adapter row that a tag points to, or None."""
    points = and_(tag.c.task == adapter.c.task, tag.c.base_id == adapter.c.base_id, tag.c.version == adapter.c.version)
    query = select(adapter).join(tag, points)
    return connection.execute(query.where(tag.c.task == task, tag.c.base_id == base_id, tag.c.name == name)).first()


def move_tag(connection: Connection, name: str, row: Any) -> None:
    """Point a tag to an adapter row."""
    put(connection, tag, {"task": row.task, "base_id": row.base_id, "name": name}, {"version": row.version})


def move_latest(connection: Connection, row: Any, holder: Any) -> bool:
    """Point `latest` to `row` if it scores at least as well as the holder on the same pairs; return whether it moved.

    The holder's score is that which `row` was registered with (`BEFORE`), else its own. Of two without a score, the
    newer one is taken.
    """
    if holder is not None:
        measured = measured_before(row.metrics, f"{holder.task}:{holder.version}")
        score = holder.score if measured is None else measured
        if not (measured is not None or comparable(row.metrics, holder.metrics)):
            return False
        if score is not None and (row.score is None or row.score < score):
            return False
    move_tag(connection, LATEST, row)
    return True


def comparable(metrics: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Return whether two versions were measured on the same held-out pairs, or both before pairs were recorded."""
    return metrics.get(PAIRS) == others.get(PAIRS)


def measured_before(metrics: Mapping[str, Any], ref: str) -> float | None:
    """Return the score of the version `ref` on the pairs of the version with these metrics; None if there is none."""
    before = metrics.get(BEFORE)
    return before.get("score") if isinstance(before, dict) and before.get("adapter") == ref else None


def settle_latest(connection: Connection, task: str, base_id: int, metrics: Mapping[str, Any]) -> Any:
    """Point `latest` to another version; return its row, or None if there is none.

    Those that compare with the version before go first, then bundled ones; of these the one with the highest score,
    else the newest one.

    Args:
        metrics: of the version that was the latest.
    """
    ready = (adapter.c.status == READY, adapter.c.task == task, adapter.c.base_id == base_id)

    def rank(row: Any) -> tuple[Any, ...]:
        known = row.score is not None
        return comparable(row.metrics, metrics), row.folder is not None, known, row.score if known else 0.0, row.version

    row = max(connection.execute(select(adapter).where(*ready)).all(), key=rank, default=None)
    if row is not None:
        move_tag(connection, LATEST, row)
    return row


def drop_tags(connection: Connection, task: str, base_id: int, version: int) -> None:
    """Delete the tags of a version."""
    connection.execute(delete(tag).where(tag.c.task == task, tag.c.base_id == base_id, tag.c.version == version))


def finite(score: float | None) -> float | None:
    """Return the score as a float; None where it is None or not finite, since such a score cannot be compared."""
    return float(score) if score is not None and math.isfinite(score) else None


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: string keys, lists for tuples, int or float numbers, None for not finite."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return finite(float(value))
