"""Opening, creating and migrating a database; many processes at once; a process killed half-way."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from codi_hub.errors import CodiError, InvalidInput, UsageError
from codi_hub.registry import Registry, database, models

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


def test_the_migrations_make_what_the_models_say(home: Path, nothing_bundled: Path) -> None:
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
    """Adds a migration after the last, with the given body to this version."""
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


def test_a_registry_of_the_first_revision_keeps_its_runs(
    home: Path, nothing_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(database.MIGRATIONS, tmp_path / "first")
    for later in database.revisions()[1:]:
        next((tmp_path / "first" / "versions").glob(f"{later}_*.py")).unlink()
    with monkeypatch.context() as earlier:
        earlier.setattr(database, "MIGRATIONS", tmp_path / "first")
        _filled(home, nothing_bundled)
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("INSERT INTO run VALUES (1, 'depth', 'depth:1', '{}', 'ok', '2026-01-01', NULL)")
        connection.execute("INSERT INTO run_item VALUES (1, 1, 'a.png', 'o/a.png', 'ab', 'ok', 7, NULL, 0.5)")
    with Registry.open(home, bundled=nothing_bundled) as registry:
        assert registry.runs.finished_outputs("depth:1", {}, ["o/a.png"]) == {"o/a.png": ("ab", None, 7)}
        assert registry.runs.items(1)[0].prompt is None
        assert registry.bases.get().name == "nano"


def test_a_newer_database_is_refused(home: Path, nothing_bundled: Path) -> None:
    _filled(home, nothing_bundled)
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(CodiError, match=rf"newer CoDi Hub \(revision 0999, this one knows up to {LAST}\)"):
        Registry.open(home, bundled=nothing_bundled)
    assert not (home / "backups").exists()


def test_files_that_are_no_registry_are_refused_and_kept(home: Path, nothing_bundled: Path) -> None:
    path = home / "registry.db"
    path.write_text("not a database, but a text that is long enough to have a header" * 20)
    with pytest.raises(InvalidInput, match="is damaged"):
        Registry.open(home, bundled=nothing_bundled)
    assert path.read_text().startswith("not a database")
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE task (id INTEGER)")
    with pytest.raises(InvalidInput, match="is no registry: it has a table task"):
        Registry.open(home, bundled=nothing_bundled)


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/d", "sqlite://", "postgresql://u:secret@h"])
def test_urls_that_cannot_be_a_registry(home: Path, nothing_bundled: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"postgresql://user@host/database") as caught:
        Registry.open(home, url=url, bundled=nothing_bundled)
    assert "secret" not in str(caught.value)


def test_a_home_that_is_a_file(tmp_path: Path, nothing_bundled: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodiError, match="set CODI_HOME to another"):
        Registry.open(tmp_path / "file", bundled=nothing_bundled)


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
