import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codi_hub.data.photographs import Photograph
from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation.depth import evaluate_depth, held_out_scenes
from codi_hub.evaluation.superres import GRID, Degradation, degraded, evaluate_superres
from codi_hub.images.metrics import psnr


@dataclass
class Prepared:
    condition: np.ndarray


class PlainSuperres:
    """Bicubic upsampling in, 8 bits out."""

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        return -float(np.abs(output - condition).mean())

    options = SimpleNamespace(scale=4)

    def prepare(self, image: Image.Image) -> Prepared:
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        return Prepared(np.asarray(large, np.float32) / 255)

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        return (np.clip(output, 0, 1) * 255 + 0.5).astype(np.uint8)


class PlainDepth:
    def prepare(self, image: np.ndarray) -> Prepared:
        return Prepared(image[..., None])

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        return (np.clip(output, 0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def photos() -> list[Photograph]:
    return [Photograph(f"p{k}", scene(np.random.default_rng([6, k]), 64).image) for k in range(2)]


def blended(photos: list[Photograph]) -> Any:
    """An adapter that comes nearer to the true picture with every step."""
    originals = [photo.image.astype(np.float32) / 255 for photo in photos]

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        assert len(conditions) == len(prompts) == len(seeds) == len(set(seeds))
        nearest = [min(originals, key=lambda o, c=c: float(np.abs(o - c).mean())) for c in conditions]
        weight = np.float32(1 - 1 / (1 + steps))
        return [c + weight * (o - c) for c, o in zip(conditions, nearest, strict=True)]

    return generate


def test_superres_rows_follow_the_quality_of_what_is_generated(photos: list[Photograph]) -> None:
    told = []
    report = evaluate_superres(
        PlainSuperres(),
        photos,
        blended(photos),
        steps=(1, 4),
        autoencode=lambda images: [image + 0.02 for image in images],
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert [row["name"] for row in report.table.rows] == ["bicubic", "autoencoder", "1 step", "4 steps"]
    bicubic, autoencoder, one, four = report.table.rows
    assert bicubic["psnr"] < one["psnr"] < four["psnr"]
    assert bicubic["gmsd"] > one["gmsd"] > four["gmsd"]
    assert bicubic["ssim"] < four["ssim"] < 1
    # halving an error is 6.02 dB
    assert one["psnr_delta"] == pytest.approx(20 * np.log10(2), abs=0.1)
    assert autoencoder["psnr"] == pytest.approx(-20 * np.log10(0.02), abs=0.3)
    assert bicubic["seconds"] is None
    assert bicubic["adherence"] == pytest.approx(0, abs=1e-6)
    assert bicubic["adherence"] > one["adherence"] > four["adherence"]
    assert four["seconds"] >= 0
    assert told == [(1, 2), (2, 2)]


def test_superres_keeps_every_figure_and_pictures_to_look_at(photos: list[Photograph]) -> None:
    report = evaluate_superres(PlainSuperres(), photos, blended(photos), steps=(2,))
    assert len(report.figures) == len(photos) * len(GRID) * 2
    assert report.figures[0].image == "p0 0.8/3/85"
    mean = np.mean([figure.values["psnr"] for figure in report.figures if figure.method == "2 steps"])
    assert report.table.row("2 steps")["psnr"] == pytest.approx(mean)
    assert list(report.pictures["p1"]) == ["input", "bicubic", "2 steps", "original"]
    assert report.pictures["p1"]["input"].shape == (16, 16, 3)
    assert [len(report.outputs[method]) for method in ("bicubic", "2 steps")] == [6, 6]
    assert report.outputs["2 steps"][4] is report.pictures["p1"]["2 steps"]
    assert report.references[2] is photos[0].image
    assert report.references[3] is photos[1].image
    document = json.loads(json.dumps(report.as_dict()))
    assert document["scale"] == 4
    assert document["figures"][0]["method"] == "bicubic"
    assert "pictures" not in document


def test_degradations_are_the_same_again_and_get_worse(photos: list[Photograph]) -> None:
    first, again, other = (degraded(photos[0], 4, GRID[1], seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    report = evaluate_superres(PlainSuperres(), photos, blended(photos), steps=())
    by_degradation = [
        np.mean([figure.values["psnr"] for figure in report.figures if figure.image.endswith(end)])
        for end in ("0.8/3/85", "1.3/6/72", "1.8/9/60")
    ]
    assert by_degradation == sorted(by_degradation, reverse=True)
    assert degraded(photos[0], 2, Degradation(1.0, 0.0, 95), 0).shape == (32, 32, 3)


def test_an_adapter_that_obeys_its_map_is_told_from_one_that_does_not() -> None:
    scenes = held_out_scenes(6, 64)

    def obedient(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        return [np.repeat(condition, 3, -1) for condition in conditions]

    def deaf(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        return [scene(np.random.default_rng([3, seed]), 64).image.astype(np.float32) / 255 for seed in seeds]

    follows = evaluate_depth(scenes, obedient, PlainDepth(), steps=(1, 4), batch=4)
    ignores = evaluate_depth(scenes, deaf, PlainDepth(), steps=(1,))
    assert [row["name"] for row in follows.table.rows] == ["scenes", "1 step", "4 steps"]
    assert follows.table.row("4 steps")["margin"] > 0.4
    assert follows.table.row("scenes")["margin"] > 0.3
    assert abs(ignores.table.row("1 step")["margin"]) < 0.2
    row, outputs = follows.table.row("1 step"), follows.outputs["1 step"]
    assert all(map(np.array_equal, follows.outputs["scenes"], [example["image"] for example in scenes]))
    assert row["margin"] == pytest.approx(row["adherence"] - row["shuffled"])
    assert list(follows.pictures["scene 0"]) == ["map", "scenes", "1 step", "4 steps"]
    columns = ["psnr", "ssim", "gmsd", "adherence", "shuffled", "margin", "seconds"]
    assert json.loads(json.dumps(follows.as_dict()))["columns"] == columns
    assert follows.table.row("scenes")["psnr"] is None  # a scene is infinitely like itself
    assert row["psnr"] == pytest.approx(np.mean([psnr(o, e["image"]) for o, e in zip(outputs, scenes, strict=True)]))


def test_depth_scenes_are_the_same_again_and_one_cannot_be_shuffled() -> None:
    one, again = held_out_scenes(1, 32), held_out_scenes(1, 32)
    assert np.array_equal(one[0]["image"], again[0]["image"])
    assert one[0]["caption"] == again[0]["caption"]
    with pytest.raises(ValueError, match="two scenes"):
        evaluate_depth(one, lambda *_: [], PlainDepth())
