"""Depth measured: an adapter that follows its map is distinguished from one that does not."""

import json

import numpy as np
import pytest

from codi_hub import tasks
from codi_hub.data.synthetic.scenes import scene
from codi_hub.errors import UsageError
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.images.metrics import psnr
from codi_hub.tasks.depth import compare_with_scenes, held_out_scenes

TASK = tasks.load("depth")


def test_an_adapter_that_follows_its_map_has_a_margin() -> None:
    scenes = held_out_scenes(6, 64)
    progress = []

    def following(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        return [np.repeat(condition, 3, -1) for condition in conditions]

    def ignoring(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        return [scene(np.random.default_rng([3, seed]), 64).image.astype(np.float32) / 255 for seed in seeds]

    context = EvaluationContext(following, steps=(1, 4), on_progress=lambda *counts: progress.append(counts))
    follows = compare_with_scenes(TASK, scenes, context)
    ignores = compare_with_scenes(TASK, scenes, EvaluationContext(ignoring, steps=(1,)))
    assert [row["name"] for row in follows.table.rows] == ["scenes", "1 step", "4 steps"]
    assert follows.table.row("4 steps")["margin"] > 0.4
    assert follows.table.row("scenes")["margin"] > 0.3
    assert abs(ignores.table.row("1 step")["margin"]) < 0.2
    row, outputs = follows.table.row("1 step"), follows.outputs["1 step"]
    assert all(map(np.array_equal, follows.outputs["scenes"], [example["image"] for example in scenes]))
    assert row["margin"] == pytest.approx(row["adherence"] - row["shuffled"])
    assert list(follows.sheet["scene 0"]) == ["map", "scenes", "1 step", "4 steps"]
    columns = ["psnr", "ssim", "gmsd", "adherence", "shuffled", "margin", "seconds"]
    assert json.loads(json.dumps(follows.details))["columns"] == columns
    assert follows.table.row("scenes")["psnr"] is None  # a scene equals itself: infinite
    assert row["psnr"] == pytest.approx(np.mean([psnr(o, e["image"]) for o, e in zip(outputs, scenes, strict=True)]))
    assert progress == [(1, 2), (2, 2)]


def test_scenes_are_reproducible_and_a_single_one_cannot_be_shuffled() -> None:
    one, again = held_out_scenes(1, 32), held_out_scenes(1, 32)
    assert np.array_equal(one[0]["image"], again[0]["image"])
    assert one[0]["caption"] == again[0]["caption"]
    with pytest.raises(UsageError, match=r"count 1: .* at least 2 scenes"):
        compare_with_scenes(TASK, one, EvaluationContext(lambda *_: []))
