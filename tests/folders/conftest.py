"""A task and a generator of plain functions: doubling the size, so that results can be compared with Pillow's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@dataclass
class Doubled:
    condition: np.ndarray
    size: tuple[int, int]
    keep: dict[str, Any]
    opaque: bool = False

    def window(self, rows: slice, columns: slice) -> "Doubled":
        condition = self.condition[rows, columns]
        return Doubled(condition, (condition.shape[1], condition.shape[0]), {})


class Double:
    """x2 by nearest neighbour; NAME.mask.png is a sidecar; .npy holds an array."""

    name = "double"
    reads_alpha = lossless = False
    uses_prompt = True
    needs_prompt = False
    finishes_tiles = True
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

    def finish(self, output: np.ndarray, prepared: Doubled) -> np.ndarray:
        return (output.clip(0, 1) * 255).round().astype(np.uint8)


class Copying:
    """A generator that gives back its conditions, keeps what it was called with, and fails where told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[tuple[int, ...]], list[str], list[int]]] = []
        self.fails: Any = lambda conditions: None

    def __call__(
        self, conditions: list[np.ndarray], prompts: list[str], seeds: list[int], windows: Any = None
    ) -> list[np.ndarray]:
        self.calls.append(([condition.shape for condition in conditions], prompts, seeds))
        self.fails(conditions)
        return [condition.copy() for condition in conditions]

    @property
    def sizes(self) -> list[int]:
        return [len(shapes) for shapes, _, _ in self.calls]


@pytest.fixture
def task() -> Double:
    return Double()


@pytest.fixture
def copying() -> Copying:
    return Copying()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """imgs/: six 8x8 pictures in two folders, each of another colour."""
    root = tmp_path / "imgs"
    (root / "sub").mkdir(parents=True)
    for k, name in enumerate(["a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/f.png"]):
        Image.new("RGB", (8, 8), (40 * k, 10, 255 - 40 * k)).save(root / name)
    return root
