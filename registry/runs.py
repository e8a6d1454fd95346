"""The record of runs: what was made from what, with which adapter and seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, func, select, update

from codi_hub.errors import NotFound
from codi_hub.registry import versions
from codi_hub.registry.database import Database
from codi_hub.registry.models import run, run_item
from codi_hub.registry.rows import RunItemRow, RunRow, now

Finished = tuple[str | None, str | None, int]


def text(value: object) -> str:
    """As text that any database stores: bytes of file names that are not UTF-8 escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


class RunLog:
    """The part of a registry that grows with every run. A row is committed as soon as it is added."""

    _database: Database

    def start_run(self, task: str, adapter_ref: str, options: dict[str, Any]) -> int:
        """The id of a new run, whose status is `running` until it is finished."""
        values = {"task": task, "adapter": adapter_ref, "options": versions.plain(options)}
        with self._database.write() as connection:
            return versions.insert(connection, run, values | {"status": "running", "started": now()})

    def add_item(
        self,
        run_id: int,
        *,
        input: object,
        output: object | None,
        input_hash: str | None,
        status: str,
        seed: int,
        error: str | None,
        seconds: float,
        prompt: str | None = None,
    ) -> None:
        """Records one input of a run. `seed`: below 2^63."""
        values = {
            "run_id": run_id,
            "input": text(input),
            "output": None if output is None else text(output),
            "input_hash": input_hash,
            "status": status,
            "seed": seed,
            "error": None if error is None else text(error),
            "seconds": seconds,
            "prompt": prompt,
        }
        with self._database.write() as connection:
            versions.insert(connection, run_item, values)

    def finish_run(self, run_id: int, status: str) -> None:
        """Raises NotFound."""
        change = update(run).where(run.c.id == run_id).values(status=status, finished=now())
        with self._database.write() as connection:
            if not connection.execute(change).rowcount:
                raise NotFound(f"no run {run_id}")

    def runs(self, limit: int | None = 50) -> list[RunRow]:
        """The last runs, newest first."""
        query = select(run, _count("ok"), _count("failed")).order_by(run.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [RunRow(**row._mapping) for row in connection.execute(query)]

    def run_items(self, run_id: int) -> list[RunItemRow]:
        """What a run did, in the order in which it was done."""
        columns = [column for column in run_item.c if column.name not in ("id", "run_id")]
        query = select(*columns).where(run_item.c.run_id == run_id).order_by(run_item.c.id)
        with self._database.read() as connection:
            return [RunItemRow(**row._mapping) for row in connection.execute(query)]

    def finished_outputs(
        self, adapter_ref: str, options: dict[str, Any], outputs: Iterable[str]
    ) -> dict[str, Finished]:
        """Output -> (sha256 of its input, its prompt, its seed), of those that this adapter made with these options.

        One that another run has made again since is left out: the last who wrote it counts.
        """
        wanted = versions.plain(options)
        last: dict[str, Any] = {}
        columns = (run_item.c.run_id, run_item.c.output, run_item.c.input_hash, run_item.c.prompt, run_item.c.seed)
        made = select(*columns).where(run_item.c.status == "ok").order_by(run_item.c.id)
        with self._database.read() as connection:
            for part in versions.in_parts(map(text, outputs)):
                rows = connection.execute(made.where(run_item.c.output.in_(part)))
                last |= {row.output: row for row in rows}
            same = set()
            for part in versions.in_parts({row.run_id for row in last.values()}):
                runs = select(run.c.id, run.c.options).where(run.c.id.in_(part), run.c.adapter == adapter_ref)
                # Compared here: JSON is not comparable in every database.
                same |= {row.id for row in connection.execute(runs) if row.options == wanted}
        return {name: (row.input_hash, row.prompt, row.seed) for name, row in last.items() if row.run_id in same}


def _count(status: str) -> Any:
    query: Select[Any] = select(func.count()).where(run_item.c.run_id == run.c.id, run_item.c.status == status)
    return query.scalar_subquery().label(status)
