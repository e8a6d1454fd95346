"""Inpainting: where the hole comes from, that nothing else changes, and that no seam shows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.synthetic.leaves import leaves
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import smooth
from codi_hub.images.metrics import hole_edge
from codi_hub.tasks.masks import hole


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return leaves(np.random.default_rng(5), 96)


@pytest.fixture(scope="module")
def covered() -> np.ndarray:
    return hole(np.random.default_rng(3), 96, 96, "brush", 0.3)


def saved(path: Path, picture: np.ndarray | Image.Image) -> Path:
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def found(condition: np.ndarray) -> np.ndarray:
    return condition[..., 3] > 0.5


def test_training_condition_is_the_picture_with_a_smooth_filling_and_the_hole(picture: np.ndarray) -> None:
    pair = tasks.load("inpaint").make_pair({"image": picture}, np.random.default_rng(1))
    inside = pair.condition[..., 3] == 255
    assert set(np.unique(pair.condition[..., 3])) == {0, 255}
    assert 0.04 < inside.mean() < 0.6
    other = np.where(inside[..., None], 255 - picture, picture)  # what the hole hides does not show
    again = tasks.load("inpaint").make_pair({"image": other}, np.random.default_rng(1))
    assert np.array_equal(again.condition, pair.condition)
    assert np.ptp(pair.condition[inside][:, :3]) > 0
    assert np.array_equal(pair.condition[~inside][:, :3], picture[~inside])
    assert np.array_equal(pair.target, picture)


def test_running_sees_what_training_saw(picture: np.ndarray) -> None:
    task = tasks.load("inpaint")
    pair = task.make_pair({"image": picture}, np.random.default_rng(1))
    prepared = task.prepare(np.dstack([picture, 255 - pair.condition[..., 3]]))
    assert np.array_equal((prepared.condition * 255).round().astype(np.uint8), pair.condition)
    assert prepared.opaque


def test_the_hole_is_the_option_before_the_file_beside_before_alpha(tmp_path: Path, picture: np.ndarray) -> None:
    holes = [np.zeros((96, 96), np.uint8) for _ in range(3)]
    for k, one in enumerate(holes):
        one[10 * k : 10 * k + 5] = 255
    image = Image.fromarray(np.dstack([picture, 255 - holes[0]]))
    path = saved(tmp_path / "a.png", image)
    assert np.array_equal(found(tasks.load("inpaint").prepare(image, path).condition), holes[0] > 0)
    beside = saved(tmp_path / "a.mask.png", holes[1])
    plain = tasks.load("inpaint")
    assert np.array_equal(found(plain.prepare(image, path).condition), holes[1] > 0)
    assert not plain.prepare(image, path).opaque
    assert plain.companions(path) == (beside,)
    given = saved(tmp_path / "mask.jpg", holes[2])
    optional = tasks.load("inpaint", {"mask": str(given)})
    assert np.array_equal(found(optional.prepare(image, path).condition), holes[2] > 0)
    assert optional.companions(path) == (given,)
    assert plain.is_sidecar(beside)
    assert plain.is_sidecar(Path("B.MASK.PNG"))
    assert not plain.is_sidecar(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "jpg"])
def test_masks_of_every_mode_are_cut_at_half(tmp_path: Path, picture: np.ndarray, mode: str) -> None:
    levels = np.repeat(np.array([0, 100, 127, 129, 160, 255], np.uint8), 16)[None].repeat(96, 0)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode == "jpg":
        image = Image.fromarray(np.where(levels > 127, levels, levels // 2))
    else:
        image = Image.fromarray(levels).convert("L" if mode == "LA" else mode, dither=Image.Dither.NONE)
        image = image.convert(mode)
    file = tmp_path / ("m.tif" if mode == "CMYK" else "m.jpg" if mode == "jpg" else "m.png")
    image.save(file)
    condition = tasks.load("inpaint", {"mask": file}).prepare(picture).condition
    assert np.array_equal(found(condition), levels > 127)


def test_what_is_transparent_in_a_mask_is_no_hole(tmp_path: Path, picture: np.ndarray) -> None:
    alpha = np.zeros((96, 96), np.uint8)
    alpha[:30] = 255
    file = saved(tmp_path / "m.png", np.dstack([np.full((96, 96, 3), 255, np.uint8), alpha]))
    condition = tasks.load("inpaint", {"mask": file}).prepare(picture).condition
    assert np.array_equal(found(condition), alpha > 0)


def test_growing_takes_more_into_the_hole(tmp_path: Path, picture: np.ndarray) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[40:50, 40:50] = 255
    task = tasks.load("inpaint", {"mask": saved(tmp_path / "m.png", mask), "grow": 3})
    condition = task.prepare(picture).condition
    assert found(condition)[37:53, 37:53].all()
    assert found(condition).sum() == 16 * 16
    other = picture.copy()
    other[37:53, 37:53] = 0  # all of it is hidden, and not only what was white
    assert np.array_equal(task.prepare(other).condition, condition)


def test_without_a_hole_the_error_names_the_three_ways(tmp_path: Path, picture: np.ndarray) -> None:
    task, path = tasks.load("inpaint"), tmp_path / "a.png"
    opaque = Image.fromarray(picture).convert("RGBA")
    for image in (Image.fromarray(picture), picture, opaque, np.asarray(opaque)):
        with pytest.raises(InvalidInput) as caught:
            task.prepare(image, path)
        assert str(caught.value) == (
            "no hole to fill: paint one white in a.mask.png beside it, make it transparent, or give --mask FILE"
        )


def test_wrong_masks_are_one_line(tmp_path: Path, picture: np.ndarray) -> None:
    small = saved(tmp_path / "small.png", np.full((48, 90), 255, np.uint8))
    with pytest.raises(InvalidInput, match=r"small.png measures 90x48 and the picture 96x96: make them equal"):
        tasks.load("inpaint", {"mask": small}).prepare(picture)
    black = saved(tmp_path / "black.png", np.zeros((96, 96), np.uint8))
    with pytest.raises(InvalidInput, match=r"black.png has no white"):
        tasks.load("inpaint", {"mask": black}).prepare(picture)
    broken = tmp_path / "broken.png"
    broken.write_bytes(small.read_bytes()[:50])
    with pytest.raises(InvalidInput, match=r"the mask .*broken.png: "):
        tasks.load("inpaint", {"mask": broken}).prepare(picture)
    with pytest.raises(UsageError, match=r"option 'mask': path does not point to a file, not 'no.png'"):
        tasks.load("inpaint", {"mask": "no.png"})


def test_a_stored_mask_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "m.png", np.full((4, 4), 255, np.uint8))
    monkeypatch.chdir(tmp_path)
    assert tasks.load("inpaint", {"mask": "m.png"}).options.mask == tmp_path / "m.png"


def test_outside_the_hole_every_byte_stays(picture: np.ndarray, covered: np.ndarray) -> None:
    task = tasks.load("inpaint")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)  # every value, the extremes too
    for known in (picture, noise):
        prepared = task.prepare(np.dstack([known, np.where(covered, np.uint8(0), np.uint8(255))]))
        made = task.finish(np.random.default_rng(1).uniform(-1, 2, (96, 96, 3)).astype(np.float32), prepared)
        assert np.array_equal(made[~covered], known[~covered])
        assert (made[covered] != known[covered]).any()


def test_a_shift_of_colour_and_contrast_leaves_no_seam(picture: np.ndarray, covered: np.ndarray) -> None:
    task = tasks.load("inpaint")
    truth = smooth(picture.astype(np.float32) / 255, 1.5)  # so that what a seam adds is not lost among edges
    known = (truth * 255 + 0.5).astype(np.uint8)
    prepared = task.prepare(np.dstack([known, np.where(covered, np.uint8(0), np.uint8(255))]))
    shifted = (0.8 * truth + np.array([0.15, 0.08, -0.02])).astype(np.float32)
    pasted = np.where(covered[..., None], (np.clip(shifted, 0, 1) * 255).astype(np.uint8), known)
    made = task.finish(shifted, prepared)
    natural = hole_edge(known, covered)
    assert hole_edge(pasted, covered) > 2 * natural
    assert hole_edge(made, covered) < 1.15 * natural
    errors = [np.abs(image[covered].astype(int) - known[covered]).mean() for image in (made, pasted)]
    assert errors[0] < 0.5 * errors[1]


def test_the_whole_picture_may_be_the_hole(picture: np.ndarray) -> None:
    task = tasks.load("inpaint")
    prepared = task.prepare(np.dstack([picture, np.zeros((96, 96), np.uint8)]))
    output = np.random.default_rng(1).uniform(0, 1, (96, 96, 3)).astype(np.float32)
    assert np.abs(task.finish(output, prepared) - output * 255).max() <= 0.5 + 1e-3
    assert ((prepared.condition[..., :3] * 255).round() == 128).all()  # and not black: nobody knows
    assert task.adherence(output, prepared.condition) is None


def test_adherence_tells_a_filling_that_joins_from_one_that_does_not(picture: np.ndarray, covered: np.ndarray) -> None:
    task = tasks.load("inpaint")
    condition = task.prepare(np.dstack([picture, np.where(covered, np.uint8(0), np.uint8(255))])).condition
    truth = picture.astype(np.float32) / 255
    joined, shifted = task.adherence(truth, condition), task.adherence(truth + 0.3, condition)
    assert joined > shifted + 3
    assert task.adherence(np.zeros_like(truth), np.dstack([truth * 0, covered])) == 100.0
