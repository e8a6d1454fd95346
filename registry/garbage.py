"""Garbage collection: delete the files that no adapter needs."""

from __future__ import annotations

from pathlib import Path

from codi_hub.errors import CodiError, Conflict
from codi_hub.registry.database import Database
from codi_hub.registry.rows import Garbage, storable
from codi_hub.registry.store import Store
from codi_hub.registry.verify import needed_digests, owners


def collect(database: Database, store: Store, *, dry_run: bool) -> list[Garbage]:
    """Delete the blobs that no ready adapter needs, and the partial files of killed processes; return them.

    Additions wait meanwhile, so that a file that is being added is never taken for garbage. If the process is killed,
    the next call deletes the remaining files.

    Raises:
        Conflict: another database has files in this store. CodiError: a file cannot be deleted.
    """
    with database.leftovers() as partial, store.locked():
        if others := store.databases() - {database.store_key}:
            raise Conflict(
                f"{store.root} also has files of {', '.join(sorted(others))}, which would be lost: give each database "
                f"a CODI_HOME of its own (or delete {store.databases_file}, if they are the same database)"
            )
        with database.read() as connection:
            wanted, removed = needed_digests(connection), owners(connection, ready=False)
        garbage = {}
        for path in store.blobs() - {store.path(digest) for digest in wanted}:
            refs = removed.get(path.name)
            garbage[path] = f"of {refs}, removed" if refs else "no adapter needs it"
        garbage |= dict.fromkeys(store.leftovers() | partial, "partial file of a killed process")
        return [_delete(path, garbage[path], dry_run) for path in sorted(garbage)]


def _delete(path: Path, message: str, dry_run: bool) -> Garbage:
    try:
        garbage = Garbage(storable(path), path.lstat().st_size, message)
        if not dry_run:
            path.unlink()
    except OSError as error:
        raise CodiError(f"{storable(path)} cannot be deleted: {error.strerror}; correct that and try again") from error
    return garbage
