"""A database that was lost, or replaced by an older one, beside the store: it is noticed, and its adapters found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select

from codi_hub.errors import InvalidInput
from codi_hub.registry import versions
from codi_hub.registry.models import adapter, adapter_file, setting
from codi_hub.registry.store import Store, sha256

if TYPE_CHECKING:
    from codi_hub.record import AdapterRecord

ADDITIONS = "adapters_added"  # setting: how many adapters this database has added to the store
WEIGHTS, RECORD = "adapter.safetensors", "adapter.json"
MAX_HEADER = 100 << 20  # bytes; the limit of safetensors


@dataclass(frozen=True)
class Found:
    """An adapter that the database does not know: its record, its files by name, and its number of parameters."""

    record: AdapterRecord
    files: dict[str, Path]
    parameters: int
    written: float


def additions(connection: Connection) -> int:
    """Return how many adapters the database has added to the store since that is counted."""
    return int(connection.scalar(select(setting.c.value).where(setting.c.name == ADDITIONS)) or 0)


def set_additions(connection: Connection, count: int) -> None:
    """Set what `additions` returns."""
    versions.put(connection, setting, {"name": ADDITIONS}, {"value": str(count)})


def is_lost(connection: Connection, store: Store, database: str) -> bool:
    """Return whether the store has adapters that a database added and does not know any more.

    Args:
        database: its `store_key`.
    """
    recorded = store.additions().get(database)
    if recorded is not None:
        return recorded > additions(connection)
    # A store from before additions were counted.
    rows = connection.scalar(select(func.count()).select_from(adapter).where(adapter.c.folder.is_(None)))
    return database in store.databases() and not rows and not additions(connection) and bool(store.blobs())


def find(connection: Connection, store: Store, runs: Path) -> list[Found]:
    """Return the adapters in the store and in run folders that the database has no row of, the oldest first.

    Args:
        runs: the folder of the run folders.
    """
    known = set(connection.scalars(select(adapter.c.sha256)))
    found: dict[str, Found] = {}
    for digest, one in (*_in_runs(runs), *_in_store(connection, store)):
        if digest not in known:
            found.setdefault(digest, one)
    return sorted(found.values(), key=lambda one: one.written)


def _in_runs(runs: Path) -> Iterator[tuple[str, Found]]:
    for path in sorted(runs.glob(f"*/adapter/{WEIGHTS}")):
        files = {file.name: file for file in path.parent.iterdir() if file.is_file()}
        if (one := _found(files)) is not None:
            yield sha256(path), one


def _in_store(connection: Connection, store: Store) -> Iterator[tuple[str, Found]]:
    """Yield the blobs of weights with the record that names them, or that was written next before them."""
    recorded = set(connection.scalars(select(adapter_file.c.sha256)))
    if store.shared:
        for place in store.shared.blobs():
            digest = place.rpartition("/")[2]
            if digest not in recorded and place == store.shared.path(digest):
                store.fetched(digest)
    blobs = [path for path in store.blobs() if path.name not in recorded]
    weights = {path.name: path for path in blobs if parameters_of(path) is not None}
    records = [path for path in blobs if path.name not in weights and _record(path) is not None]
    for path in sorted(records, key=_written):
        record = _record(path)
        assert record is not None
        after = sorted((other for other in weights.values() if _written(other) >= _written(path)), key=_written)
        named = weights.get(record.weights) if record.weights else next(iter(after), None)
        if named is not None and (one := _found({RECORD: path, WEIGHTS: named})) is not None:
            del weights[named.name]
            yield named.name, one


def _found(files: dict[str, Path]) -> Found | None:
    if not {RECORD, WEIGHTS} <= files.keys():
        return None
    record, parameters = _record(files[RECORD]), parameters_of(files[WEIGHTS])
    if record is None or parameters is None:
        return None
    return Found(record, files, parameters, _written(files[WEIGHTS]))


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _record(path: Path) -> AdapterRecord | None:
    from codi_hub.record import MAX_RECORD, read_record  # pydantic, which looking things up does not need

    try:
        return read_record(path) if path.stat().st_size <= MAX_RECORD else None
    except (InvalidInput, OSError):
        return None


def parameters_of(path: Path) -> int | None:
    """Return the number of values in a safetensors file by its header; None if it is another file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER or length > path.stat().st_size:
                return None
            header = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(_product(shape) for shape in shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _product(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
