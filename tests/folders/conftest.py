"""A task and a generator of plain functions, and a folder of images."""

from pathlib import Path

import pytest
from folder_runs import Copying, Double
from PIL import Image


@pytest.fixture
def task() -> Double:
    return Double()


@pytest.fixture
def copying() -> Copying:
    return Copying()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """imgs/: six 8x8 images in two folders, each of another colour."""
    root = tmp_path / "imgs"
    (root / "sub").mkdir(parents=True)
    for k, name in enumerate(["a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/f.png"]):
        Image.new("RGB", (8, 8), (40 * k, 10, 255 - 40 * k)).save(root / name)
    return root
