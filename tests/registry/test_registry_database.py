"""Open, create and migrate a database; concurrent processes; killed processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from codi_hub.errors import CodiError, InvalidInput, UsageError
from codi_hub.registry import OutputRow, Registry, database, models, versions
from codi_hub.registry.database import Database

LAST = database.revisions()[-1]
ADD = """
import sys
from pathlib import Path
from codi_hub.registry import Registry, versions
{setup}
with Registry.open(Path(sys.argv[1]), bundled=Path(sys.argv[1]) / "none") as registry:
    registry.bases.add("nano", "/nano", family="f")
    for _ in range({times}):
        row, moved = registry.adapters.add(Path(sys.argv[2]), task="depth", base="nano", kind="control", steps=4,
                                          parameters=1, metrics={{}})
        print(row.version)
"""


def _python(code: str, *args: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True)


def test_migrations_and_models_agree(home: Path, nothing_bundled: Path) -> None:
    with Registry.open(home, bundled=nothing_bundled) as registry, registry.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), models.metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_file_names_and_alembic_agree_on_the_revisions() -> None:
    script = ScriptDirectory(str(database.MIGRATIONS))
    assert [step.revision for step in script.walk_revisions()][::-1] == database.revisions()


def test_an_open_that_changes_nothing_imports_neither_alembic_nor_torch(home: Path, nothing_bundled: Path) -> None:
    Registry.open(home, bundled=nothing_bundled).close()
    code = """
import sys
from pathlib import Path
from codi_hub.registry import Registry
Registry.open(Path(sys.argv[1]), bundled=Path(sys.argv[2])).adapters.list()
print(sorted({"torch", "alembic", "sqlalchemy.orm", "numpy", "filelock"} & set(sys.modules)))
"""
    assert _python(code, home, nothing_bundled).communicate()[0].strip() == "[]"


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that adds a migration with the given body after the last one."""
    shutil.copytree(database.MIGRATIONS, tmp_path / "migrations")

    def put(body: str) -> None:
        text = f'from alembic import op\nrevision = "0900"\ndown_revision = "{LAST}"\n\n\ndef upgrade():\n    {body}\n'
        (tmp_path / "migrations" / "versions" / "0900_next.py").write_text(text)
        monkeypatch.setattr(database, "MIGRATIONS", tmp_path / "migrations")

    return put


def _filled(home: Path, nothing_bundled: Path) -> None:
    with Registry.open(home, bundled=nothing_bundled) as registry:
        registry.bases.add("nano", "/nano", family="f")
        registry.tasks.add("fog", "depth", {})


def _dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def test_a_migration_runs_after_a_backup(home: Path, nothing_bundled: Path, migrations) -> None:
    _filled(home, nothing_bundled)
    before = _dump(home / "registry.db")
    migrations('op.execute("ALTER TABLE task ADD COLUMN note TEXT")')
    with Registry.open(home, bundled=nothing_bundled) as registry:
        assert registry.bases.get().name == "nano"
    assert any("note" in line for line in _dump(home / "registry.db"))
    (backup,) = (home / "backups").iterdir()
    assert _dump(backup) == before


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("raise RuntimeError('half-way')", "half-way"),
        (
            "op.execute(\"INSERT INTO run_item (run_id, input, status, seed, seconds) VALUES (9, 'a', 'ok', 1, 1)\")",
            "run",
        ),
    ],
)
def test_a_failing_migration_changes_nothing(home: Path, nothing_bundled: Path, migrations, second, reason) -> None:
    _filled(home, nothing_bundled)
    before = _dump(home / "registry.db")
    migrations(f'op.execute("DROP TABLE task")\n    op.execute("CREATE TABLE half (id INTEGER)")\n    {second}')
    with pytest.raises(CodiError, match=rf"{reason}.*; it is as it was, a backup is at .*\.db") as caught:
        Registry.open(home, bundled=nothing_bundled)
    assert "\n" not in str(caught.value)
    assert _dump(home / "registry.db") == before
    (backup,) = (home / "backups").iterdir()
    assert _dump(backup) == before


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """Return a context manager that hides the revisions after the given one from the package."""

    @contextmanager
    def until(revision: str) -> Iterator[None]:
        shutil.copytree(database.MIGRATIONS, tmp_path / "earlier")
        for later in [name for name in database.revisions() if name > revision]:
            next((tmp_path / "earlier" / "versions").glob(f"{later}_*.py")).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(database, "MIGRATIONS", tmp_path / "earlier")
            yield

    return until


def test_a_registry_of_the_first_revision_keeps_its_runs(home: Path, nothing_bundled: Path, earlier) -> None:
    with earlier("0001"):
        Database(home, None).close()
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("INSERT INTO base VALUES (1, 'nano', '/nano', 'f1', NULL, 0, '2026-01-01')")
        connection.execute("INSERT INTO setting VALUES ('base_in_use', 'nano')")
        connection.execute("INSERT INTO run VALUES (1, 'depth', 'depth:1', '{}', 'ok', '2026-01-01', NULL)")
        connection.execute("INSERT INTO run_item VALUES (1, 1, 'a.png', 'o/a.png', 'ab', 'ok', 7, NULL, 0.5)")
    with Registry.open(home, bundled=nothing_bundled) as registry:
        assert registry.runs.last_outputs("depth:1", {}, ["o/a.png"]) == {
            "o/a.png": OutputRow(True, "ab", None, 7, None, None, None)
        }
        assert registry.runs.items(1)[0].prompt is None
        base = registry.bases.get()
        assert (base.name, base.options, base.card) == ("nano", {}, {})


LOSS = {"guidance": "latent", "ode": "own", "consistency": True, "weight": 1.0, "cap": True}
REGRESSION = {"start": 0.1, "start_noise": 0.0}


WHOLE = {
    "task": "depth",
    "kind": "control",
    "base": {"name": "nano", "family": "f1", "sketch": {}},
    "prediction_type": "epsilon",
    "steps": 4,
    "config": {},
}


def _version_1(method: str, config: dict[str, float], **loss: object) -> str:
    """Return a record of format version 1."""
    training = {"method": f"{method}, side/zero_conv, random initialisation", "loss": json.dumps(LOSS | loss)}
    return json.dumps(WHOLE | {"format_version": 1, "kind": "side", "config": config, "training": training})


@pytest.mark.parametrize(
    ("record", "method"),
    [
        (_version_1("pe-codi", {}), "pe-codi"),
        (_version_1("pe-codi", REGRESSION, consistency=False), "regression"),
        (json.dumps(WHOLE | {"format_version": 2, "method": "gd"}), "gd"),
        (json.dumps(WHOLE | {"format_version": 2, "method": ""}), None),
        (json.dumps(WHOLE | {"format_version": 2, "method": "x" * 61}), None),
        (json.dumps({"format_version": 2, "method": "a\nb"}), None),
        (json.dumps({"format_version": 2, "method": ["gd"]}), None),
        (json.dumps({"format_version": "2"}), None),
        ("{}", None),
        ("[]", None),
        ("not JSON", None),
        ("[" * 10_000, None),
    ],
)
def test_the_method_comes_from_the_record(registry: Registry, folder: Callable[[str], Path], record, method) -> None:
    (path := folder("w") / "adapter.json").write_text(record)
    facts = {"base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
    assert registry.adapters.add(path.parent, task="depth", **facts)[0].method == method
    assert registry.adapters.copy("depth", "fog")[0].method == method


def test_adapters_of_the_first_edition_get_their_method(
    home: Path, bundle: Callable[..., Path], earlier, backend: str
) -> None:
    root = bundle(("superres", 1, "sr"))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["adapters"][0]["method"] = "pe-codi"
    (root / "manifest.json").write_text(json.dumps(manifest))
    digest = _sha256((root / "manifest.json").read_text())
    records = [_version_1("pe-codi", REGRESSION, consistency=False), "not JSON", None]
    with earlier("0003"):
        opened = Database(home, os.environ.get("CODI_REGISTRY_URL"))
        with opened.write() as connection:
            values = {"family": "f1", "bundled": True, "created": "2026"}
            base_id = versions.insert(connection, models.base, {"name": "nano", "source": "base"} | values)
            connection.execute(models.setting.insert().values(name="bundled_manifest", value=digest))
            _first_edition(connection, base_id, "superres", 1, "sr", "superres")
            for version, record in enumerate(records, 1):
                adapter_id = _first_edition(connection, base_id, "depth", version, f"w{version}", None)
                file = {"name": "adapter.json", "sha256": _sha256(record or "lost"), "bytes": 2}
                connection.execute(models.adapter_file.insert(), [{"adapter_id": adapter_id} | file])
        opened.close()
    for content in ("w1", "w2", "w3", *filter(None, records)):
        blob = home / "blobs" / "sha256" / _sha256(content)[:2] / _sha256(content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(content)
    with Registry.open(home, bundled=root) as registry:
        assert [(row.ref, row.kind, row.method) for row in registry.adapters.list()] == [
            ("depth:1", "residual", "regression"),
            ("depth:2", "residual", None),
            ("depth:3", "residual", None),
            ("superres:1", "control", "pe-codi"),  # as the manifest has it
        ]
        assert [problem.kind for problem in registry.verify()] == ["missing"]
    assert len(list(home.glob("backups/*"))) == (backend == "sqlite")


def _first_edition(connection, base_id: int, task: str, version: int, weights: str, folder: str | None) -> int:
    """Insert an adapter of kind `side` and its weights, as revision 0003 has them; return its id."""
    key = {"task": task, "base_id": base_id, "version": version, "folder": folder, "sha256": _sha256(weights)}
    values = {"kind": "side", "steps": 4, "parameters": 9, "bytes": 2, "status": "ready", "metrics": {}}
    adapter_id = versions.insert(connection, models.adapter, key | values | {"created": "2026"})
    file = {"adapter_id": adapter_id, "name": "adapter.safetensors", "sha256": _sha256(weights), "bytes": 2}
    connection.execute(models.adapter_file.insert(), [file])
    return adapter_id


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_newer_database_is_refused(home: Path, nothing_bundled: Path) -> None:
    _filled(home, nothing_bundled)
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(CodiError, match=rf"newer CoDi Hub \(revision 0999, this one knows up to {LAST}\)"):
        Registry.open(home, bundled=nothing_bundled)
    assert not (home / "backups").exists()


def test_other_files_are_refused_and_not_changed(home: Path, nothing_bundled: Path) -> None:
    path = home / "registry.db"
    path.write_text("not a database, but a text that is long enough to have a header" * 20)
    with pytest.raises(InvalidInput, match="is damaged"):
        Registry.open(home, bundled=nothing_bundled)
    assert path.read_text().startswith("not a database")
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE task (id INTEGER)")
    with pytest.raises(InvalidInput, match="is not a registry: it has a table task"):
        Registry.open(home, bundled=nothing_bundled)


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/d", "sqlite://", "postgresql://u:secret@h"])
def test_invalid_database_urls(home: Path, nothing_bundled: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"postgresql://user@host/database") as caught:
        Registry.open(home, url=url, bundled=nothing_bundled)
    assert "secret" not in str(caught.value)


def test_a_home_that_is_a_file(tmp_path: Path, nothing_bundled: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodiError, match="set CODI_HOME to another"):
        Registry.open(tmp_path / "file", bundled=nothing_bundled)


@pytest.mark.slow
def test_processes_that_create_and_add_at_the_same_time(home: Path, folder: Callable[[str], Path]) -> None:
    code = ADD.format(setup="", times=8)
    processes = [_python(code, home, folder("w")) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(int(version) for lines in printed for version in lines) == list(range(1, 25))
    with Registry.open(home, bundled=home / "none") as registry:
        assert registry.adapters.resolve("depth").version == 24
        assert registry.verify() == []


def test_killed_between_blob_and_record_leaves_only_orphans(home: Path, folder: Callable[[str], Path]) -> None:
    kill = "import os, signal\nversions.next_version = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    process = _python(ADD.format(setup=kill, times=1), home, folder("w"))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with Registry.open(home, bundled=home / "none") as registry:
        assert registry.adapters.list() == []
        assert [problem.kind for problem in registry.verify()] == ["orphan"] * 3
        facts = {"base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
        assert registry.adapters.add(folder("w"), task="depth", **facts)[0].ref == "depth:1"
        assert registry.verify() == []


def test_killed_while_writing_a_blob_leaves_a_leftover(home: Path, folder: Callable[[str], Path]) -> None:
    kill = "import os, signal\nos.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)"
    with Registry.open(home, bundled=home / "none"):
        process = _python(ADD.format(setup=kill, times=1), home, folder("w"))
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with Registry.open(home, bundled=home / "none") as registry:
        assert [problem.kind for problem in registry.verify()] == ["leftover"]
        assert registry.adapters.list() == []


def test_ctrl_c_while_a_connection_closes_prints_no_traceback(home: Path, nothing_bundled: Path) -> None:
    Registry.open(home, bundled=nothing_bundled).close()
    code = """
import sys
from pathlib import Path
from codi_hub.registry import Registry
def interrupted(dialect, connection): raise KeyboardInterrupt
registry = Registry.open(Path(sys.argv[1]), bundled=Path(sys.argv[2]))
registry.tasks.list()
type(registry.database.engine.dialect).do_close = interrupted
try:
    registry.close()
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", code, str(home), str(nothing_bundled)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")
