"""Inpainting measured: better fillings score better, and holes come from the seed."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from codi_hub import tasks
from codi_hub.data.photographs import Photograph
from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation.inpaint import KINDS, evaluate_inpaint, seeded_hole
from codi_hub.images.metrics import hole_edge


@pytest.fixture(scope="module")
def photos() -> list[Photograph]:
    return [Photograph(f"p{k}", scene(np.random.default_rng([6, k]), 64).image) for k in range(2)]


def blended(photos: list[Photograph]) -> Any:
    """An adapter that comes nearer to the true picture with every step, from grey."""

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        assert len(conditions) == len(prompts) == len(seeds) == len(set(seeds)) == len(KINDS)
        made = []
        for condition in conditions:
            known = condition[..., 3] < 0.5
            truths = [photo.image.astype(np.float32) / 255 for photo in photos]
            truth = min(truths, key=lambda t, c=condition, k=known: float(np.abs(t - c[..., :3])[k].mean()))
            made.append(truth + (np.random.default_rng(0).normal(0, 0.2 / steps, truth.shape)).astype(np.float32))
        return made

    return generate


def test_rows_follow_the_quality_of_what_is_generated(photos: list[Photograph]) -> None:
    told: list[tuple[int, int]] = []
    report = evaluate_inpaint(
        tasks.load("inpaint"),
        photos,
        blended(photos),
        steps=(1, 8),
        autoencode=lambda images: [image + 0.02 for image in images],
        on_progress=lambda done, total: told.append((done, total)),
    )
    names = ["smooth fill", "Telea", "Navier-Stokes", "autoencoder", "1 step", "8 steps"]
    assert [row["name"] for row in report.table.rows] == names
    fill, telea, stokes, autoencoder, one, eight = report.table.rows
    assert abs(telea["hole_psnr"] - fill["hole_psnr"]) < 4
    assert 0 < abs(telea["hole_psnr"] - stokes["hole_psnr"]) < 4
    assert one["hole_psnr"] < eight["hole_psnr"]
    assert eight["hole_psnr"] > fill["hole_psnr"] + 3
    assert one["gmsd"] > eight["gmsd"]
    assert autoencoder["hole_psnr"] > 50  # a shift of colour is taken away by `finish`
    assert one["seam"] > eight["seam"] > autoencoder["seam"]
    assert autoencoder["seam"] == pytest.approx(1, abs=0.05)
    assert all(row["psnr"] > row["hole_psnr"] + 3 for row in (fill, one, eight))  # the hole is a third and less
    assert eight["hole_psnr_delta"] == pytest.approx(eight["hole_psnr"] - fill["hole_psnr"])
    assert told == [(1, 2), (2, 2)]
    assert "hole dB  ± hole  PSNR dB" in report.table.as_text()


def test_every_figure_and_picture_is_kept(photos: list[Photograph]) -> None:
    report = evaluate_inpaint(tasks.load("inpaint"), photos, blended(photos), steps=(2,))
    assert [figure.image for figure in report.figures[:2]] == ["p0 boxes", "p0 brush"]
    assert list(report.pictures) == ["p0 boxes", "p0 brush", "p1 boxes", "p1 brush"]
    assert list(report.pictures["p1 brush"]) == [
        "input", "smooth fill", "Telea", "Navier-Stokes", "2 steps", "original",
    ]  # fmt: skip
    covered = seeded_hole(photos[1], "brush", 0)
    shown = report.pictures["p1 brush"]
    assert (shown["input"][covered] == 128).all()
    assert all(np.array_equal(picture[~covered], photos[1].image[~covered]) for picture in shown.values())
    assert json.loads(json.dumps(report.as_dict()))["columns"][0] == "hole_psnr"


def test_holes_are_a_quarter_and_the_same_again(photos: list[Photograph]) -> None:
    for kind in KINDS:
        made = [seeded_hole(photo, kind, seed) for photo in photos for seed in (0, 1)]
        assert all(0.24 <= one.mean() < 0.36 for one in made)
        assert len({one.tobytes() for one in made}) == 4
        assert np.array_equal(made[0], seeded_hole(photos[0], kind, 0))


def test_the_step_across_an_edge() -> None:
    image = np.zeros((4, 6, 3))
    image[:, 3:] = 0.5
    covered = np.zeros((4, 6), bool)
    covered[:, 3:] = True
    assert hole_edge(image, covered) == pytest.approx(0.5)
    assert hole_edge(image, ~covered) == pytest.approx(0.5)
    assert hole_edge(image, np.roll(covered, 1, 1)[:, ::-1]) == pytest.approx(0.0)
    assert hole_edge(image, np.ones((4, 6), bool)) is None


def test_without_opencv_its_rows_are_not_there(photos: list[Photograph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    report = evaluate_inpaint(tasks.load("inpaint"), photos[:1], blended(photos), steps=(2,))
    assert [row["name"] for row in report.table.rows] == ["smooth fill", "2 steps"]
