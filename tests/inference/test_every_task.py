"""Every built-in task from the command line on a tiny base: distilled for two steps, run over a folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from codi_hub import tasks
from codi_hub.data.synthetic.leaves import leaves

SMALL = ["--train-steps", "2", "--count", "12", "--size", "32", "--batch", "4", "--sample-every", "2"]
SMALL += ["--precision", "fp32", "--device", "cpu", "--workers", "1"]


@pytest.fixture
def tiny(codi: Callable[..., Any], base_folder: Path) -> Iterator[Callable[..., Any]]:
    """Commands in a home whose base is the tiny one."""
    assert codi("base", "add", "tiny", base_folder).code == 0
    assert codi("base", "use", "tiny").code == 0
    yield codi
    AcceleratorState._reset_state(True)


def images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(leaves(np.random.default_rng(k), 40)).save(folder / f"{k}.png")
    return folder


def two_folders(root: Path) -> Path:
    images(root / "target", 12)
    for path in images(root / "condition", 12).iterdir():
        Image.open(path).convert("L").save(path)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(tasks.builtin()))
def test_a_task_is_distilled_and_run(tiny: Callable[..., Any], tmp_path: Path, name: str) -> None:
    data = ["--data", two_folders(tmp_path / "pairs")] if tasks.load(name).data is None else []
    answer = tiny("distill", name, *SMALL, *data, "--run-dir", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    metrics = json.loads(answer.out)["metrics"]
    assert metrics["held_out"] == 1
    assert np.isfinite(metrics["psnr"])
    sheets = [tmp_path / "run" / "samples" / "000002.png", tmp_path / "run" / "held-out.png"]
    assert all(np.ptp(np.asarray(Image.open(sheet))) > 0 for sheet in sheets)
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "## Scores on 1 held-out pairs" in card
    assert f"| adapter | {'control' if name in ('canny', 'depth', 'edit') else 'static'}, " in card
    assert ("`done` is" in card) == ("done" in metrics) == (name == "edit")
    inputs = images(tmp_path / "in", 2)
    if name == "inpaint":
        mask = Image.new("L", (40, 40))
        mask.paste(255, (10, 10, 30, 25))
        mask.save(tmp_path / "mask.png")
    flags = {"inpaint": ["--mask", tmp_path / "mask.png"], "edit": ["--prompt", "make it night"]}
    answer = tiny("run", name, inputs, "-o", tmp_path / "out", "--steps", "1", *flags.get(name, []), "--json")
    assert answer.code == 0, answer.out
    side = 160 if name == "superres" else 40
    outputs = [np.asarray(Image.open(tmp_path / "out" / f"{k}.png")) for k in (0, 1)]
    assert all(image.shape == (side, side, 3) for image in outputs)
    if name == "inpaint":
        known = np.asarray(mask) == 0
        assert all(np.array_equal(outputs[k][known], leaves(np.random.default_rng(k), 40)[known]) for k in (0, 1))


@pytest.mark.slow
def test_pairs_registered_with_a_task_are_trained_on_and_the_held_out_ones_measured(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    folder = two_folders(tmp_path / "pairs")
    assert tiny("task", "add", "mine", "--like", "pairs", "--data", folder).code == 0
    without_count = [arg for arg in SMALL if arg not in ("--count", "12")]
    answer = tiny("distill", "mine", *without_count)
    assert answer.code == 0
    assert f"11 pairs of 32 px from {folder}" in answer.err
    measured = json.loads(tiny("eval", "mine", "--steps", "1", "--dtype", "fp32", "--json").out)
    assert (measured["adapter"], measured["images"]) == ("mine:1", 1)
    other = json.loads(
        tiny("eval", "mine", "--steps", "1", "--dtype", "fp32", "--data", folder, "--count", "3", "--json").out
    )
    assert other["images"] == 3


def test_the_task_pairs_without_data_is_refused(tiny: Callable[..., Any]) -> None:
    answer = tiny("distill", "pairs", *SMALL)
    assert (answer.code, answer.out) == (2, "")
    assert "Error: task pairs has no data of its own: give training data" in answer.err
