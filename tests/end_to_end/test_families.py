"""Tasks through the command line on a tiny transformer of each family: distil two steps, run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import MODELS
from PIL import Image

SMALL = ["--train-steps", "2", "--count", "6", "--size", "32", "--batch", "2", "--workers", "1", "--precision", "fp32"]
SMALL += ["--device", "cpu", "--sample-every", "0", "--base", "tiny"]
TASKS = ("inpaint", "depth", "edit", "superres", "pairs")
TRANSFORMERS = [family for family in MODELS if family != "sdxl"]


def image(path: Path, seed: int, *, height: int = 32, hole: bool = False) -> Path:
    """Write a noisy image half as wide again as high, with a transparent hole on request."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, height * 3 // 2, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[8:24, 8:32, 3] = 0 if hole else 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if hole else pixels[..., :3]).save(path)
    return path


def source(task: str, folder: Path) -> list[str | Path]:
    """Return the flags that name a task's data, where it has none of its own."""
    if task != "pairs":
        return []
    for k in range(6):
        image(folder / "target" / f"{k}.png", k)
        image(folder / "condition" / f"{k}.png", k + 10)
    return ["--data", folder]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["concat", "control"])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_task_is_distilled_and_run(codi: Callable[..., Any], tmp_path: Path, family: str, kind: str) -> None:
    assert codi("base", "add", "tiny", MODELS[family](tmp_path / "base")).code == 0
    for task in TASKS:
        answer = codi("distill", task, "--kind", kind, *SMALL, *source(task, tmp_path / "data"))
        assert answer.code == 0, (task, answer.err)
        given = image(tmp_path / f"{task}.png", 3, height=8 if task == "superres" else 32, hole=task == "inpaint")
        prompt = ["--prompt", "make it night"] if task in ("edit", "depth") else []
        out = tmp_path / "out" / f"{task}.png"
        answer = codi("run", task, given, "-o", out, "--base", "tiny", "--device", "cpu", "--steps", "2", *prompt)
        assert answer.code == 0, (task, answer.err)
        assert Image.open(out).size == (48, 32)
