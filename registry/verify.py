"""Do files and records agree?"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, delete, select

from codi_hub.errors import InvalidInput, NotFound
from codi_hub.registry import versions
from codi_hub.registry.bundled import Manifest
from codi_hub.registry.database import Database
from codi_hub.registry.models import READY, adapter, adapter_file, base, verified
from codi_hub.registry.rows import Problem, storable
from codi_hub.registry.store import Stamp, Store, sha256

NAMED = 5  # adapters that a message about a file they share names


def unchanged(connection: Connection, path: Path, digest: str, stamp: Stamp) -> bool:
    """Whether the file had this hash when it was last read, and looks the same since."""
    row = connection.execute(select(verified).where(verified.c.path == storable(path))).first()
    return row is not None and row.sha256 == digest and Stamp(row.inode, row.bytes, row.mtime_ns) == stamp


def remember(connection: Connection, path: Path, digest: str, stamp: Stamp) -> None:
    versions.put(connection, verified, {"path": storable(path)}, {"sha256": digest} | stamp._asdict())


def checked(database: Database, path: Path, digest: str, what: str) -> Path:
    """`path`, whose content is as recorded: read again only if the file looks different since it last was.

    Raises NotFound for a missing file, InvalidInput for another content; `what` begins the message.
    """
    try:
        stamp = Stamp.of(path)
        with database.read() as connection:
            if unchanged(connection, path, digest, stamp):
                return path
        found = sha256(path)
    except FileNotFoundError:
        raise NotFound(f"{what} is missing at {path}; restore the file, or make the adapter again") from None
    except OSError as error:
        raise InvalidInput(f"{what} at {path} cannot be read: {error.strerror}") from error
    if found != digest:
        raise InvalidInput(
            f"{what} at {path} is not what was registered (sha256 {found[:12]}..., expected {digest[:12]}...); "
            "restore the file, or make the adapter again"
        )
    with database.write() as connection:
        remember(connection, path, digest, stamp)
    return path


def verify(database: Database, store: Store, manifest: Manifest | None) -> list[Problem]:
    """Reads every file. Those that differ are also read, and refused, when next asked for."""
    with store.locked(), database.read() as connection:
        wanted = owners(connection)
        blobs, leftovers = store.blobs(), store.leftovers()
    expected = {store.path(digest): (digest, refs) for digest, refs in wanted.items()}
    for path, digest in manifest.files() if manifest else ():
        expected[path] = (digest, "the bundled models")
    problems: dict[Path, Problem] = {}
    good: list[tuple[Path, str, Stamp]] = []
    for path, (digest, refs) in sorted(expected.items()):
        problem, stamp = _examine(path, digest, refs)
        if problem:
            problems[path] = problem
        elif stamp:
            good.append((path, digest, stamp))
    for path in sorted(blobs - expected.keys()):
        problems[path] = Problem("orphan", storable(path), "no adapter needs it; `codi gc` deletes it")
    for path in sorted(leftovers):
        problems[path] = Problem(
            "leftover", storable(path), "a process was killed while it wrote this; `codi gc` deletes it"
        )
    with database.write() as connection:
        connection.execute(delete(verified))
        for path, digest, stamp in good:
            remember(connection, path, digest, stamp)
        # An adapter that was removed while its files were read does not miss them.
        released = wanted.keys() - needed(connection)
    return [problem for path, problem in problems.items() if path.name not in released]


def needed(connection: Connection) -> set[str]:
    """The hashes of all blobs that a ready adapter needs."""
    query = select(adapter_file.c.sha256).join(adapter).where(adapter.c.folder.is_(None), adapter.c.status == READY)
    return set(connection.scalars(query.distinct()))


def owners(connection: Connection, ready: bool = True) -> dict[str, str]:
    """Each blob's hash, with the adapters that need it (or with `ready=False` those that needed it) as text."""
    joined = adapter_file.join(adapter, adapter.c.id == adapter_file.c.adapter_id).join(base)
    query = select(adapter_file.c.sha256, adapter.c.task, adapter.c.version, base.c.name).select_from(joined)
    status = adapter.c.status == READY if ready else adapter.c.status != READY
    found: dict[str, list[str]] = {}
    for digest, task, version, base_name in connection.execute(query.where(adapter.c.folder.is_(None), status)):
        found.setdefault(digest, []).append(f"{task}:{version} for {base_name}")
    return {digest: _some(names) for digest, names in found.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")


def _examine(path: Path, digest: str, refs: str) -> tuple[Problem | None, Stamp | None]:
    try:
        stamp = Stamp.of(path)
        found = sha256(path)
    except FileNotFoundError:
        return Problem("missing", storable(path), f"needed by {refs}; restore it from a backup"), None
    except OSError as error:
        return Problem("drift", storable(path), f"cannot be read ({error.strerror}); needed by {refs}"), None
    if found != digest:
        return Problem(
            "drift", storable(path), f"content has changed; needed by {refs}; restore it from a backup"
        ), None
    return None, stamp
