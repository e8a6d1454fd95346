"""A home that cannot be written: reading needs no write, and the cause is named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from codi_hub.errors import CodiError
from codi_hub.registry import Registry, frozen
from codi_hub.registry.database import Database

WEIGHTS = "adapter.safetensors"
READ_ONLY = "Read-only file system"


def _state(home: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(home)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in home.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def backend() -> str:
    """Return SQLite alone: these tests are about the files of its database."""
    return "sqlite"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which the database and its folder count as read-only, also for the superuser."""
    return lambda: monkeypatch.setattr(frozen, "unwritable", lambda file: READ_ONLY)


def test_a_read_only_home_is_read_without_a_write(
    registry: Registry, add, home: Path, nothing_bundled: Path, read_only: Callable[[], None]
) -> None:
    row = add()[0]
    run = registry.runs.start("depth", "depth:1", {})
    registry.close()
    read_only()
    before = _state(home)
    with Registry.open(home, bundled=nothing_bundled) as opened:
        assert opened.adapters.resolve("depth").sha256 == row.sha256
        assert opened.adapters.file(row, WEIGHTS).read_text() == "weights"
        assert opened.runs.get(run).status == "running"
        assert opened.verify() == []
        line = rf"the home folder {home} cannot be written \({READ_ONLY}\): allow writing there, or set CODI_HOME"
        for refused in (
            lambda: opened.adapters.tag("depth:1", "prod"),
            lambda: opened.adapters.remove(["depth:1"]),
            lambda: opened.runs.start("depth", "depth:1", {}),
            opened.database.check_writable,
        ):
            with pytest.raises(CodiError, match=line):
                refused()
    # What the test's disk, which can be written, lets SQLite and the lock create.
    assert _state(home).keys() - before.keys() <= {"blobs/.lock", "registry.db-wal", "registry.db-shm"}
    assert {name: state for name, state in _state(home).items() if name in before} == before


def test_a_home_without_a_database_that_cannot_be_written_has_the_bundled_adapters(
    home: Path, bundle: Callable[..., Path], read_only: Callable[[], None]
) -> None:
    read_only()
    with Registry.open(home, bundled=bundle(("depth", 1, "d"))) as registry:
        assert registry.adapters.resolve("depth").bundled
        assert registry.adapters.file(registry.adapters.resolve("depth"), WEIGHTS).read_text() == "d"
    assert list(home.iterdir()) == []


def test_what_another_process_has_written_to_the_log_is_read(home: Path, nothing_bundled: Path, read_only) -> None:
    with Registry.open(home, bundled=nothing_bundled) as writer:
        writer.bases.add("nano", "/nano", family="f")
        assert (home / "registry.db-wal").stat().st_size
        read_only()
        with Registry.open(home, bundled=nothing_bundled) as reader:
            assert reader.bases.get().name == "nano"


def test_the_log_is_read_where_nothing_can_be_created_beside_it(
    home: Path, nothing_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry.open(home, bundled=nothing_bundled) as writer:
        writer.bases.add("nano", "/nano", family="f")
        for suffix in ("", "-wal"):
            (tmp_path / f"r.db{suffix}").write_bytes((home / f"registry.db{suffix}").read_bytes())
    connect = sqlite3.connect

    def refuses(name: str, **options: object) -> sqlite3.Connection:
        if name.endswith("r.db?mode=ro"):
            raise sqlite3.OperationalError("unable to open database file")
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", refuses)
    copy = frozen.Copy(tmp_path / "r.db")
    assert copy._connection.execute("SELECT name FROM base").fetchall() == [("nano",)]
    copy.close()


def test_gc_frees_a_file_on_a_full_disk(
    registry: Registry, add, home: Path, nothing_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    registry.adapters.remove(["depth"])
    registry.close()

    def full(self: Database) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Database, "_open", full)
    monkeypatch.setattr(frozen, "write_error", lambda folder: "No space left on device")
    with Registry.open(home, bundled=nothing_bundled) as opened:
        assert opened.adapters.list() == []
        assert len(opened.collect()) == 3
        with pytest.raises(CodiError, match=r"No space left on device\): make room there \(`codi gc`\), or"):
            opened.tasks.add("fog", "depth", {})


def test_a_stamp_that_cannot_be_written_is_no_error(registry: Registry, add, monkeypatch: pytest.MonkeyPatch) -> None:
    row = add()[0]
    monkeypatch.setattr(frozen, "write_error", lambda folder: "No space left on device")
    path = registry.adapters.file(row, WEIGHTS)
    path.touch()
    with registry.database.write() as connection:
        connection.exec_driver_sql("DROP TABLE verified")
        connection.exec_driver_sql("CREATE VIEW verified AS SELECT 1 AS path, 2 AS sha256, 3 AS inode, "
                                   "4 AS bytes, 5 AS mtime_ns")  # fmt: skip
    assert registry.adapters.file(row, WEIGHTS) == path
    assert registry.verify() == []


def test_the_permissions_of_every_file_of_the_database_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "registry.db"
    file.touch()
    assert frozen.unwritable(file) is None
    assert frozen.unwritable(home / "not" / "yet" / "registry.db") is None
    (home / "registry.db-shm").touch()
    monkeypatch.setattr(frozen.os, "access", lambda path, mode: not str(path).endswith("-shm"))
    assert frozen.unwritable(file) == "Permission denied"
    assert frozen.write_error(home) is None
    assert frozen.write_error(home / "none") == "No such file or directory"
