"""Additions to the store: what they hold and count while files are written, and a team's store that lacks some."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from codi_hub.errors import CodiError
from codi_hub.registry import recovery
from codi_hub.registry.database import Database
from codi_hub.registry.store import Store
from codi_hub.registry.verify import check_file, needed_digests


@contextlib.contextmanager
def storing(database: Database, store: Store, what: str) -> Iterator[Callable[[], None]]:
    """Hold the store's locks for a whole addition, until it is recorded. Raises CodiError for a failed write.

    Args:
        what: is added, for messages.

    Yields:
        What is called before it is recorded; see `Database.storing`.
    """
    try:
        with store.locked(), database.storing() as check:
            key = database.store_key
            with database.read() as connection:
                lost, count = recovery.is_lost(connection, store, key), recovery.additions(connection)
            store.add_database(key)
            store.set_additions(key, count + lost)
            yield check
            with database.read() as connection:
                count = recovery.additions(connection)
            store.set_additions(key, count + lost)  # by which a lost database is noticed, and stays so
    except OSError as error:
        raise CodiError(f"{what} could not be stored under {store.root}: {error.strerror or error}") from error


def fill_shared(database: Database, store: Store) -> int:
    """Copy to a team's store the blobs that it lacks and this home has; return how many."""
    shared = store.shared
    if shared is None:
        return 0
    with database.read() as connection:
        needed = needed_digests(connection)
    there, copied = shared.blobs(), 0
    for digest in sorted(needed):
        path = store.path(digest)
        if shared.path(digest) not in there and path.exists():
            check_file(database, path, digest, f"the copy of {shared.where(digest)}")
            shared.upload(path, digest)
            copied += 1
    return copied
