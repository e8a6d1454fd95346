"""PostgreSQL, in a schema of its own; the fixture `backend` runs the other registry tests on it too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from codi_hub.registry import Registry, models


def test_adapters_added_at_the_same_time(postgres_url: str, home: Path, folder: Callable[[str], Path]) -> None:
    facts = {"task": "depth", "base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {"a": 1.5}}

    weights = folder("w")

    def add(_: int) -> int:
        with Registry.open(home, url=postgres_url, bundled=home) as registry:
            registry.bases.add("nano", "/nano", family="f", sketch={"w": [1.0]})
            return registry.adapters.add(weights, **facts)[0].version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(add, range(4))) == [1, 2, 3, 4]
    with Registry.open(home, url=postgres_url, bundled=home) as registry:
        assert registry.adapters.resolve("depth").version == 4
        assert registry.adapters.tag("depth:2", "prod").tags == ("prod",)
        assert registry.verify() == []
        run = registry.runs.start("depth", "depth:2", {"steps": 4})
        item = {"status": "ok", "seed": 2**63 - 1, "error": None, "seconds": 0.1}
        registry.runs.add_item(run, input="a", output="o", input_hash="h", prompt="a red box", **item)
        last = registry.runs.last_outputs("depth:2", {"steps": 4}, ["o"])["o"]
        assert (last.same, last.input_hash, last.prompt, last.seed) == (True, "h", "a red box", 2**63 - 1)
        assert not registry.runs.wrote("h")
        with registry.database.read() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, models.metadata) == []
