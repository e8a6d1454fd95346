"""Compare the files with their recorded hashes, and delete those that no adapter needs."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from sqlalchemy import Connection, delete, select

from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound
from codi_hub.registry import versions
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.models import READY, adapter, adapter_file, base, verified
from codi_hub.registry.recovery import is_lost
from codi_hub.registry.rows import Garbage, Problem, storable
from codi_hub.registry.shared import Shared
from codi_hub.registry.store import Stamp, Store, sha256

LOST = (
    "lacks adapters that are in the store: it was lost or replaced by an older one. Restore it from a backup, or "
    "register them again with `codi recover`"
)
PARTIAL = "partial file of a killed process; `codi gc` deletes it"
MAX_REFS = 5  # adapters named in a message about a file that they share


def unchanged(connection: Connection, path: Path, digest: str, stamp: Stamp) -> bool:
    """Return whether the file had this hash when it was last read, and has the same stamp now."""
    row = connection.execute(select(verified).where(verified.c.path == _key(connection, path))).first()
    return row is not None and row.sha256 == digest and Stamp(row.inode, row.bytes, row.mtime_ns) == stamp


def record_hash(connection: Connection, path: Path, digest: str, stamp: Stamp) -> None:
    """Record that a file with this stamp has this hash."""
    versions.put(connection, verified, {"path": _key(connection, path)}, {"sha256": digest} | stamp._asdict())


def _key(connection: Connection, path: Path | str) -> str:
    """Return what a file is called in `verified`: a server's database has those of several machines."""
    return (f"{platform.node()}:" if connection.dialect.name != "sqlite" else "") + storable(path)


def check_file(database: Database, path: Path, digest: str, what: str) -> Path:
    """Return `path` if its content has the recorded hash; it is read only if its stamp has changed.

    Args:
        what: the file in messages, such as "adapter.json of depth:1".

    Raises:
        NotFound: the file is missing. InvalidInput: it cannot be read, or its content is another.
    """
    try:
        stamp = Stamp.of(path)
        with database.read() as connection:
            if unchanged(connection, path, digest, stamp):
                return path
        actual = sha256(path)
    except FileNotFoundError:
        raise NotFound(f"{what} is missing at {path}; restore the file, or train the adapter again") from None
    except OSError as error:
        raise InvalidInput(f"{what} at {path} cannot be read: {error.strerror}") from error
    if actual != digest:
        raise InvalidInput(
            f"{what} at {path} is not what was registered (sha256 {actual[:12]}..., expected {digest[:12]}...); "
            "restore the file, or train the adapter again"
        )
    database.note(lambda connection: record_hash(connection, path, digest, stamp))
    return path


def verify(database: Database, store: Store, manifest: Manifest | None) -> list[Problem]:
    """Read every file and return the problems. A file that differs is read again, and refused, by its next use."""
    with store.locked(needed=False), database.storing(needed=False), database.read() as connection:
        wanted = owners(connection)
        blobs, leftovers = store.blobs(), store.leftovers()
        lost = is_lost(connection, store, database.store_key)
        there = {*store.shared.blobs(), *store.shared.leftovers()} if store.shared else set()
    expected = {store.path(digest): (digest, refs) for digest, refs in wanted.items()} if not store.shared else {}
    for path, digest in manifest.files() if manifest else ():
        expected[path] = (digest, "the bundled models")
    problems: dict[Path, Problem] = {}
    good: list[tuple[Path, str, Stamp]] = []
    for path, (digest, refs) in sorted(expected.items()):
        problem, stamp = examine(path, digest, refs)
        if problem:
            problems[path] = problem
        elif stamp:
            good.append((path, digest, stamp))
    if lost:
        problems[Path(store.databases_place)] = Problem("lost", database.name, LOST)
    remedy = "no adapter in the database needs it" if lost else "no adapter needs it; `codi gc` deletes it"
    if store.shared:  # the copies in this home are checked when they are used
        problems |= _in_shared(store, wanted, there, remedy)
    else:
        problems |= {path: Problem("orphan", storable(path), remedy) for path in sorted(blobs - expected.keys())}
    for path in sorted(leftovers):
        problems[path] = Problem("leftover", storable(path), PARTIAL)

    def record(connection: Connection) -> None:
        connection.execute(delete(verified).where(verified.c.path.startswith(_key(connection, ""), autoescape=True)))
        for path, digest, stamp in good:
            record_hash(connection, path, digest, stamp)

    database.note(record)
    with database.read() as connection:
        # An adapter that was removed while its files were read needs none.
        released = wanted.keys() - needed_digests(connection)
    return [problem for path, problem in problems.items() if path.name not in released]


def _in_shared(store: Store, wanted: Mapping[str, str], there: Set[str], remedy: str) -> dict[Path, Problem]:
    """Read every blob of a team's store; return the problems by path. `there`: the paths of what is in it."""
    shared = store.shared
    assert shared is not None
    problems = {}
    for digest, refs in sorted(wanted.items()):
        kind, where = "missing", shared.where(digest)
        why = "`codi recover` copies it from this home" if store.path(digest).exists() else "restore it from a backup"
        if shared.path(digest) in there:
            try:
                if shared.sha256(digest) == digest:
                    continue
                kind, why = "drift", f"content has changed; {why}"
            except NotFound:
                pass
            except CodiError as error:
                kind, why = "drift", f"cannot be read ({error})"
        problems[Path(shared.path(digest))] = Problem(kind, where, f"needed by {refs}; {why}")
    for path in sorted(there - {shared.path(digest) for digest in wanted}):
        kind, message = ("orphan", remedy) if path.startswith("sha256/") else ("leftover", PARTIAL)
        problems[Path(path)] = Problem(kind, f"{shared.name}/{path}", message)
    return problems


def needed_digests(connection: Connection) -> set[str]:
    """Return the hashes of all blobs that a ready adapter needs."""
    query = select(adapter_file.c.sha256).join(adapter).where(adapter.c.folder.is_(None), adapter.c.status == READY)
    return set(connection.scalars(query.distinct()))


def owners(connection: Connection, ready: bool = True) -> dict[str, str]:
    """Return each blob's hash with the adapters that need it, or with `ready=False` the removed ones, as text."""
    joined = adapter_file.join(adapter, adapter.c.id == adapter_file.c.adapter_id).join(base)
    query = select(adapter_file.c.sha256, adapter.c.task, adapter.c.version, base.c.name).select_from(joined)
    status = adapter.c.status == READY if ready else adapter.c.status != READY
    names: dict[str, list[str]] = {}
    for digest, task, version, base_name in connection.execute(query.where(adapter.c.folder.is_(None), status)):
        names.setdefault(digest, []).append(f"{task}:{version} for {base_name}")
    return {digest: _some(refs) for digest, refs in names.items()}


def _some(refs: list[str]) -> str:
    return ", ".join(refs[:MAX_REFS]) + (f" and {len(refs) - MAX_REFS} more" if refs[MAX_REFS:] else "")


def examine(path: Path, digest: str, refs: str) -> tuple[Problem | None, Stamp | None]:
    """Hash a file; return the problem with it, or the stamp of a good one. `refs`: the adapters that need it."""
    try:
        stamp = Stamp.of(path)
        actual = sha256(path)
    except FileNotFoundError:
        return Problem("missing", storable(path), f"needed by {refs}; restore it from a backup"), None
    except OSError as error:
        return Problem("drift", storable(path), f"cannot be read ({error.strerror}); needed by {refs}"), None
    if actual != digest:
        return Problem(
            "drift", storable(path), f"content has changed; needed by {refs}; restore it from a backup"
        ), None
    return None, stamp


def collect(database: Database, store: Store, *, dry_run: bool) -> list[Garbage]:
    """Delete the blobs that no ready adapter needs, and the partial files of killed processes; return them.

    Additions wait meanwhile, on all machines, so that a file that is being added is never taken for garbage. If the
    process is killed, the next call deletes the remaining files.

    Raises:
        Conflict: another database has files in this store, or the database lacks adapters that it added.
        CodiError: a file cannot be deleted.
    """
    needed = not dry_run
    with (
        database.leftovers(needed=needed) as partial,
        store.locked(needed=needed),
        database.storing(alone=True, needed=needed),
    ):
        database.refresh()  # nothing is added while the store is locked
        if others := store.databases() - {database.store_key, database.name}:
            where, own = (store.shared.name, "CODI_STORE_URL") if store.shared else (store.root, "CODI_HOME")
            raise Conflict(
                f"{where} also has files of {', '.join(sorted(others))}, which would be lost: give each database "
                f"a {own} of its own (or delete {store.databases_place}, if they are the same database)"
            )
        with database.read() as connection:
            if is_lost(connection, store, database.store_key):
                raise Conflict(f"{database.name} {LOST}")
            wanted, removed = needed_digests(connection), owners(connection, ready=False)

        def why(digest: str) -> str:
            return f"of {removed[digest]}, removed" if digest in removed else "no adapter needs it"

        garbage = {path: why(path.name) for path in store.blobs() - {store.path(digest) for digest in wanted}}
        garbage |= dict.fromkeys(store.leftovers() | partial, "partial file of a killed process")
        deleted = [_delete(path, garbage[path], dry_run) for path in sorted(garbage)]
        return deleted + (_collect_shared(store.shared, wanted, why, dry_run) if store.shared else [])


def _collect_shared(shared: Shared, wanted: Set[str], why: Callable[[str], str], dry_run: bool) -> list[Garbage]:
    """Delete what no adapter needs from a team's store. Raises CodiError."""
    needed = {shared.path(digest) for digest in wanted}
    blobs = {path: size for path, size in shared.blobs().items() if path not in needed}
    garbage = [Garbage(f"{shared.name}/{path}", size, why(path.rpartition("/")[2])) for path, size in blobs.items()]
    leftovers = shared.leftovers()
    partial = "partial file of a killed process"
    garbage += [Garbage(f"{shared.name}/{path}", size, partial) for path, size in leftovers.items()]
    for path in () if dry_run else (*blobs, *leftovers):
        shared.delete(path)
    return garbage


def _delete(path: Path, message: str, dry_run: bool) -> Garbage:
    try:
        garbage = Garbage(storable(path), path.lstat().st_size, message)
        if not dry_run:
            path.unlink()
    except OSError as error:
        raise CodiError(f"{storable(path)} cannot be deleted: {error.strerror}; correct that and try again") from error
    return garbage
