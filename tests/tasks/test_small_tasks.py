"""canny, colorize, deblur and pairs: conditions, pairs and finished images."""

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.synthetic.leaves import leaves
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import luma, smooth
from codi_hub.images.metrics import psnr
from codi_hub.tasks.deblur import disc_kernel, motion_kernel, random_blur


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return leaves(np.random.default_rng(5), 96)


# ---- canny


def test_edges_lie_where_the_image_changes() -> None:
    image = np.full((40, 60, 3), 30, np.uint8)
    image[:, 30:] = 200
    condition = tasks.load("canny").prepare(image).condition
    assert condition.shape == (40, 60, 1)
    assert set(np.unique(condition)) == {0, 1}
    rows, columns = np.nonzero(condition[..., 0])
    assert set(columns) <= {29, 30}
    assert set(range(2, 38)) <= set(rows)


@pytest.mark.slow
def test_lower_thresholds_find_more(photo: np.ndarray) -> None:
    counts = [
        tasks.load("canny", options).prepare(photo).condition.sum()
        for options in ({"low": 0.02, "high": 0.05}, {}, {"low": 0.3, "high": 0.5})
    ]
    assert counts[0] > counts[1] > counts[2]


def test_training_varies_the_thresholds(photo: np.ndarray) -> None:
    task = tasks.load("canny")
    shares = [task.make_pair({"image": photo}, np.random.default_rng(k)).condition.mean() for k in range(8)]
    assert max(shares) > 1.2 * min(shares)


def test_edge_maps_are_used_unchanged() -> None:
    drawn = np.zeros((20, 30, 3), np.uint8)
    drawn[5] = 255
    drawn[6] = 77
    task = tasks.load("canny", {"edges": True})
    assert np.allclose(task.prepare(Image.fromarray(drawn)).condition[..., 0], drawn[..., 0] / 255, atol=1e-6)
    pair = tasks.load("canny").make_pair({"image": drawn, "condition": drawn}, np.random.default_rng(0))
    assert np.array_equal(pair.condition[..., 0], drawn[..., 0])


def test_thresholds_in_the_wrong_order_are_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        tasks.load("canny", {"low": 0.5})
    assert str(caught.value) == "task canny: option 'low' (0.5) must not be above 'high' (0.2)"


def test_a_map_without_edges_has_no_adherence(photo: np.ndarray) -> None:
    assert tasks.load("canny").adherence(photo / np.float32(255), np.zeros((96, 96, 1), np.float32)) is None


# ---- colorize


def test_luma_stays_the_inputs_for_any_output(photo: np.ndarray) -> None:
    task = tasks.load("colorize")
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    prepared = task.prepare(np.dstack([grey] * 3))
    assert np.array_equal(prepared.condition[..., 0], grey / np.float32(255))
    wild = np.random.default_rng(0).uniform(-0.5, 1.5, (96, 96, 3)).astype(np.float32)
    finished = task.finish(wild, prepared)
    assert np.abs(luma(finished) - grey).max() <= 0.5 + 1e-3
    assert np.ptp(finished, axis=-1).mean() > 20


def test_colours_within_the_gamut_are_kept(photo: np.ndarray) -> None:
    task = tasks.load("colorize")
    prepared = task.prepare(photo)
    assert psnr(task.finish(photo.astype(np.float32) / 255, prepared), photo) > 45
    darker = photo.astype(np.float32) / 255 - 0.1
    assert psnr(task.finish(darker, prepared), photo) > 45


# ---- deblur


def spread(kernel: np.ndarray) -> float:
    """Return the root of the mean variance of both axes, px."""
    y, x = np.mgrid[: len(kernel), : len(kernel)]
    centre = [(kernel * axis).sum() for axis in (y, x)]
    return float(np.sqrt(sum((kernel * (axis - c) ** 2).sum() for axis, c in zip((y, x), centre, strict=True)) / 2))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_kernels_sum_to_one_and_have_the_requested_deviation(sigma: float) -> None:
    rng = np.random.default_rng(0)
    kernels = [random_blur(rng, sigma) for _ in range(60)]
    assert all(k.shape[0] == k.shape[1] and k.shape[0] % 2 == 1 and (k >= 0).all() for k in kernels)
    assert np.allclose([k.sum() for k in kernels], 1)
    assert max(spread(k) for k in kernels) < 1.5 * sigma + 0.4
    assert np.mean([spread(k) for k in kernels]) > 0.5 * sigma


def test_discs_and_paths_have_their_stated_size() -> None:
    assert spread(disc_kernel(8.0)) == pytest.approx(4.0, rel=0.1)
    path = motion_kernel(np.random.default_rng(1), 20.0)
    assert 15 < np.count_nonzero(path) < 90  # thin
    assert path.shape[0] < 30


def test_training_images_are_blurred_as_strongly_as_set(photo: np.ndarray) -> None:
    means = []
    for blur in (0.6, 2.0, 8.0):
        task = tasks.load("deblur", {"blur": blur, "noise": 0})
        pairs = [task.make_pair({"image": photo}, np.random.default_rng(k)) for k in range(12)]
        means.append(np.mean([psnr(pair.condition, pair.target) for pair in pairs]))
    assert means == sorted(means, reverse=True)
    own = tasks.load("deblur").make_pair({"image": photo, "condition": photo[::-1]}, np.random.default_rng(0))
    assert np.array_equal(own.condition, photo[::-1])


def test_correction_restores_the_inputs_colours(photo: np.ndarray) -> None:
    task, sharp = tasks.load("deblur"), photo.astype(np.float32) / 255
    prepared = task.prepare((smooth(sharp, 2.0) * 255 + 0.5).astype(np.uint8))
    drifted = (0.8 * sharp + np.array([0.15, 0.0, 0.05])).astype(np.float32)
    plain = tasks.load("deblur", {"correct": False})
    assert psnr(task.finish(drifted, prepared), photo) > psnr(plain.finish(drifted, prepared), photo) + 5
    assert task.adherence(sharp, prepared.condition) > task.adherence(drifted, prepared.condition)


# ---- pairs


def test_pairs_are_used_unchanged(photo: np.ndarray) -> None:
    task = tasks.load("pairs")
    example = {"image": photo, "condition": photo[::-1], "caption": "upside down"}
    pair = task.make_pair(example, np.random.default_rng(0))
    assert np.array_equal(pair.target, photo)
    assert np.array_equal(pair.condition, photo[::-1])
    assert pair.prompt == "upside down"
    with pytest.raises(InvalidInput, match="task pairs needs data with 'condition'; this has image"):
        task.make_pair({"image": photo}, np.random.default_rng(0))


def test_pairs_without_data_name_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"pairs has no data of its own: .* variant of pairs with the option data"):
        _ = tasks.load("pairs").training_data
    assert tasks.load("pairs", {"data": "owner/name"}).training_data == "owner/name"
    assert tasks.load("deblur", {"data": "scenes"}).training_data == "scenes"
    assert tasks.load("deblur").training_data == "leaves"
