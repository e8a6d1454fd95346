"""Super-resolution measured: better outputs score better, degradations come from the seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.photographs import Photograph
from codi_hub.data.synthetic.scenes import scene
from codi_hub.errors import InvalidInput
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.tasks.superres import GRID, Degradation, compare_with_bicubic, degraded

UNCHANGED = {"detail": 1, "correct": False, "sharpen": 0}  # outputs as the network gives them
TASK = tasks.load("superres", UNCHANGED)


@pytest.fixture(scope="module")
def photos() -> list[Photograph]:
    return [Photograph(f"p{k}", scene(np.random.default_rng([6, k]), 64).image) for k in range(2)]


def blended(photos: list[Photograph]) -> Any:
    """Return an adapter whose outputs come nearer to the original with every step."""
    originals = [photo.image.astype(np.float32) / 255 for photo in photos]

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        assert len(conditions) == len(prompts) == len(seeds) == len(set(seeds))
        nearest = [min(originals, key=lambda o, c=c: float(np.abs(o - c).mean())) for c in conditions]
        weight = np.float32(1 - 1 / (1 + steps))
        return [c + weight * (o - c) for c, o in zip(conditions, nearest, strict=True)]

    return generate


def test_rows_follow_the_quality_of_the_outputs(photos: list[Photograph]) -> None:
    progress = []
    context = EvaluationContext(
        blended(photos),
        steps=(1, 4),
        autoencode=lambda images: [image + 0.02 for image in images],
        on_progress=lambda done, total: progress.append((done, total)),
    )
    table = compare_with_bicubic(TASK, photos, context).table
    assert [row["name"] for row in table.rows] == ["bicubic", "autoencoder", "1 step", "4 steps"]
    assert table.columns == ["psnr", "psnr_delta", "ssim", "gmsd", "gmsd_delta", "adherence", "seconds"]
    bicubic, autoencoder, one, four = table.rows
    assert bicubic["psnr"] < one["psnr"] < four["psnr"]
    assert bicubic["gmsd"] > one["gmsd"] > four["gmsd"]
    assert bicubic["ssim"] < four["ssim"] < 1
    # halving an error is 6.02 dB
    assert one["psnr_delta"] == pytest.approx(20 * np.log10(2), abs=0.1)
    assert autoencoder["psnr"] == pytest.approx(-20 * np.log10(0.02), abs=0.3)
    assert bicubic["seconds"] is None
    assert bicubic["adherence"] == 100
    assert bicubic["adherence"] > one["adherence"] > four["adherence"]
    assert four["seconds"] >= 0
    assert progress == [(1, 2), (2, 2)]


def test_every_figure_and_image_is_kept(photos: list[Photograph]) -> None:
    measured = compare_with_bicubic(TASK, photos, EvaluationContext(blended(photos), steps=(2,)))
    figures = measured.details["figures"]
    assert len(figures) == len(photos) * len(GRID) * 2
    assert figures[0]["image"] == "p0 0.8/3/85"
    mean = np.mean([figure["psnr"] for figure in figures if figure["method"] == "2 steps"])
    assert measured.table.row("2 steps")["psnr"] == pytest.approx(mean)
    assert list(measured.sheet["p1"]) == ["input", "bicubic", "2 steps", "original"]
    assert measured.sheet["p1"]["input"].shape == (16, 16, 3)
    assert [len(measured.outputs[method]) for method in ("bicubic", "2 steps")] == [6, 6]
    assert measured.outputs["2 steps"][4] is measured.sheet["p1"]["2 steps"]
    assert measured.references[2] is photos[0].image
    assert measured.references[3] is photos[1].image
    assert measured.images == 2
    document = json.loads(json.dumps(measured.details))
    assert document["scale"] == 4
    assert document["figures"][0]["method"] == "bicubic"


def test_pairs_of_a_data_set_are_measured_as_they_are(photos: list[Photograph], tmp_path: Path) -> None:
    for photo in photos:
        for folder, image in (("test_HR", photo.image), ("test_LR", degraded(photo, 4, GRID[2], 0))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{photo.name}.png")
    context = EvaluationContext(blended(photos), steps=(1,), data=str(tmp_path))
    figures = TASK.evaluate(context).details["figures"]
    assert [(figure["image"], figure["method"]) for figure in figures] == [
        (name, method) for name in ("p0", "p1") for method in ("bicubic", "1 step")
    ]
    own = compare_with_bicubic(TASK, photos, EvaluationContext(blended(photos), steps=(1,)), GRID[2:])
    assert [f["psnr"] for f in figures] == pytest.approx([f["psnr"] for f in own.details["figures"]])
    Image.fromarray(photos[0].image[:32]).save(tmp_path / "test_HR" / "p0.png")
    with pytest.raises(InvalidInput, match="p0: 16x16 px is not 1/4 of 64x32 px"):
        TASK.evaluate(context)
    (tmp_path / "test_LR" / "p0.png").unlink()
    with pytest.raises(InvalidInput, match="p0 is in one of test_LR and test_HR only"):
        TASK.evaluate(context)


def test_degradations_are_reproducible_and_get_worse(photos: list[Photograph]) -> None:
    first, again, other = (degraded(photos[0], 4, GRID[1], seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    figures = compare_with_bicubic(TASK, photos, EvaluationContext(blended(photos), steps=())).details["figures"]
    by_degradation = [
        np.mean([figure["psnr"] for figure in figures if figure["image"].endswith(end)])
        for end in ("0.8/3/85", "1.3/6/72", "1.8/9/60")
    ]
    assert by_degradation == sorted(by_degradation, reverse=True)
    assert degraded(photos[0], 2, Degradation(1.0, 0.0, 95), 0).shape == (32, 32, 3)
