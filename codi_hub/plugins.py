"""Named parts that packages can add: tasks, adapter kinds, base families, losses, samplers, metrics.

Each group is a `Plugins`: names are known without importing anything; an implementation is imported when first loaded.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from codi_hub.errors import CodiError, Conflict, UsageError, describe, one_line

_log = logging.getLogger("codi_hub.plugins")


class Plugins:
    """The implementations of one group, by name.

    Args:
        what: the group in messages, such as "adapter kind".
        group: entry-point group through which other packages add theirs.
        own: `module:attribute` of this package's, by name; another package cannot replace one of these.
    """

    def __init__(self, what: str, group: str, own: Mapping[str, str]) -> None:
        self.what, self.group, self.own = what, group, dict(own)
        self._added: dict[str, Any] = {}
        self._warned: set[str] = set()

    def names(self) -> list[str]:
        """Return every name: this package's in their order, then others' sorted."""
        return list(self._places())

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._places()

    def load(self, name: str) -> Any:
        """Return the implementation of a name.

        Raises:
            UsageError: an unknown name, with those there are.
            CodiError: another package's implementation cannot be imported.
        """
        if name in self._added:
            return self._added[name]
        places: Mapping[str, Any] = self.own if name in self.own else self._places()
        if name not in places:
            raise UsageError(f"no {self.what} {str(name)[:40]!r}: one of {', '.join(places)}")
        module, _, attribute = str(places[name]).partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            if name in self.own:
                raise
            raise CodiError(
                f"{self.what} {name}: {places[name]} cannot be imported ({describe(error)}); repair or uninstall its "
                "package"
            ) from error

    def loadable(self) -> Iterator[tuple[str, Any]]:
        """Yield every name with its implementation; one that cannot be imported is left out with one warning."""
        for name in self.names():
            try:
                implementation = self.load(name)
            except CodiError as error:
                if name not in self._warned:
                    _log.warning("Warning: %s", error)
                self._warned.add(name)
            else:
                yield name, implementation

    def check(self, name: str, field: str) -> None:
        """Raise UsageError for an unknown name, as the value of a field that is called so in messages."""
        if name not in self:
            raise UsageError(f"{field} {one_line(name, 40)}: one of {', '.join(self.names())}")

    def register(self, name: str, implementation: Any) -> None:
        """Add an implementation in this process, as a notebook or a test does.

        Raises:
            Conflict: the name is taken by another.
        """
        if name in self and self._added.get(name) is not implementation:
            raise Conflict(f"{self.what} {name!r} is registered already: choose another name")
        self._added[name] = implementation

    def _places(self) -> dict[str, Any]:
        others = {**_declared(self.group, _search_path()), **self._added}
        return self.own | {name: place for name, place in others.items() if name not in self.own}


def _search_path() -> tuple[tuple[str, int], ...]:
    """Return the folders of packages, each with the time at which a package was last added or removed."""
    return tuple((folder, os.stat(folder).st_mtime_ns) for folder in sys.path if os.path.isdir(folder))


@lru_cache(maxsize=64)
def _declared(group: str, path: tuple[tuple[str, int], ...]) -> Mapping[str, str]:
    """Return the entry points of a group: reading those of all packages takes some milliseconds, at every look-up."""
    return {point.name: point.value for point in sorted(entry_points(group=group))}
