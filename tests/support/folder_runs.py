"""Folder runs with plain functions in place of networks and of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codi_hub.config.options import RunOptions
from codi_hub.events import OnEvent, ignore
from codi_hub.folders.plan import Item
from codi_hub.folders.runner import FolderRun, RunSettings
from codi_hub.registry.rows import OutputRow
from codi_hub.registry.store import Stamp, sha256
from codi_hub.reports import RunReport

Function = Callable[[list[np.ndarray], list[str], list[int]], list[np.ndarray]]


@dataclass
class Doubled:
    condition: np.ndarray
    size: tuple[int, int]
    keep: dict[str, Any]
    opaque: bool = False

    @property
    def conditions(self) -> np.ndarray:
        return self.condition

    def window(self, rows: slice, columns: slice) -> Doubled:
        condition = self.condition[rows, columns]
        return Doubled(condition, (condition.shape[1], condition.shape[0]), {})


class Double:
    """x2 by nearest neighbour; NAME.mask.png is a sidecar; .npy holds an array."""

    name = "double"
    reads_alpha = lossless = keeps_grey = False
    uses_prompt = True
    needs_prompt = False
    finishes_tiles = finishes_values = True
    input_extensions = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".npy"})

    def is_sidecar(self, path: Path) -> bool:
        return path.name.endswith(".mask.png")

    def companions(self, path: Path) -> list[Path]:
        return []

    def untouched(self, prepared: Doubled) -> bool:
        return False

    def load(self, path: Path) -> Image.Image | np.ndarray:
        return np.load(path, allow_pickle=False) if path.suffix == ".npy" else Image.open(path)

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Doubled:
        pixels = np.asarray(image, dtype=np.float32) / 255
        condition = pixels.repeat(2, axis=0).repeat(2, axis=1)
        return Doubled(condition, (condition.shape[1], condition.shape[0]), {})

    def finish_values(self, output: np.ndarray, prepared: Doubled) -> np.ndarray:
        return output

    def finish(self, output: np.ndarray, prepared: Doubled) -> np.ndarray:
        return (output.clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Generated:
    images: list[np.ndarray]
    batches: list[int]


class FunctionGenerator:
    """A generator that calls a function (conditions, prompts, seeds) -> images.

    Args:
        function: stands for the networks.
        auto: size of an automatic batch.
    """

    def __init__(self, function: Function, auto: int = 4) -> None:
        self.function, self.auto = function, auto

    def auto_batch(self, height: int, width: int) -> int:
        return self.auto

    def generate(
        self,
        conditions: Sequence[np.ndarray],
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        batch: int | None = None,
        windows: Any = None,
    ) -> Generated:
        images = self.function(list(conditions), list(prompts), list(seeds))
        return Generated(images, [len(conditions)])


class Copying(FunctionGenerator):
    """Returns its conditions, keeps its arguments, and fails if `fails` raises."""

    def __init__(self) -> None:
        super().__init__(self.copy)
        self.calls: list[tuple[list[tuple[int, ...]], list[str], list[int]]] = []
        self.fails: Any = lambda conditions: None

    def copy(self, conditions: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        self.calls.append(([condition.shape for condition in conditions], prompts, seeds))
        self.fails(conditions)
        return [condition.copy() for condition in conditions]

    @property
    def sizes(self) -> list[int]:
        return [len(shapes) for shapes, _, _ in self.calls]


class MemoryLog:
    """A run log in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.statuses: list[str] = []

    def start(self) -> None:
        self.statuses.append("running")

    def last(self, item: Item) -> OutputRow | None:
        rows = [row for row in self.rows if (row["output"], row["status"]) == (str(item.output), "ok")]
        if not rows:
            return None
        row = rows[-1]
        return OutputRow(
            True, row["input_hash"], row.get("prompt"), row["seed"], row["hash"], row["bytes"], row["mtime_ns"]
        )

    def wrote(self, digest: str) -> bool:
        return any(row.get("hash") == digest for row in self.rows)

    def claim(self, row: Mapping[str, Any], input_hash: str, file: Path) -> None:
        stamp = Stamp.of(file)
        written = {"hash": sha256(file), "bytes": stamp.bytes, "mtime_ns": stamp.mtime_ns}
        self.rows.append({**row, "input_hash": input_hash, **written})

    def record_failure(self, row: Mapping[str, Any], input_hash: str | None) -> None:
        self.rows.append({**row, "input_hash": input_hash})

    def warning(self) -> str | None:
        return None

    def finish(self, status: str) -> None:
        self.statuses[-1] = status


class NoRunLog:
    """A run log that records nothing: every existing output is another's."""

    def start(self) -> None: ...

    def last(self, item: Item) -> OutputRow | None:
        return None

    def wrote(self, digest: str) -> bool:
        return False

    def claim(self, row: Mapping[str, Any], input_hash: str, file: Path) -> None: ...

    def record_failure(self, row: Mapping[str, Any], input_hash: str | None) -> None: ...

    def warning(self) -> str | None:
        return None

    def finish(self, status: str) -> None: ...


def run_items(
    items: list[Item],
    task: Any,
    generator: Any,
    *,
    log: Any = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> RunReport:
    """Run items.

    Args:
        generator: one, or a function (conditions, prompts, seeds) -> images.
        settings: fields of `RunSettings` and `RunOptions`.
    """
    if not hasattr(generator, "generate"):
        generator = FunctionGenerator(generator)
    names = {"steps": 4} | {name: settings.pop(name) for name in ("steps", "memory") if name in settings}
    run_settings = RunSettings(task=task.name, adapter=f"{task.name}:1", options=RunOptions(**settings), **names)
    return FolderRun(items, task, lambda: generator, run_settings, log=log or NoRunLog(), on_event=on_event).run()
