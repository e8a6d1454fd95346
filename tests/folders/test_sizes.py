"""Outputs of another size than their map."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_runs import run_items
from PIL import Image

from codi_hub import RunOptions, tasks
from codi_hub.errors import UsageError
from codi_hub.folders.plan import plan
from codi_hub.hub import Hub
from codi_hub.images.io import LoadedImage
from codi_hub.images.values import fit_map
from codi_hub.operations.context import check_size

RAMP = np.tile(np.linspace(0, 1, 90, dtype=np.float32), (30, 1))


@pytest.mark.parametrize("size", ["24", "24x", "0x64", "64x20000", "axb", 7, [1, 2, 3], "8x8x8"], ids=str)
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(UsageError, match=r"^size .*: width and height from 8 to 10000 pixels, as 1024x768"):
        RunOptions(size=size)
    assert RunOptions(size="24X16").size == RunOptions(size=(24, 16)).size == (24, 16)


def test_tasks_that_draw_from_a_map_leave_the_size_free() -> None:
    free = {name for name in tasks.builtin() if tasks.load(name).size_is_free}
    assert free == {"depth", "canny", "pairs"}
    assert not tasks.load("pairs", {"crop": True}).size_is_free
    with pytest.raises(UsageError, match=r"^size 64x32: the size of superres's outputs is its input's: leave it out$"):
        check_size((64, 32), tasks.load("superres"))


def test_a_map_is_cut_around_its_middle_and_not_stretched() -> None:
    fitted = fit_map(RAMP, (15, 15))
    assert fitted.shape == (15, 15)
    assert np.allclose(fitted[0], fitted[-1])
    assert np.allclose(fitted[7, [0, 14]], [31 / 90, 59 / 90], atol=0.01)


def test_what_is_not_finite_spreads_into_no_other_pixel() -> None:
    holes = RAMP.copy()
    holes[:10, :10], holes[20, 40] = np.inf, np.nan
    fitted = fit_map(holes, (45, 15))
    assert np.isnan(fitted[:4, :4]).all()
    assert np.isnan(fitted).sum() <= 25
    whole = fit_map(RAMP, (45, 15))
    assert np.nanmax(np.abs(fitted - whole)) < 0.02


def test_transparency_is_cut_with_the_image() -> None:
    image = Image.new("RGB", (40, 20))
    alpha = Image.new("L", (40, 20), 255)
    alpha.paste(0, (0, 0, 20, 20))
    fitted = LoadedImage(image, alpha).fitted((10, 10))
    assert fitted.alpha is not None
    assert fitted.alpha.size == fitted.image.size == (10, 10)
    assert np.asarray(fitted.alpha)[5, [0, 9]].tolist() == [0, 255]


def test_every_input_of_a_run_is_resized(images: Path, task: Any, copying: Any, tmp_path: Path) -> None:
    Image.new("RGB", (30, 9)).save(images / "wide.png")
    items = plan([images], task, RunOptions(out=tmp_path / "out"))
    assert run_items(items, task, copying, size=(12, 8)).ok == 7
    assert {Image.open(item.output).size for item in items} == {(24, 16)}  # the task doubles them


@pytest.mark.slow
def test_jobs_and_the_library_take_a_size_and_a_resumed_run_notices_another(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", RAMP)
    file = tmp_path / "jobs.jsonl"
    job = {"task": "depth", "input": str(tmp_path / "map.npy"), "output": str(tmp_path / "out"), "size": "64x32"}
    file.write_text(json.dumps(job))
    options = RunOptions(steps=1, device="cpu")
    with Hub.open() as hub:
        (row,) = hub.run_jobs(file, options).items
        assert Image.open(row["output"]).size == (64, 32)
        file.write_text(json.dumps(job | {"size": "64x48"}))
        planned = hub.run_jobs(file, options.replace(dry_run=True))
        assert planned.items[0]["replaces"] == "made with another adapter or other options"
        image = hub.generate("depth", RAMP, size=(64, 32), steps=1, seeds=row["seed"], device="cpu")
    assert np.array_equal(image, np.asarray(Image.open(row["output"])))
