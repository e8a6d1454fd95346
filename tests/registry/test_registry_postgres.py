"""The same registry on PostgreSQL, in a schema of its own, where CODI_TEST_POSTGRES names a server's database."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from codi_hub.registry import Registry, models

pytestmark = pytest.mark.skipif("CODI_TEST_POSTGRES" not in os.environ, reason="CODI_TEST_POSTGRES names no server")


@pytest.fixture
def url() -> Iterator[str]:
    server = make_url(os.environ["CODI_TEST_POSTGRES"])
    schema = f"codi_{uuid.uuid4().hex}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    in_schema = server.update_query_dict({"options": f"-csearch_path={schema}"})
    yield in_schema.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


def test_adapters_added_at_the_same_time(url: str, home: Path, folder: Callable[[str], Path]) -> None:
    facts = {"task": "depth", "base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {"a": 1.5}}

    weights = folder("w")

    def add(_: int) -> int:
        with Registry.open(home, url=url, bundled=home) as registry:
            registry.bases.add("nano", "/nano", family="f", sketch={"w": [1.0]})
            return registry.adapters.add(weights, **facts)[0].version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(add, range(4))) == [1, 2, 3, 4]
    with Registry.open(home, url=url, bundled=home) as registry:
        assert registry.adapters.resolve("depth").version == 4
        assert registry.adapters.tag("depth:2", "prod").tags == ("prod",)
        assert registry.verify() == []
        run = registry.runs.start("depth", "depth:2", {"steps": 4})
        item = {"status": "ok", "seed": 2**63 - 1, "error": None, "seconds": 0.1}
        registry.runs.add_item(run, input="a", output="o", input_hash="h", prompt="a red box", **item)
        assert registry.runs.finished_outputs("depth:2", {"steps": 4}, ["o"]) == {"o": ("h", "a red box", 2**63 - 1)}
        with registry.database.read() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, models.metadata) == []
