"""A real registry on a real SQLite file or a real PostgreSQL server, and adapter folders to put in it."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from codi_hub.registry import AdapterRow, Registry

Add = Callable[..., tuple[AdapterRow, bool]]
SERVER = os.environ.get("CODI_TEST_POSTGRES")


@pytest.fixture
def nothing_bundled(tmp_path: Path) -> Path:
    return tmp_path / "no-bundle"


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty schema of the server's database."""
    if not SERVER:
        pytest.skip("CODI_TEST_POSTGRES names no server")
    server = make_url(SERVER).set(drivername="postgresql+psycopg")
    schema = f"codi_{uuid.uuid4().hex}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    in_schema = make_url(SERVER).update_query_dict({"options": f"-csearch_path={schema}"})
    yield in_schema.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture(params=["sqlite", *(["postgresql"] if SERVER else [])])
def backend(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the database of every registry in a test: SQLite, and in a second run PostgreSQL where there is a server."""
    if request.param == "postgresql":
        monkeypatch.setenv("CODI_REGISTRY_URL", request.getfixturevalue("postgres_url"))
    return str(request.param)


@pytest.fixture
def registry(home: Path, nothing_bundled: Path, backend: str) -> Iterator[Registry]:
    """Two bases, `nano` (in use) and `sd15`; no adapters."""
    with Registry.open(home, bundled=nothing_bundled) as opened:
        opened.bases.add("nano", "/models/nano", family="f1", sketch={"w": [1.0]})
        opened.bases.add("sd15", "runwayml/sd15", family="f2")
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that creates an adapter folder with the given text as weights."""

    def make(weights: str) -> Path:
        where = tmp_path / f"adapter-{hashlib.sha256(weights.encode()).hexdigest()[:8]}"
        where.mkdir(exist_ok=True)
        (where / "adapter.safetensors").write_text(weights)
        (where / "adapter.json").write_text("{}")
        (where / "README.md").write_text("# card")
        return where

    return make


@pytest.fixture
def add(registry: Registry, folder: Callable[[str], Path]) -> Add:
    """Return a function: `add("depth", score=1.0)` gives (row, whether `latest` moved)."""

    def run(task: str = "depth", base: str = "nano", weights: str = "weights", **more: Any) -> tuple[AdapterRow, bool]:
        facts = {"kind": "control", "steps": 4, "parameters": 7, "metrics": {"psnr": 20.0}} | more
        return registry.adapters.add(folder(weights), task=task, base=base, **facts)

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a bundle: `bundle(("superres", 1, "weights"), ...)`."""

    def make(*adapters: tuple[str, int, str], score: float | None = None) -> Path:
        root = tmp_path / "bundle"
        (root / "base" / "unet").mkdir(parents=True, exist_ok=True)
        (root / "base" / "unet" / "model.safetensors").write_text("unet")
        base = {"name": "nano", "path": "base", "family": "f1", "sketch": {"w": [1.0]}}
        entries = []
        for task, version, weights in adapters:
            (root / task).mkdir(exist_ok=True)
            (root / task / "adapter.safetensors").write_text(weights)
            files = {"adapter.safetensors": {"sha256": _hash(weights), "bytes": len(weights)}}
            entry = {"task": task, "version": version, "path": task, "kind": "control", "steps": 4, "parameters": 9}
            entries.append(entry | {"metrics": {}, "score": score, "created": "2026-01-01T00:00:00", "files": files})
        base_files = {"files": {"unet/model.safetensors": _hash("unet")}}
        (root / "manifest.json").write_text(json.dumps({"base": base | base_files, "adapters": entries}))
        return root

    return make


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
