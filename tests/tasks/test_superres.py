"""Super-resolution: pairs, conditions, and the correction of outputs."""

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.synthetic.leaves import leaves
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import back_projected, resize, smooth
from codi_hub.tasks.degradation import degrade


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return leaves(np.random.default_rng(5), 96)


@pytest.mark.parametrize("scale", [2, 4])
def test_training_condition_equals_prepare_of_the_degraded_image(photo: np.ndarray, scale: int) -> None:
    task = tasks.load("superres", {"scale": scale})
    pair = task.make_pair({"image": photo}, np.random.default_rng(1))
    prepared = task.prepare(degrade(photo, scale, np.random.default_rng(1), "light"))
    assert prepared.size == (96, 96)
    assert np.array_equal(np.round(prepared.condition * 255).astype(np.uint8), pair.condition)
    assert np.array_equal(pair.target, photo)


def test_target_is_cropped_to_a_multiple_of_the_scale(photo: np.ndarray) -> None:
    pair = tasks.load("superres").make_pair({"image": photo[:94, :67]}, np.random.default_rng(0))
    assert pair.target.shape == pair.condition.shape == (92, 64, 3)


def test_a_real_small_image_is_used_unchanged(photo: np.ndarray) -> None:
    small = np.asarray(Image.fromarray(photo).resize((24, 24)))
    pair = tasks.load("superres").make_pair({"image": photo, "condition": small}, np.random.default_rng(0))
    assert np.array_equal(pair.condition, np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)))


def test_correction_keeps_the_low_frequencies_of_the_input_and_the_detail_of_the_output(photo: np.ndarray) -> None:
    task = tasks.load("superres", {"detail": 1, "correct_sigma": 0.75, "project": 0, "sharpen": 0})
    prepared = task.prepare(np.asarray(Image.fromarray(photo).resize((24, 24), Image.Resampling.BOX)))
    sharp = photo.astype(np.float32) / 255
    drifted = 0.7 * sharp + [0.2, 0.05, 0.1]  # wrong contrast and colour
    finished = task.finish(drifted.astype(np.float32), prepared).astype(np.float32) / 255
    plain = tasks.load("superres", {"detail": 1, "correct": False, "project": 0, "sharpen": 0}).finish(
        drifted.astype(np.float32), prepared
    ) / np.float32(255)
    low = smooth(prepared.condition, 6.0)
    assert np.abs(smooth(finished, 6.0) - low).mean() < 0.2 * np.abs(smooth(plain, 6.0) - low).mean()
    assert np.abs(finished - sharp).mean() < 0.5 * np.abs(plain - sharp).mean()
    high = [image - smooth(image, 1.0) for image in (finished, drifted.astype(np.float32))]
    assert np.corrcoef(high[0].ravel(), high[1].ravel())[0, 1] > 0.95
    assert np.abs(plain - np.clip(drifted, 0, 1)).max() < 0.51 / 255


def test_a_constant_output_gets_the_inputs_colour() -> None:
    task = tasks.load("superres", {"scale": 2})
    prepared = task.prepare(np.full((32, 32, 3), 100, np.uint8))
    photo = task.finish(np.full((64, 64, 3), 0.6, np.float32), prepared)
    assert np.abs(photo.astype(int) - 100).max() <= 1


def test_sharpening_restores_the_contrast_of_a_soft_edge() -> None:
    edge = np.zeros((64, 64, 3), np.float32) + 0.25
    edge[:, 32:] = 0.75
    soft = smooth(edge, 2.0)
    prepared = tasks.load("superres").prepare(np.zeros((16, 16, 3), np.uint8))
    plain = {"detail": 1, "correct": False, "project": 0}
    errors = [
        np.abs(tasks.load("superres", plain | {"sharpen": share}).finish(soft, prepared) / 255 - edge).mean()
        for share in (0.0, 0.3, 0.6)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_detail_is_the_share_of_the_change_that_is_applied(photo: np.ndarray) -> None:
    prepared = tasks.load("superres").prepare(photo[:16, :16])
    output = np.clip(prepared.condition + 0.2, 0, 1)
    for share in (0.0, 0.5, 1.0):
        task = tasks.load("superres", {"detail": share, "correct": False, "sharpen": 0})
        expected = prepared.condition + share * (output - prepared.condition)
        assert np.abs(task.finish(output, prepared) / 255 - expected).max() < 0.003


def test_adherence_is_the_agreement_at_the_inputs_size(photo: np.ndarray) -> None:
    task = tasks.load("superres")
    condition = task.prepare(np.asarray(Image.fromarray(photo).resize((24, 24), Image.Resampling.BOX))).condition
    assert task.adherence(condition, condition) == 100.0
    assert 20 < task.adherence(photo.astype(np.float32) / 255, condition) < 60
    assert task.adherence(condition + 0.1, condition) == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 3}, "option 'scale': input should be 2 or 4, not 3"),
        ({"preset": "hard"}, "option 'preset': input should be 'light' or 'full', not 'hard'"),
        ({"correct_sigma": 0}, "option 'correct_sigma': input should be greater than 0, not 0"),
    ],
)
def test_wrong_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        tasks.load("superres", options)
    assert str(caught.value) == f"task superres: {message}"


def test_an_output_that_is_too_large_is_refused() -> None:
    with pytest.raises(InvalidInput, match="an output of 24000x8000 pixels is over the limit"):
        tasks.load("superres").prepare(Image.new("RGB", (6000, 2000)))


def test_an_array_that_is_not_an_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="is not an image"):
        tasks.load("superres").prepare(np.zeros((8, 8), np.float32))


def test_back_projection_restores_the_input_without_its_noise(photo: np.ndarray) -> None:
    sharp = smooth(photo.astype(np.float32) / 255, 2.0)
    soft = smooth(sharp, 4.0)
    projected = back_projected(soft, sharp, 4)
    size = (photo.shape[1] // 4, photo.shape[0] // 4)
    small, before, after = (resize(image, size, Image.Resampling.BOX) for image in (sharp, soft, projected))
    assert np.abs(after - small).mean() < 0.5 * np.abs(before - small).mean()
    assert np.abs(projected - sharp).mean() < np.abs(soft - sharp).mean()
    noisy = np.random.default_rng(0).normal(0.5, 0.05, (24, 24, 3)).astype(np.float32).repeat(4, 0).repeat(4, 1)
    flat = np.full_like(noisy, 0.5)
    assert np.abs(back_projected(flat, noisy, 4) - flat).mean() < 0.3 * np.abs(noisy - flat).mean()
    assert np.array_equal(back_projected(soft, sharp, 4, share=0), soft)


def test_training_pairs_of_both_scales(photo: np.ndarray) -> None:
    example = {"image": photo}
    drawn = set()
    for seed in range(8):
        pair = tasks.load("superres", {"both": True}).make_pair(example, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        scale = 2 if rng.random() < 0.5 else 4
        assert np.array_equal(
            pair.condition, tasks.load("superres", {"scale": scale}).make_pair(example, rng).condition
        )
        drawn.add(scale)
    assert drawn == {2, 4}


def test_the_former_name_of_detail_is_read_and_the_last_value_counts(photo: np.ndarray) -> None:
    former, current = tasks.load("superres", {"strength": 0.4}), tasks.load("superres", {"detail": 0.4})
    assert former.options == current.options
    assert former.options.model_dump(exclude_unset=True) == {"detail": 0.4}
    assert tasks.load("superres", {"strength": 0.4, "detail": 0.9}).options.detail == 0.9
    assert tasks.load("superres", {"detail": 0.9, "strength": 0.4}).options.detail == 0.4
    output = np.random.default_rng(0).random((64, 64, 3), np.float32)
    one, other = (task.finish(output, task.prepare(photo[:16, :16])) for task in (former, current))
    assert np.array_equal(one, other)
    with pytest.raises(UsageError, match=r"task superres: option 'detail': .* not 2"):
        tasks.load("superres", {"strength": 2})


def test_the_record_of_a_run_keeps_the_former_name() -> None:
    recorded = tasks.load("superres", {"detail": 0.4, "data": "leaves"}).recorded_options()
    assert recorded == {
        "scale": 4, "both": False, "preset": "light", "strength": 0.4, "correct": True, "correct_sigma": 0.75,
        "project": 0.0, "sharpen": 0.5,
    }  # fmt: skip
