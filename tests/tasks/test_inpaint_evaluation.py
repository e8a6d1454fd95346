"""Inpainting measured: better fills score better, and holes come from the seed."""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codi_hub import tasks
from codi_hub.data.photographs import Photograph
from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation import metrics
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.images.metrics import hole_edge
from codi_hub.tasks.inpaint import KINDS, compare_with_fills, seeded_hole


@pytest.fixture(scope="module")
def photos() -> list[Photograph]:
    return [Photograph(f"p{k}", scene(np.random.default_rng([6, k]), 64).image) for k in range(2)]


def blended(photos: list[Photograph]) -> Any:
    """Return an adapter whose outputs come nearer to the original with every step."""

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        assert len(conditions) == len(prompts) == len(seeds) == len(set(seeds)) == len(KINDS)
        outputs = []
        for condition in conditions:
            outside = condition[..., 3] < 0.5
            truths = [photo.image.astype(np.float32) / 255 for photo in photos]
            truth = min(truths, key=lambda t, c=condition, k=outside: float(np.abs(t - c[..., :3])[k].mean()))
            outputs.append(truth + (np.random.default_rng(0).normal(0, 0.2 / steps, truth.shape)).astype(np.float32))
        return outputs

    return generate


def test_rows_follow_the_quality_of_the_outputs(photos: list[Photograph]) -> None:
    progress: list[tuple[int, int]] = []
    context = EvaluationContext(
        blended(photos),
        steps=(1, 8),
        autoencode=lambda images: [image + 0.02 for image in images],
        on_progress=lambda done, total: progress.append((done, total)),
    )
    report = compare_with_fills(tasks.load("inpaint"), photos, context)
    names = ["smooth fill", "Telea", "Navier-Stokes", "autoencoder", "1 step", "8 steps"]
    assert [row["name"] for row in report.table.rows] == names
    fill, telea, stokes, autoencoder, one, eight = report.table.rows
    assert abs(telea["hole_psnr"] - fill["hole_psnr"]) < 4
    assert 0 < abs(telea["hole_psnr"] - stokes["hole_psnr"]) < 4
    assert one["hole_psnr"] < eight["hole_psnr"]
    assert eight["hole_psnr"] > fill["hole_psnr"] + 3
    assert one["gmsd"] > eight["gmsd"]
    assert autoencoder["hole_psnr"] > 50  # `finish` removes a shift of colour
    assert one["seam"] > eight["seam"] > autoencoder["seam"]
    assert autoencoder["seam"] == pytest.approx(1, abs=0.05)
    assert all(row["psnr"] > row["hole_psnr"] + 3 for row in (fill, one, eight))  # the hole is a third and less
    assert eight["hole_psnr_delta"] == pytest.approx(eight["hole_psnr"] - fill["hole_psnr"])
    assert progress == [(1, 2), (2, 2)]
    described = replace(report.table, described=metrics.columns() | tasks.columns())
    assert "GMSD  hole dB  ± hole" in described.as_text()


def test_every_figure_and_image_is_kept(photos: list[Photograph]) -> None:
    report = compare_with_fills(tasks.load("inpaint"), photos, EvaluationContext(blended(photos), steps=(2,)))
    fills = [figure["image"] for figure in report.details["figures"] if figure["method"] == "smooth fill"]
    assert fills == ["p0 boxes", "p0 brush", "p1 boxes", "p1 brush"]
    assert list(report.sheet) == ["p0 boxes", "p0 brush", "p1 boxes", "p1 brush"]
    assert list(report.sheet["p1 brush"]) == [
        "input", "smooth fill", "Telea", "Navier-Stokes", "2 steps", "original",
    ]  # fmt: skip
    covered = seeded_hole(photos[1], "brush", 0)
    shown = report.sheet["p1 brush"]
    assert (shown["input"][covered] == 128).all()
    assert all(np.array_equal(image[~covered], photos[1].image[~covered]) for image in shown.values())
    columns = ["psnr", "ssim", "gmsd", "hole_psnr", "hole_psnr_delta", "seam", "seconds"]
    assert json.loads(json.dumps(report.details))["columns"] == columns


def test_holes_cover_a_quarter_and_are_reproducible(photos: list[Photograph]) -> None:
    for kind in KINDS:
        holes = [seeded_hole(photo, kind, seed) for photo in photos for seed in (0, 1)]
        assert all(0.24 <= one.mean() < 0.36 for one in holes)
        assert len({one.tobytes() for one in holes}) == 4
        assert np.array_equal(holes[0], seeded_hole(photos[0], kind, 0))


def test_the_step_across_a_boundary() -> None:
    image = np.zeros((4, 6, 3))
    image[:, 3:] = 0.5
    covered = np.zeros((4, 6), bool)
    covered[:, 3:] = True
    assert hole_edge(image, covered) == pytest.approx(0.5)
    assert hole_edge(image, ~covered) == pytest.approx(0.5)
    assert hole_edge(image, np.roll(covered, 1, 1)[:, ::-1]) == pytest.approx(0.0)
    assert hole_edge(image, np.ones((4, 6), bool)) is None


def test_without_opencv_its_rows_are_absent(photos: list[Photograph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    context = EvaluationContext(blended(photos), steps=(2,))
    report = compare_with_fills(tasks.load("inpaint"), photos[:1], context)
    assert [row["name"] for row in report.table.rows] == ["smooth fill", "2 steps"]
