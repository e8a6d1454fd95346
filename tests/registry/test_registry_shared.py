"""A team's store below an URL: several homes on one database, on a file system in memory, a folder and an S3 server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_server import BUSY, CUT, DENIED, KEYS, S3Server, named_by_environment
from sqlalchemy import text

from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound
from codi_hub.registry import Registry, shared
from codi_hub.registry.store import Store

WEIGHTS = "adapter.safetensors"
FACTS = {"task": "depth", "base": "nano", "kind": "control", "steps": 4, "parameters": 7, "metrics": {}}


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/team" if request.param == "memory" else str(tmp_path / "mounted" / "team")


@pytest.fixture
def machines(
    backend: str, store: str, tmp_path: Path, nothing_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Registry]]:
    """Return a function that opens the registry as another machine would: with a home of its own."""
    if backend == "sqlite":
        monkeypatch.setenv("CODI_REGISTRY_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    opened: list[Registry] = []

    def machine(name: str) -> Registry:
        registry = Registry.open(tmp_path / name, store=store, bundled=nothing_bundled)
        registry.bases.add("nano", "/models/nano", family="f1")
        opened.append(registry)
        return registry

    yield machine
    for registry in opened:
        registry.close()


@pytest.fixture
def place(store: str) -> tuple[Any, str]:
    """The store's file system and root."""
    system, root = fsspec.core.url_to_fs(store)
    return system, str(root)


def objects(place: tuple[Any, str]) -> set[str]:
    system, root = place
    return {name.removeprefix(f"{root}/") for name in system.find(root)}


def blob(place: tuple[Any, str], digest: str) -> str:
    return f"{place[1]}/sha256/{digest[:2]}/{digest}"


def test_what_one_machine_adds_another_uses(
    machines: Callable[[str], Registry], folder: Callable[[str], Path], place: tuple[Any, str]
) -> None:
    first, second = machines("a"), machines("b")
    row, _ = first.adapters.add(folder("weights"), **FACTS)
    there = second.adapters.resolve("depth")
    path = second.adapters.file(there, WEIGHTS)
    assert (path.read_text(), path.is_relative_to(second.home)) == ("weights", True)
    assert not [name for name in objects(place) if name.startswith("tmp/")]
    assert first.verify() == second.verify() == []
    second.adapters.copy("depth", "fog")
    assert first.adapters.file(first.adapters.resolve("fog"), WEIGHTS).read_text() == "weights"
    assert row.sha256 == there.sha256


def test_garbage_is_what_no_machine_needs(
    machines: Callable[[str], Registry], folder: Callable[[str], Path], place: tuple[Any, str]
) -> None:
    first, second = machines("a"), machines("b")
    kept, gone = (first.adapters.add(folder(text), **FACTS)[0] for text in ("kept", "gone"))
    second.adapters.file(gone, WEIGHTS)
    second.adapters.remove(["depth:2"])
    assert [problem.kind for problem in first.verify()] == ["orphan"]
    before = objects(place)
    assert second.collect(dry_run=True)
    assert objects(place) == before
    deleted = {entry.path for entry in second.collect()}
    assert len(deleted) == 2, "the blob in the store and the copy in this home"
    assert gone.sha256 not in str(objects(place))
    assert kept.sha256 in str(objects(place))
    assert first.verify() == second.verify() == []
    # The first machine still has its copy. Other files are added there again, and are in the store again.
    first.adapters.add(folder("gone"), **FACTS)
    assert second.adapters.file(second.adapters.resolve("depth:3"), WEIGHTS).read_text() == "gone"


def test_a_copy_of_files_that_were_collected_is_written_again(
    machines: Callable[[str], Registry], bundle: Callable[..., Path], store: str
) -> None:
    root = bundle(("superres", 1, "bundled"))
    first = machines("a")
    with Registry.open(first.home, store=store, bundled=root) as here:
        here.adapters.copy("superres", "fog", base="nano-bundled")
        here.adapters.remove(["fog:1"], base="nano-bundled")
        machines("b").collect()
        here.adapters.copy("superres", "fog", base="nano-bundled")
        assert here.verify() == []


def test_a_damaged_copy_is_replaced(machines: Callable[[str], Registry], folder: Callable[[str], Path]) -> None:
    first, second = machines("a"), machines("b")
    first.adapters.add(folder("weights"), **FACTS)
    row = second.adapters.resolve("depth")
    path = second.adapters.file(row, WEIGHTS)
    path.chmod(0o644)
    path.write_text("damaged")
    assert second.adapters.file(row, WEIGHTS).read_text() == "weights"


def test_a_damaged_or_missing_blob_is_told(
    machines: Callable[[str], Registry], folder: Callable[[str], Path], place: tuple[Any, str]
) -> None:
    first, second = machines("a"), machines("b")
    row, _ = first.adapters.add(folder("weights"), **FACTS)
    place[0].pipe_file(blob(place, row.sha256), b"damaged")
    with pytest.raises(InvalidInput, match="has other content"):
        second.adapters.file(row, WEIGHTS)
    assert not [*(second.home / "blobs").rglob("*.part"), *(second.home / "blobs").rglob(row.sha256)]
    assert [problem.kind for problem in second.verify()] == ["drift"]
    place[0].rm_file(blob(place, row.sha256))
    with pytest.raises(NotFound, match="is not in the store"):
        second.adapters.file(row, WEIGHTS)
    (problem,) = first.verify()
    assert (problem.kind, "`codi recover` copies it from this home" in problem.message) == ("missing", True)
    assert first.adapters.recover(first.home / "distill", lambda record: None).copied == 1
    assert second.adapters.file(row, WEIGHTS).read_text() == "weights"


def test_another_database_keeps_its_files(
    machines: Callable[[str], Registry],
    folder: Callable[[str], Path],
    tmp_path: Path,
    nothing_bundled: Path,
    store: str,
) -> None:
    machines("a").adapters.add(folder("weights"), **FACTS)
    with (
        Registry.open(
            tmp_path / "c", url=f"sqlite:///{tmp_path / 'other.db'}", store=store, bundled=nothing_bundled
        ) as other,
        pytest.raises(Conflict, match="also has files of"),
    ):
        other.collect()


def test_collection_waits_for_additions(machines: Callable[[str], Registry], folder: Callable[[str], Path]) -> None:
    """While a machine uploads, another's collection neither starts nor takes what is not recorded yet."""
    first, second = machines("a"), machines("b")
    assert first.shared
    uploading, go_on, collected = threading.Event(), threading.Event(), threading.Event()
    upload = first.shared.upload

    def slowly(source: Path, digest: str) -> None:
        upload(source, digest)
        uploading.set()
        assert go_on.wait(30)

    first.shared.upload = slowly  # type: ignore[method-assign]
    adding = threading.Thread(target=lambda: first.adapters.add(folder("weights"), **FACTS))
    collecting = threading.Thread(target=lambda: (second.collect(), collected.set()))
    adding.start()
    assert uploading.wait(30)
    collecting.start()
    assert not collected.wait(0.5)
    go_on.set()
    adding.join()
    collecting.join()
    assert second.adapters.file(second.adapters.resolve("depth"), WEIGHTS).read_text() == "weights"
    assert second.verify() == []


class Unreliable:
    """A file system that refuses some calls, by their number."""

    def __init__(self, system: Any, refuses: Callable[[int], bool], error: type[Exception] = OSError) -> None:
        self._system, self._refuses, self._error = system, refuses, error
        self.calls = self.refused = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._system, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if self._refuses(self.calls):
                self.refused += 1
                raise self._error("slow down")
            return found(*arguments, **more)

        return call


def unreliable(registry: Registry, refuses: Callable[[int], bool]) -> Unreliable:
    assert registry.shared
    system, root = registry.shared._place
    registry.shared.__dict__["_place"] = (bad := Unreliable(system, refuses)), root
    return bad


def test_a_call_in_eight_that_is_refused_loses_nothing(
    machines: Callable[[str], Registry], folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WAITS", (0.0, 0.0, 0.0))
    first, second = machines("a"), machines("b")
    systems = [unreliable(machine, lambda number: number % 8 == 5) for machine in (first, second)]
    for number in range(12):
        first.adapters.add(folder(f"weights {number}"), **FACTS)
        row = second.adapters.resolve(f"depth:{number + 1}")
        assert second.adapters.file(row, WEIGHTS).read_text() == f"weights {number}"
    assert first.verify() == second.verify() == []
    assert second.collect() == []
    assert min(system.refused for system in systems) >= 5


def test_a_store_that_refuses_every_call_is_one_line(
    machines: Callable[[str], Registry], folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr(shared, "WAITS", (0.0, 0.0, 0.0))
    first, second = machines("a"), machines("b")
    system = unreliable(first, lambda number: True)
    with pytest.raises(CodiError, match=r"slow down$") as refused:
        first.adapters.add(folder("weights"), **FACTS)
    assert (str(refused.value).count("\n"), system.calls) == (0, 4)
    assert second.adapters.list() == []
    assert second.collect() == []


def test_a_full_disk_is_one_line_and_leaves_no_part(
    machines: Callable[[str], Registry], folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machines("a"), machines("b")
    row, _ = first.adapters.add(folder("weights"), **FACTS)

    def full(temporary: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_place", staticmethod(full))
        with pytest.raises(CodiError, match=r"cannot be copied to .*: No space left on device$"):
            second.adapters.file(row, WEIGHTS)
    assert not [*(second.home / "blobs").rglob("*.part")]
    assert second.adapters.file(row, WEIGHTS).read_text() == "weights"


def test_a_home_moves_to_a_store(
    backend: str, home: Path, store: str, folder: Callable[[str], Path], nothing_bundled: Path
) -> None:
    """A registry whose files were in its home alone is given a store."""
    with Registry.open(home, bundled=nothing_bundled) as alone:
        alone.bases.add("nano", "/models/nano", family="f1")
        row, _ = alone.adapters.add(folder("weights"), **FACTS)
    with Registry.open(home, store=store, bundled=nothing_bundled) as registry:
        assert registry.adapters.file(row, WEIGHTS).read_text() == "weights"
        assert {problem.kind for problem in registry.verify()} == {"missing"}
        assert registry.adapters.recover(home / "distill", lambda record: None).copied == 3
        assert registry.verify() == []
        assert registry.collect() == []


def test_a_server_restarted_during_an_upload_is_told(
    postgres_url: str, tmp_path: Path, folder: Callable[[str], Path], nothing_bundled: Path
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with Registry.open(tmp_path / "a", url=postgres_url, store=url, bundled=nothing_bundled) as registry:
        registry.bases.add("nano", "/models/nano", family="f1")
        assert registry.shared
        upload = registry.shared.upload

        def disconnected(source: Path, digest: str) -> None:
            upload(source, digest)
            with registry.database.engine.begin() as connection:
                others = "pid <> pg_backend_pid() AND usename = current_user AND datname = current_database()"
                mine = "query LIKE '%pg_advisory_lock_shared%'"
                connection.execute(
                    text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others} AND {mine}")
                )

        registry.shared.upload = disconnected  # type: ignore[method-assign]
        with pytest.raises(CodiError, match=r"cannot be used: .*; correct that and try again"):
            registry.adapters.add(folder("weights"), **FACTS)
        registry.shared.upload = upload  # type: ignore[method-assign]
        assert registry.adapters.list() == []
        assert {problem.kind for problem in registry.verify()} == {"orphan"}
        registry.adapters.add(folder("weights"), **FACTS)
        assert registry.verify() == []


def test_files_that_only_another_machine_has(
    postgres_url: str, tmp_path: Path, folder: Callable[[str], Path], nothing_bundled: Path
) -> None:
    def machine(name: str) -> Registry:
        return Registry.open(tmp_path / name, url=postgres_url, bundled=nothing_bundled)

    with machine("a") as first, machine("b") as second:
        first.bases.add("nano", "/models/nano", family="f1")
        row, _ = first.adapters.add(folder("weights"), **FACTS)
        with pytest.raises(NotFound, match="share the files of all machines with CODI_STORE_URL"):
            second.adapters.file(row, WEIGHTS)


def test_two_machines_that_begin_at_once(
    postgres_url: str, tmp_path: Path, folder: Callable[[str], Path], nothing_bundled: Path
) -> None:
    """An empty database is migrated once, and has one identity."""
    url, keys, versions = f"memory://{uuid.uuid4().hex}", set[str](), list[int]()

    def begin(number: int) -> None:
        with Registry.open(tmp_path / str(number), url=postgres_url, store=url, bundled=nothing_bundled) as registry:
            keys.add(registry.database.store_key)
            registry.bases.add("nano", "/models/nano", family="f1")
            versions.append(registry.adapters.add(folder(f"w{number}"), **FACTS)[0].version)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(keys), sorted(versions)) == (1, [1, 2, 3, 4])


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    """The URL of a folder in a new bucket of an S3 server."""
    with named_by_environment(server, attempts=1):
        name = f"bucket-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}/team"


def open_machine(home: Path, url: str) -> Registry:
    registry = Registry.open(home, store=url, bundled=home)
    registry.bases.add("nano", "/models/nano", family="f1")
    return registry


def test_an_s3_server_that_refuses_and_cuts_calls(
    backend: str, bucket: str, server: S3Server, tmp_path: Path, folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One call in ten is refused, and one upload in seven cut: nothing is lost."""
    if backend == "sqlite":
        monkeypatch.setenv("CODI_REGISTRY_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.setattr(shared, "WAITS", (0.0, 0.0, 0.0))
    counts = {"calls": 0, "uploads": 0, "refused": 0, "cut": 0}

    def fault(request: str) -> Any:
        counts["calls"] += 1
        counts["uploads"] += request.startswith("PUT") and "sha256" in request
        if request.startswith("PUT") and "sha256" in request and counts["uploads"] % 7 == 3:
            counts["cut"] += 1
            return CUT
        if counts["calls"] % 10 == 4:
            counts["refused"] += 1
            return BUSY
        return None

    with open_machine(tmp_path / "a", bucket) as first, open_machine(tmp_path / "b", bucket) as second:
        server.fault = fault
        for number in range(6):
            first.adapters.add(folder(f"weights {number}"), **FACTS)
            row = second.adapters.resolve(f"depth:{number + 1}")
            assert second.adapters.file(row, WEIGHTS).read_text() == f"weights {number}"
        first.adapters.remove(["depth:2"])
        assert any("removed" in entry.message for entry in second.collect())
        assert second.verify() == []
        assert second.adapters.file(second.adapters.resolve("depth:6"), WEIGHTS).read_text() == "weights 5"
        assert counts["cut"] >= 2
        assert counts["refused"] >= 5


def test_a_store_that_cannot_be_used_is_one_line(
    bucket: str, server: S3Server, tmp_path: Path, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WAITS", (0.0,))
    with open_machine(tmp_path / "a", bucket.replace("bucket-", "other-")) as registry:
        with pytest.raises(CodiError, match="other-") as refused:
            registry.adapters.add(folder("weights"), **FACTS)
        assert "\n" not in str(refused.value)
    server.fault = lambda request: DENIED
    with open_machine(tmp_path / "b", bucket) as registry:
        with pytest.raises(CodiError) as refused:
            registry.adapters.add(folder("weights"), **FACTS)
        assert ("\n" in str(refused.value), KEYS["AWS_SECRET_ACCESS_KEY"] in str(refused.value)) == (False, False)
        assert registry.adapters.list() == []


ADDING = """
import sys
from pathlib import Path
from codi_hub.registry import Registry
home, store, folder, name = sys.argv[1:]
with Registry.open(Path(home), store=store, bundled=Path(home)) as registry:
    for number in range(1000):
        Path(folder, "adapter.safetensors").write_text(f"{name} {number}")
        facts = {"kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
        registry.adapters.add(Path(folder), task="depth", base="nano", **facts)
        print(number, flush=True)
"""


@pytest.mark.slow
def test_two_machines_that_are_killed_while_they_add(
    backend: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every adapter that is recorded is whole, for the other machine too; the rest is garbage that is collected."""
    if backend == "sqlite":
        monkeypatch.setenv("CODI_REGISTRY_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    with open_machine(tmp_path / "c", bucket) as other:
        for attempt in range(2):
            adding = []
            for name in ("a", "b"):
                folder = tmp_path / f"{name}{attempt}"
                folder.mkdir()
                (folder / "adapter.json").write_text("{}")
                command = [sys.executable, "-c", ADDING, tmp_path / name, bucket, folder, folder.name]
                adding.append(subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE))
            for process in adding:
                assert process.stdout
                process.stdout.readline()
            time.sleep(0.05 * attempt)
            for process in adding:
                process.kill()
                process.communicate()
        other.collect()
        assert other.verify() == []
        rows = other.adapters.list()
        texts = [other.adapters.file(row, WEIGHTS).read_text() for row in rows]
        assert len(set(texts)) == len(texts) >= 4
        assert [row.version for row in rows] == sorted({row.version for row in rows})
