"""What a shell completes: tasks, references and bases, from the registry. An error completes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from codi_hub.catalog import Catalog
from codi_hub.errors import CodiError


def tasks(incomplete: str) -> list[str]:
    """Return the names of tasks that begin so."""
    return _matching(incomplete, lambda catalog: (entry["name"] for entry in catalog.task_list()))


def references(incomplete: str) -> list[str]:
    """Return the tasks that begin so; after a colon their versions and tags."""
    task, colon, _ = incomplete.partition(":")
    if not colon:
        return tasks(incomplete)

    def refs(catalog: Catalog) -> Iterable[str]:
        for row in catalog.list(task):
            yield from (row.ref, *(f"{row.task}:{tag}" for tag in row.tags))

    return _matching(incomplete, refs)


def bases(incomplete: str) -> list[str]:
    """Return the names of bases that begin so."""
    return _matching(incomplete, lambda catalog: (row.name for row in catalog.bases()))


def _matching(incomplete: str, names: Callable[[Catalog], Iterable[str]]) -> list[str]:
    try:
        with Catalog.open() as catalog:
            return sorted({name for name in names(catalog) if name.startswith(incomplete)})
    except CodiError:
        return []
