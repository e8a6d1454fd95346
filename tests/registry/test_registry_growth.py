"""A large registry: queries use an index, messages name a few of many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from codi_hub.errors import NotFound, UsageError
from codi_hub.registry import Registry

WEIGHTS = "adapter.safetensors"
GROWING = ("adapter", "adapter_file", "tag", "task", "run", "run_item", "verified")


@contextmanager
def _plans(registry: Registry) -> Iterator[list[str]]:
    """Collect the query plan of every SELECT inside the block, one line for each table."""
    lines: list[str] = []
    engine = registry.database.engine

    def explain(connection, cursor, statement, parameters, context, executemany) -> None:
        if statement.lstrip().startswith("SELECT"):
            plan = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            lines.extend(row[3] for row in plan)

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield lines
    finally:
        event.remove(engine, "before_cursor_execute", explain)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_queries_and_changes_use_an_index(registry: Registry, add) -> None:
    for _ in range(3):
        add()
    registry.tasks.add("fog", "depth", {})
    with _plans(registry) as plans:
        row = registry.adapters.tag("depth:2", "prod")
        for ref in ("depth", "depth:2", "depth:prod"):
            registry.adapters.file(registry.adapters.resolve(ref), WEIGHTS)
        with pytest.raises(NotFound):
            registry.adapters.resolve("depth:9")
        with pytest.raises(NotFound):
            registry.adapters.resolve("depth", base="sd15")
        registry.tasks.get("fog")
        registry.adapters.list(task="depth", limit=1)
        registry.adapters.list(base="nano", limit=1, offset=1)
        registry.adapters.list(limit=1, offset=1)
        registry.adapters.files(row)
        registry.adapters.copy("depth:2", "fog")
        add()
        registry.adapters.remove(["depth:1"])
        run = registry.runs.start("depth", "depth:2", {})
        registry.runs.last_outputs("depth:2", {}, ["a", "b"])
        registry.runs.wrote("ab")
        registry.runs.finish(run, "ok")
    assert len(plans) > 40
    whole = re.compile(rf"SCAN ({'|'.join(GROWING)})\b")
    assert [line for line in plans if whole.match(line)] == []


def test_a_problem_with_a_shared_file_names_five_adapters(registry: Registry, add) -> None:
    rows = [add()[0] for _ in range(7)]
    path = registry.adapters.file(rows[0], WEIGHTS)
    path.unlink()
    missing = next(problem for problem in registry.verify() if problem.path == str(path))
    named = ", ".join(f"depth:{k} for nano" for k in range(1, 6))
    assert missing.message == f"needed by {named} and 2 more; restore it from a backup"


@pytest.mark.slow
def test_not_found_errors_name_the_last_versions(registry: Registry, add) -> None:
    for _ in range(13):
        add()
    registry.adapters.tag("depth:1", "first")
    last = "|".join(str(k) for k in range(4, 14))
    with pytest.raises(
        NotFound, match=rf"^no depth:99 for base nano; there is depth:{re.escape(last)}\|first\|latest$"
    ):
        registry.adapters.resolve("depth:99")
    with pytest.raises(UsageError, match=rf"depth has 13 versions .*: depth:{re.escape(last)}\|first\|latest$"):
        registry.adapters.remove(["depth"])


def test_count_and_bundled(registry: Registry, add) -> None:
    add(), add(), add("edit")
    registry.adapters.remove(["depth:1"])
    assert registry.adapters.count() == 2
    assert registry.adapters.bundled() == []
