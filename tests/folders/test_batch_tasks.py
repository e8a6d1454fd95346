"""Runs of the built-in tasks, with networks that return their conditions."""

from pathlib import Path

import numpy as np
import pytest
from folder_runs import MemoryLog, run_items
from PIL import Image

from codi_hub import RunOptions, tasks
from codi_hub.folders.plan import plan
from codi_hub.tasks.base import Task


def grey_or_rgb(conditions: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
    return [condition[..., [0, 0, 0]] if condition.shape[2] == 1 else condition[..., :3] for condition in conditions]


def photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], 2).astype(np.uint8))


def run(folder: Path, task: Task) -> dict[str, tuple[str, str | None]]:
    prompt = "a word" if task.needs_prompt else None
    items = plan([folder], task, RunOptions(out=folder.with_name("out"), prompt=prompt))
    report = run_items(items, task, grey_or_rgb, batch=3)
    return {Path(row["input"]).name: (row["status"], row["error"]) for row in report.items}


def test_superres_is_four_times_as_large(tmp_path):
    (tmp_path / "in").mkdir()
    photograph(20, 12).save(tmp_path / "in" / "a.png")
    photograph(13, 9).convert("RGBA").save(tmp_path / "in" / "b.png")
    assert run(tmp_path / "in", tasks.load("superres", {})) == {"a.png": ("ok", None), "b.png": ("ok", None)}
    with Image.open(tmp_path / "out" / "a.png") as image:
        bicubic = photograph(20, 12).resize((80, 48), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, int) - np.asarray(bicubic, int)).max() <= 1
    with Image.open(tmp_path / "out" / "b.png") as image:
        assert (image.mode, image.size) == ("RGBA", (52, 36))


def test_depth_reads_16_bits_and_arrays_alike(tmp_path):
    (tmp_path / "in").mkdir()
    ramp = np.tile(np.arange(64, dtype=np.uint16), (16, 1))
    Image.fromarray(ramp * 10).save(tmp_path / "in" / "sixteen.png")
    np.save(tmp_path / "in" / "array.npy", ramp.astype(np.float32) / 7)
    np.save(tmp_path / "in" / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "in" / "nothing.npy", np.full((4, 4), np.nan))
    rows = run(tmp_path / "in", tasks.load("depth", {}))
    assert {name: status for name, (status, _) in rows.items()} == {
        "array.npy": "ok", "sixteen.png": "ok", "objects.npy": "failed", "nothing.npy": "failed"
    }  # fmt: skip
    assert rows["nothing.npy"][1] == "the depth map has no finite value"
    one, other = (np.asarray(Image.open(tmp_path / "out" / f"{name}.png"), int) for name in ("array", "sixteen"))
    assert np.abs(one - other).max() <= 1
    assert one[0, -1, 0] == 255


def test_inpainting_a_folder_keeps_what_is_known_bit_for_bit(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    hole = Image.new("L", (40, 24))
    hole.paste(255, (5, 5, 20, 15))
    original = photograph(40, 24)
    original.save(folder / "a.jpg", quality=80)
    hole.save(folder / "a.mask.png")
    transparent = original.convert("RGBA")
    transparent.putalpha(hole.point(lambda level: 255 - level))
    transparent.save(folder / "b.png")
    half = original.convert("RGBA")
    half.putalpha(100)
    half.save(folder / "c.webp", lossless=True)
    hole.save(folder / "c.mask.png")
    original.save(folder / "none.png")
    rows = run(folder, tasks.load("inpaint"))
    assert {name: status for name, (status, _) in rows.items()} == {
        "a.jpg": "ok", "b.png": "ok", "c.webp": "ok", "none.png": "failed"
    }  # fmt: skip
    assert rows["none.png"][1].startswith("no hole to fill: paint it white in none.mask.png beside it")
    known = np.asarray(hole) == 0
    for name, mode in (("a.jpg", "RGB"), ("b.png", "RGB"), ("c.webp", "RGBA")):
        with Image.open(folder / name) as before, Image.open((tmp_path / "out" / name).with_suffix(".png")) as after:
            assert after.mode == mode
            pair = [np.asarray(image.convert("RGB")) for image in (before, after)]
        assert np.array_equal(pair[0][known], pair[1][known])
        assert (pair[0][~known] != pair[1][~known]).any()
    with Image.open(tmp_path / "out" / "c.png") as after:
        assert set(np.asarray(after)[..., 3].ravel()) == {100}


def test_another_mask_is_another_input(tmp_path):
    folder, log, task = tmp_path / "in", MemoryLog(), tasks.load("inpaint")
    folder.mkdir()
    photograph(16, 16).save(folder / "a.png")

    def statuses(task: Task) -> list[str]:
        items = plan([folder], task, RunOptions(out=tmp_path / "out"))
        report = run_items(items, task, grey_or_rgb, steps=1, log=log)
        return [row["status"] for row in report.items]

    Image.new("L", (16, 16), 255).save(folder / "a.mask.png")
    assert (statuses(task), statuses(task)) == (["ok"], ["skipped"])
    Image.linear_gradient("L").resize((16, 16)).save(folder / "a.mask.png")
    assert (statuses(task), statuses(task)) == (["ok"], ["skipped"])
    same = tasks.load("inpaint", {"mask": folder / "a.mask.png"})
    assert statuses(same) == ["skipped"]  # the same files
    (folder / "a.mask.png").rename(tmp_path / "m.png")
    Image.new("L", (16, 16), 200).save(tmp_path / "m.png")
    assert statuses(tasks.load("inpaint", {"mask": tmp_path / "m.png"})) == ["ok"]


def test_outputs_of_lossless_tasks_are_png_unless_requested(tmp_path):
    for name in ("a.jpg", "b.png"):
        photograph(8, 8).save(tmp_path / name)
    task = tasks.load("inpaint")
    assert [item.output.name for item in plan([tmp_path], task, RunOptions())] == ["a.png", "b.png"]
    assert [item.output.name for item in plan([tmp_path], task, RunOptions(ext="jpg"))] == ["a.jpg", "b.jpg"]
    assert [item.output.name for item in plan([tmp_path], tasks.load("deblur"), RunOptions())] == ["a.jpg", "b.png"]


@pytest.mark.parametrize("name", sorted(tasks.builtin()))
def test_odd_files_do_not_affect_the_others(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    photograph(16, 16).save(folder / "good.png")
    photograph(1, 1).save(folder / "dot.png")
    photograph(1, 300).save(folder / "thread.png")
    photograph(16, 16).convert("CMYK").save(folder / "cmyk.jpg")
    photograph(16, 16).quantize(8).save(folder / "palette.gif")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "sixteen.tif")
    photograph(16, 16).save(folder / "tga.tga")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff{")
    if name == "inpaint":
        sizes = {"dot": (1, 1), "thread": (1, 300), "sixteen": (8, 8)}
        for path in [*folder.glob("*.*")]:
            Image.new("L", sizes.get(path.stem, (16, 16)), 255).save(path.with_suffix(".mask.png"))
    rows = run(folder, tasks.load(name, {}))
    bad = {name for name, (status, _) in rows.items() if status == "failed"}
    assert bad - {"bad.npy"} == {"cut.png"}
    assert all(error is None or "\n" not in error for _, error in rows.values())
