"""Large images in tiles: no pixel is missing, counted twice or shifted, and there are no seams."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_runs import Copying as CopyingGenerator
from folder_runs import Double, run_items
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from codi_hub import RunOptions, tasks
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.folders.plan import plan
from codi_hub.inference.tiling import UNIT, Tiling, Window, generate_tiled, spans, weights
from codi_hub.tasks import Prepared

Generate = Any


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Copying:
    """Returns the first three channels of its conditions, and keeps their windows."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.batches: list[int] = []

    def __call__(self, conditions: list[np.ndarray], windows: list[Window]) -> list[np.ndarray]:
        assert len({condition.shape for condition in conditions}) == 1
        self.windows += windows
        self.batches.append(len(windows))
        return [condition[..., :3] for condition in conditions]


# ---- positions of tiles


@given(st.integers(1, 5000), st.sampled_from([128, 192, 256, 1024]))
def test_tiles_cover_the_side_with_the_overlap_and_none_is_larger(length: int, side: int) -> None:
    overlap = Tiling(side, 0).overlap
    parts = spans(length, side, overlap)
    assert parts[0].start == 0
    assert parts[-1].stop == length
    assert all(part.start % UNIT == 0 and part.stop - part.start <= side for part in parts)
    assert all(before.stop - after.start >= overlap for before, after in pairwise(parts))
    fewest = 1 if length <= side else 1 + -(-(length - side) // (side - overlap))
    assert fewest <= len(parts) <= fewest + 1  # one more where a tile has to begin at a multiple of UNIT


@given(st.integers(1, 3000), st.sampled_from([128, 256, 512]))
def test_weights_of_all_tiles_add_up_to_one_and_change_slowly(length: int, side: int) -> None:
    overlap = Tiling(side, 0).overlap
    parts = spans(length, side, overlap)
    total = np.zeros(length)
    for part, weight in zip(parts, weights(parts, length, overlap), strict=True):
        total[part] += weight
        assert weight.min() > 0
        assert np.abs(np.diff(weight)).max(initial=0) <= 2.1 / overlap
    assert np.allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("value", ["", "0", "-256", "127", "1e3", "AUTO", "٢٥٦", "256.0"])
def test_an_impossible_tile_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"tile .*: auto, off, or a side of at least 128 pixels"):
        Tiling.parse(value)


def test_which_images_are_tiled() -> None:
    assert Tiling.parse("off") is None
    auto, small = Tiling.parse("auto"), Tiling.parse("200")
    assert auto is not None
    assert small is not None
    assert small.side == 256  # the next multiple of 64
    assert not auto.applies((1024, 2048))
    assert auto.applies((1025, 2048))
    assert not small.applies((256, 256))
    assert small.applies((257, 256))
    assert small.applies((100_000, 1))


# ---- outputs


@pytest.mark.parametrize(("height", "width"), [(128, 128), (129, 400), (700, 333), (64, 1000), (1000, 3)])
def test_tiles_that_agree_give_the_image_itself(height: int, width: int) -> None:
    original, copying = noise_image(height, width), Copying()
    task = tasks.load("pairs")
    made = generate_tiled(Prepared(original, (width, height)), task, copying, Tiling(128, 0))
    assert np.array_equal(made, original)
    assert all((one.height, one.width) == (height, width) for one in copying.windows)
    assert len(copying.windows) == len(set(copying.windows))


def test_tiles_that_differ_are_blended_without_a_step() -> None:
    def each_its_own(conditions: list[np.ndarray], windows: list[Window]) -> list[np.ndarray]:
        return [
            np.full(c.shape, (w.top + w.left) % 256 / 255, np.float32) for c, w in zip(conditions, windows, strict=True)
        ]

    flat = np.zeros((640, 640, 3), np.uint8)
    made = generate_tiled(Prepared(flat, (640, 640)), tasks.load("pairs"), each_its_own, Tiling(256, 0)).astype(int)
    most = 255 / Tiling(256, 0).overlap  # from black to white over the overlap
    assert max(np.abs(np.diff(made, axis=axis)).max() for axis in (0, 1)) <= np.ceil(2 * most)
    assert np.ptp(made) > 100  # they did differ


def test_tiles_without_a_hole_are_not_computed_and_stay() -> None:
    original = noise_image(512, 512)
    hole = np.zeros((512, 512), np.uint8)
    hole[400:420, 380:440] = 255
    task = tasks.load("inpaint")
    prepared = task.prepare(np.dstack([original, 255 - hole]))
    copying = Copying()
    output = generate_tiled(prepared, task, copying, Tiling(128, 0))
    assert output.dtype == np.float32
    assert 0 < len(copying.windows) < 10 < len(spans(512, 128, 64)) ** 2
    finished = task.finish(output, prepared)
    assert np.array_equal(finished[hole == 0], original[hole == 0])
    assert not np.array_equal(finished[hole > 0], original[hole > 0])


def test_a_tile_that_is_not_finite_fails_the_image() -> None:
    def broken(conditions: list[np.ndarray], windows: list[Window]) -> list[np.ndarray]:
        return [np.full_like(c, np.nan if w.left else 0.5) for c, w in zip(conditions, windows, strict=True)]

    with pytest.raises(InvalidInput, match="not numbers: try dtype fp32"):
        generate_tiled(Prepared(noise_image(128, 300), (300, 128)), tasks.load("pairs"), broken, Tiling(128, 0))


# ---- in a run


def test_large_images_are_tiled_and_small_ones_share_batches(tmp_path: Path) -> None:
    task, copying = Double(), CopyingGenerator()
    (tmp_path / "in").mkdir()
    for k, side in enumerate((96, 16, 96, 16)):
        Image.fromarray(noise_image(side, side, k)).save(tmp_path / "in" / f"{k}.png")
    items = plan([tmp_path / "in"], task, RunOptions(out=tmp_path / "out"))
    report = run_items(items, task, copying, batch=2, tile="128")
    assert (report.ok, report.failed) == (4, 0)
    assert copying.sizes == [2, 2, 2, 2, 2]  # two rows of two tiles each, twice, and the small ones
    for item in items:
        made = np.asarray(Image.open(item.output))
        assert np.array_equal(made, np.asarray(Image.open(item.input)).repeat(2, 0).repeat(2, 1))


def test_a_tile_that_fails_fails_its_image_alone(tmp_path: Path) -> None:
    task, copying = Double(), CopyingGenerator()
    (tmp_path / "in").mkdir()
    for name, side in (("a", 100), ("b", 16)):
        Image.fromarray(noise_image(side, side)).save(tmp_path / "in" / f"{name}.png")

    def fails(conditions: list[np.ndarray]) -> None:
        if conditions[0].shape[0] > 64:
            raise MemoryError

    copying.fails = fails
    items = plan([tmp_path / "in"], task, RunOptions(out=tmp_path / "out"))
    report = run_items(items, task, copying, tile="128")
    assert [(row["status"], row["error"]) for row in report.items] == [("failed", "not enough memory"), ("ok", None)]
