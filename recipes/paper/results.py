"""What was measured so far: one JSON file that grows by a row and seed at a time. Several processes can fill it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from recipes.paper.rows import At

SECTIONS = ("about", "costs", "references", "rows")


def at_key(at: At) -> str:
    """A way of sampling as results and tables name it: "4 steps", or with another sampler "4 steps, dpmpp"."""
    steps, sampler = at
    return f"{steps} step{'s' * (steps != 1)}" + (f", {sampler}" if sampler != "ddim" else "")


@dataclass
class Results:
    """The file's content.

    Attributes:
        costs: `Row.work` -> seconds per training step, measured side by side.
        references: task -> name -> figures.
        rows: "task/key/seed" -> `made_with`, `adapter` and its `sha256`, `seconds` of training, `machine`, and
            `figures` by `at_key`.
        about: what all of it depends on: the base, the feature network and `steps`.
    """

    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    references: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The file's, or none."""
        kept = json.loads(path.read_text()) if path.exists() else {}
        return cls(path, **kept)

    def put(self, section: str, values: dict[str, Any]) -> None:
        """Adds to a section, here and in the file; what other processes put there meanwhile comes along.

        Raises:
            RuntimeError: another process has begun anew, with another base.
        """
        with self.lock():
            now = Results.read(self.path)
            if section != "about" and now.about != self.about:
                raise RuntimeError(f"{self.path} is about {now.about} now, and no longer {self.about}")
            getattr(now, section).update(values)
            now._write()
        for name in SECTIONS:
            setattr(self, name, getattr(now, name))

    def clear(self) -> None:
        """Forgets everything, here and in the file."""
        for name in SECTIONS:
            setattr(self, name, {})
        with self.lock():
            self._write()

    def lock(self, what: str = "lock") -> FileLock:
        """A lock between processes, beside the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(f".{what}"))

    def _write(self) -> None:
        """Writes the file anew and renames it over the old one."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({name: getattr(self, name) for name in SECTIONS}, indent=1, sort_keys=True) + "\n")
        os.replace(part, self.path)

    def seeds(self, task: str, key: str, at: At) -> list[dict[str, float]]:
        """Figures of a row at a way of sampling, one per seed in order."""
        found = [
            (int(name.rsplit("/", 1)[1]), row) for name, row in self.rows.items() if name.startswith(f"{task}/{key}/")
        ]
        return [
            row["figures"][at_key(at)]
            for _, row in sorted(found, key=lambda one: one[0])
            if at_key(at) in row["figures"]
        ]
