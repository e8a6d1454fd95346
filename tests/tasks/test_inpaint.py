"""Inpainting: sources of the hole, pixels outside it, and seams."""

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
def photo() -> np.ndarray:
    return leaves(np.random.default_rng(5), 96)


@pytest.fixture(scope="module")
def covered() -> np.ndarray:
    return hole(np.random.default_rng(3), 96, 96, "brush", 0.3)


def save(path: Path, photo: np.ndarray | Image.Image) -> Path:
    (photo if isinstance(photo, Image.Image) else Image.fromarray(photo)).save(path)
    return path


def hole_of(condition: np.ndarray) -> np.ndarray:
    return condition[..., 3] > 0.5


def test_training_condition_is_the_image_with_a_smooth_fill_and_the_hole(photo: np.ndarray) -> None:
    pair = tasks.load("inpaint").make_pair({"image": photo}, np.random.default_rng(1))
    inside = pair.condition[..., 3] == 255
    assert set(np.unique(pair.condition[..., 3])) == {0, 255}
    assert 0.04 < inside.mean() < 0.6
    other = np.where(inside[..., None], 255 - photo, photo)  # pixels inside the hole have no influence
    again = tasks.load("inpaint").make_pair({"image": other}, np.random.default_rng(1))
    assert np.array_equal(again.condition, pair.condition)
    assert np.ptp(pair.condition[inside][:, :3]) > 0
    assert np.array_equal(pair.condition[~inside][:, :3], photo[~inside])
    assert np.array_equal(pair.target, photo)


def test_prepare_gives_the_condition_of_training(photo: np.ndarray) -> None:
    task = tasks.load("inpaint")
    pair = task.make_pair({"image": photo}, np.random.default_rng(1))
    prepared = task.prepare(np.dstack([photo, 255 - pair.condition[..., 3]]))
    assert np.array_equal((prepared.condition * 255).round().astype(np.uint8), pair.condition)
    assert prepared.opaque


def test_the_option_precedes_the_mask_file_and_that_precedes_alpha(tmp_path: Path, photo: np.ndarray) -> None:
    holes = [np.zeros((96, 96), np.uint8) for _ in range(3)]
    for k, one in enumerate(holes):
        one[10 * k : 10 * k + 5] = 255
    image = Image.fromarray(np.dstack([photo, 255 - holes[0]]))
    path = save(tmp_path / "a.png", image)
    assert np.array_equal(hole_of(tasks.load("inpaint").prepare(image, path).condition), holes[0] > 0)
    beside = save(tmp_path / "a.mask.png", holes[1])
    plain = tasks.load("inpaint")
    assert np.array_equal(hole_of(plain.prepare(image, path).condition), holes[1] > 0)
    assert not plain.prepare(image, path).opaque
    assert plain.companions(path) == (beside,)
    mask = save(tmp_path / "mask.jpg", holes[2])
    optional = tasks.load("inpaint", {"mask": str(mask)})
    assert np.array_equal(hole_of(optional.prepare(image, path).condition), holes[2] > 0)
    assert optional.companions(path) == (mask,)
    assert plain.is_sidecar(beside)
    assert plain.is_sidecar(Path("B.MASK.PNG"))
    assert not plain.is_sidecar(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "jpg"])
def test_masks_of_every_mode_have_the_same_threshold(tmp_path: Path, photo: np.ndarray, mode: str) -> None:
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
    condition = tasks.load("inpaint", {"mask": file}).prepare(photo).condition
    assert np.array_equal(hole_of(condition), levels > 127)


def test_transparent_parts_of_a_mask_are_no_hole(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = np.zeros((96, 96), np.uint8)
    alpha[:30] = 255
    file = save(tmp_path / "m.png", np.dstack([np.full((96, 96, 3), 255, np.uint8), alpha]))
    condition = tasks.load("inpaint", {"mask": file}).prepare(photo).condition
    assert np.array_equal(hole_of(condition), alpha > 0)


def test_grow_dilates_the_hole(tmp_path: Path, photo: np.ndarray) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[40:50, 40:50] = 255
    task = tasks.load("inpaint", {"mask": save(tmp_path / "m.png", mask), "grow": 3})
    condition = task.prepare(photo).condition
    assert hole_of(condition)[37:53, 37:53].all()
    assert hole_of(condition).sum() == 16 * 16
    other = photo.copy()
    other[37:53, 37:53] = 0  # all of it is hidden, not only the white pixels
    assert np.array_equal(task.prepare(other).condition, condition)


def test_without_a_hole_the_error_names_the_three_ways(tmp_path: Path, photo: np.ndarray) -> None:
    task, path = tasks.load("inpaint"), tmp_path / "a.png"
    opaque = Image.fromarray(photo).convert("RGBA")
    for image in (Image.fromarray(photo), photo, opaque, np.asarray(opaque)):
        with pytest.raises(InvalidInput) as caught:
            task.prepare(image, path)
        assert str(caught.value) == (
            "no hole to fill: paint it white in a.mask.png beside it, make it transparent, or set the option mask"
        )


def test_wrong_masks_are_one_line(tmp_path: Path, photo: np.ndarray) -> None:
    small = save(tmp_path / "small.png", np.full((48, 90), 255, np.uint8))
    with pytest.raises(InvalidInput, match=r"small.png measures 90x48 and the image 96x96: make them equal"):
        tasks.load("inpaint", {"mask": small}).prepare(photo)
    black = save(tmp_path / "black.png", np.zeros((96, 96), np.uint8))
    with pytest.raises(InvalidInput, match=r"black.png has no white"):
        tasks.load("inpaint", {"mask": black}).prepare(photo)
    broken = tmp_path / "broken.png"
    broken.write_bytes(small.read_bytes()[:50])
    with pytest.raises(InvalidInput, match=r"the mask .*broken.png: "):
        tasks.load("inpaint", {"mask": broken}).prepare(photo)
    with pytest.raises(UsageError, match=r"option 'mask': no such file or folder, not 'no.png'"):
        tasks.load("inpaint", {"mask": "no.png"})


def test_the_path_of_a_stored_mask_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "m.png", np.full((4, 4), 255, np.uint8))
    monkeypatch.chdir(tmp_path)
    assert tasks.load("inpaint", {"mask": "m.png"}).options.mask == tmp_path / "m.png"


def test_pixels_outside_the_hole_are_unchanged(photo: np.ndarray, covered: np.ndarray) -> None:
    task = tasks.load("inpaint")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)  # every value including the extremes
    for image in (photo, noise):
        prepared = task.prepare(np.dstack([image, np.where(covered, np.uint8(0), np.uint8(255))]))
        finished = task.finish(np.random.default_rng(1).uniform(-1, 2, (96, 96, 3)).astype(np.float32), prepared)
        assert np.array_equal(finished[~covered], image[~covered])
        assert (finished[covered] != image[covered]).any()


def test_a_shift_of_colour_and_contrast_leaves_no_seam(photo: np.ndarray, covered: np.ndarray) -> None:
    task = tasks.load("inpaint")
    truth = smooth(photo.astype(np.float32) / 255, 1.5)  # without edges that would hide a seam
    original = (truth * 255 + 0.5).astype(np.uint8)
    prepared = task.prepare(np.dstack([original, np.where(covered, np.uint8(0), np.uint8(255))]))
    shifted = (0.8 * truth + np.array([0.15, 0.08, -0.02])).astype(np.float32)
    pasted = np.where(covered[..., None], (np.clip(shifted, 0, 1) * 255).astype(np.uint8), original)
    finished = task.finish(shifted, prepared)
    natural = hole_edge(original, covered)
    assert hole_edge(pasted, covered) > 2 * natural
    assert hole_edge(finished, covered) < 1.15 * natural
    errors = [np.abs(image[covered].astype(int) - original[covered]).mean() for image in (finished, pasted)]
    assert errors[0] < 0.5 * errors[1]


def test_the_hole_may_be_the_whole_image(photo: np.ndarray) -> None:
    task = tasks.load("inpaint")
    prepared = task.prepare(np.dstack([photo, np.zeros((96, 96), np.uint8)]))
    output = np.random.default_rng(1).uniform(0, 1, (96, 96, 3)).astype(np.float32)
    assert np.abs(task.finish(output, prepared) - output * 255).max() <= 0.5 + 1e-3
    assert ((prepared.condition[..., :3] * 255).round() == 128).all()  # grey, not black: the content is unknown
    assert task.adherence(output, prepared.condition) is None


def test_adherence_distinguishes_fills_with_and_without_a_seam(photo: np.ndarray, covered: np.ndarray) -> None:
    task = tasks.load("inpaint")
    condition = task.prepare(np.dstack([photo, np.where(covered, np.uint8(0), np.uint8(255))])).condition
    truth = photo.astype(np.float32) / 255
    joined, shifted = task.adherence(truth, condition), task.adherence(truth + 0.3, condition)
    assert joined > shifted + 3
    assert task.adherence(np.zeros_like(truth), np.dstack([truth * 0, covered])) == 100.0
