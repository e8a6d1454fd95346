"""Files that nothing needs any more."""

from __future__ import annotations

from pathlib import Path

from codi_hub.errors import CodiError, Conflict
from codi_hub.registry.database import Database
from codi_hub.registry.rows import Garbage, storable
from codi_hub.registry.store import Store
from codi_hub.registry.verify import needed, owners


def collect(database: Database, store: Store, *, dry_run: bool) -> list[Garbage]:
    """Deletes the blobs that no ready adapter needs, and what killed processes left half-written; what that was.

    Additions wait meanwhile, so that what one is just writing is never taken for garbage. Killed half-way, it has
    deleted some of the files, and the next call deletes the rest.

    Raises:
        Conflict: another database has files in this store. CodiError: a file cannot be deleted.
    """
    with database.unfinished() as half_made, store.locked():
        if others := store.databases() - {database.mark}:
            raise Conflict(
                f"{store.root} also has files of {', '.join(sorted(others))}, which would be lost: give each database "
                f"a CODI_HOME of its own (or delete {store.noted}, if they are one and the same)"
            )
        with database.read() as connection:
            wanted, removed = needed(connection), owners(connection, ready=False)
        found = {}
        for path in store.blobs() - {store.path(digest) for digest in wanted}:
            refs = removed.get(path.name)
            found[path] = f"of {refs}, removed" if refs else "no adapter needs it"
        found |= dict.fromkeys(store.leftovers() | half_made, "a process was killed while it wrote this")
        return [_collected(path, found[path], dry_run) for path in sorted(found)]


def _collected(path: Path, message: str, dry_run: bool) -> Garbage:
    try:
        garbage = Garbage(storable(path), path.lstat().st_size, message)
        if not dry_run:
            path.unlink()
    except OSError as error:
        raise CodiError(
            f"{storable(path)} cannot be deleted: {error.strerror}; put that right and try again"
        ) from error
    return garbage
