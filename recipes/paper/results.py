"""The results so far: one JSON file that grows by a row and seed at a time. Several processes can write to it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from recipes.paper.rows import At

SECTIONS = ("about", "costs", "references", "rows")


def at_key(at: At) -> str:
    """Return the name of a way of sampling: "4 steps", or with another sampler "4 steps, dpmpp"."""
    steps, sampler = at
    return f"{steps} step{'s' * (steps != 1)}" + (f", {sampler}" if sampler != "ddim" else "")


@dataclass
class Results:
    """The file's content.

    Attributes:
        costs: `Row.work` -> seconds per training step, timed in turn.
        references: task -> name -> figures.
        rows: "task/key/seed" -> `made_with`, `adapter` and its `sha256`, `seconds` of training, `machine`, and
            `figures` by `at_key`.
        about: what all results depend on: the base, the feature network and `steps`.
    """

    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    references: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a file; empty results if there is none."""
        kept = json.loads(path.read_text()) if path.exists() else {}
        return cls(path, **kept)

    def put(self, section: str, values: dict[str, Any]) -> None:
        """Add to a section, here and in the file, and read what other processes added.

        Raises:
            RuntimeError: another process has started over, with another base.
        """
        with self.lock():
            now = Results.read(self.path)
            if section != "about" and now.about != self.about:
                raise RuntimeError(f"{self.path} has results of {now.about}, no longer of {self.about}")
            getattr(now, section).update(values)
            now.write()
        for name in SECTIONS:
            setattr(self, name, getattr(now, name))

    def clear(self) -> None:
        """Delete all results, here and in the file."""
        for name in SECTIONS:
            setattr(self, name, {})
        with self.lock():
            self.write()

    def lock(self, what: str = "lock") -> FileLock:
        """Return a lock between processes, a file beside the results."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(f".{what}"))

    def write(self) -> None:
        """Write the file beside the old one and rename it."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({name: getattr(self, name) for name in SECTIONS}, indent=1, sort_keys=True) + "\n")
        os.replace(part, self.path)

    def seeds(self, task: str, key: str, at: At) -> list[dict[str, float]]:
        """Return the figures of a row at a way of sampling, one per seed in order."""
        found = [
            (int(name.rsplit("/", 1)[1]), row) for name, row in self.rows.items() if name.startswith(f"{task}/{key}/")
        ]
        return [
            row["figures"][at_key(at)]
            for _, row in sorted(found, key=lambda one: one[0])
            if at_key(at) in row["figures"]
        ]
