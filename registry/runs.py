"""The run log: which outputs were computed from which inputs, with which adapter, prompt and seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Select, func, select, update

from codi_hub.errors import NotFound
from codi_hub.registry import versions
from codi_hub.registry.database import Database
from codi_hub.registry.models import run, run_item
from codi_hub.registry.rows import OutputRow, RunItemRow, RunRow, now, storable


class RunLog:
    """Record and read runs. A row is committed as soon as it is added."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self, task: str, adapter_ref: str, options: dict[str, Any], *, plan: str | None = None, shard: str | None = None
    ) -> int:
        """Add a run with the status `running`; return its id. `plan` and `shard`: see `RunRow`."""
        values = {"task": task, "adapter": adapter_ref, "options": versions.plain(options), "plan": plan}
        values |= {"shard": shard}
        with self._database.write() as connection:
            return versions.insert(connection, run, values | {"status": "running", "started": now()})

    def add_item(self, run_id: int, **item: Any) -> int:
        """Add one input of a run: the fields of `RunItemRow`, `seed` below 2^63. Return its id."""
        values = asdict(RunItemRow(**item))
        values |= {name: storable(values[name]) for name in ("input", "output", "error") if values[name] is not None}
        with self._database.write() as connection:
            return versions.insert(connection, run_item, values | {"run_id": run_id})

    def fail_item(self, item_id: int, error: str) -> None:
        """Turn an item that was added into a failed one, which wrote nothing."""
        written = dict.fromkeys(("output_hash", "output_bytes", "output_mtime_ns"))
        values = written | {"status": "failed", "error": storable(error)}
        with self._database.write() as connection:
            connection.execute(update(run_item).where(run_item.c.id == item_id).values(values))

    def set_version(self, item_id: int, version: int | None) -> None:
        """Record the version of an output that lies in a store, which tells it after the upload."""
        with self._database.write() as connection:
            connection.execute(update(run_item).where(run_item.c.id == item_id).values(output_mtime_ns=version))

    def finish(self, run_id: int, status: str) -> None:
        """Set a run's final status and time. Raises NotFound."""
        change = update(run).where(run.c.id == run_id).values(status=status, finished=now())
        with self._database.write() as connection:
            if not connection.execute(change).rowcount:
                raise _no_run(run_id)

    def list(self, limit: int | None = 50, task: str | None = None) -> Sequence[RunRow]:
        """Return the last `limit` runs, or those of one task, newest first; None means all."""
        query = _RUNS if task is None else _RUNS.where(run.c.task == task)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(run.c.id.desc()).limit(limit))
            return [RunRow(**row._mapping) for row in rows]

    def get(self, run_id: int) -> RunRow:
        """Return one run. Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(_RUNS.where(run.c.id == run_id)).first()
        if row is None:
            raise _no_run(run_id)
        return RunRow(**row._mapping)

    def items(self, run_id: int) -> Sequence[RunItemRow]:
        """Return the items of a run in the order in which they were computed."""
        query = _ITEMS.where(run_item.c.run_id == run_id).order_by(run_item.c.id)
        with self._database.read() as connection:
            return [RunItemRow(**row._mapping) for row in connection.execute(query)]

    def parts(self, plan: str) -> Sequence[RunRow]:
        """Return the runs of all shards of a plan, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(_RUNS.where(run.c.plan == plan).order_by(run.c.id))
            return [RunRow(**row._mapping) for row in rows]

    def made(self, run_id: int, outputs: Iterable[str]) -> dict[str, RunItemRow]:
        """Return what a run wrote so far of the outputs, absolute paths."""
        query = _ITEMS.where(run_item.c.run_id == run_id, run_item.c.status == "ok").order_by(run_item.c.id)
        found: dict[str, RunItemRow] = {}
        with self._database.read() as connection:
            for part in versions.in_parts(map(storable, outputs)):
                rows = connection.execute(query.where(run_item.c.output.in_(part)))
                found |= {row.output: RunItemRow(**row._mapping) for row in rows}
        return found

    def last_outputs(self, adapter_ref: str, options: dict[str, Any], outputs: Iterable[str]) -> dict[str, OutputRow]:
        """Return the last record of each output that any run wrote.

        Args:
            adapter_ref, options: decide `OutputRow.same`.
            outputs: absolute paths.
        """
        wanted = versions.plain(options)
        last: dict[str, Any] = {}
        names = ("input_hash", "prompt", "seed", "output_hash", "output_bytes", "output_mtime_ns", "input_stamp")
        columns = (run_item.c.run_id, run_item.c.output, *(run_item.c[name] for name in names))
        written = select(*columns).where(run_item.c.status == "ok").order_by(run_item.c.id)
        with self._database.read() as connection:
            for part in versions.in_parts(map(storable, outputs)):
                rows = connection.execute(written.where(run_item.c.output.in_(part)))
                last |= {row.output: row for row in rows}
            same = set()
            for part in versions.in_parts({row.run_id for row in last.values()}):
                runs = select(run.c.id, run.c.options).where(run.c.id.in_(part), run.c.adapter == adapter_ref)
                # Compared here: JSON is not comparable in every database.
                same |= {row.id for row in connection.execute(runs) if row.options == wanted}
        return {name: OutputRow(row.run_id in same, *row[2:]) for name, row in last.items()}

    def origins(self, outputs: Iterable[str]) -> dict[str, str]:
        """Return the input of each output that any run wrote, as recorded; the last run counts."""
        query = select(run_item.c.output, run_item.c.input).where(run_item.c.status == "ok").order_by(run_item.c.id)
        found: dict[str, str] = {}
        with self._database.read() as connection:
            for part in versions.in_parts(map(storable, outputs)):
                rows = connection.execute(query.where(run_item.c.output.in_(part)))
                found |= {row.output: row.input for row in rows}
        return found

    def wrote(self, digest: str) -> bool:
        """Return whether any run wrote a file with this sha256, wherever it lies now."""
        query = select(run_item.c.id).where(run_item.c.output_hash == digest).limit(1)
        with self._database.read() as connection:
            return connection.scalar(query) is not None


def _count(status: str) -> Any:
    query: Select[Any] = select(func.count()).where(run_item.c.run_id == run.c.id, run_item.c.status == status)
    return query.scalar_subquery().label(status)


_ITEMS = select(*(column for column in run_item.c if column.name not in ("id", "run_id")))
_RUNS = select(run, _count("ok"), _count("failed"))


def _no_run(run_id: int) -> NotFound:
    return NotFound(f"no run {run_id}; see `codi runs list`")
