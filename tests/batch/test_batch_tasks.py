"""Runs of the built-in tasks, with networks that give back what they are given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.batch import plan, run_folder
from codi_hub.tasks.base import Task


def grey_or_rgb(conditions: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
    return [condition[..., [0, 0, 0]] if condition.shape[2] == 1 else condition for condition in conditions]


def photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], 2).astype(np.uint8))


def run(folder: Path, task: Task) -> dict[str, tuple[str, str | None]]:
    items = plan([folder], folder.with_name("out"), task, prompt="a word" if task.needs_prompt else None)
    report = run_folder(items, task, grey_or_rgb, name=task.name, adapter=f"{task.name}:1", steps=4, batch=3)
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


@pytest.mark.parametrize("name", sorted(tasks.builtin()))
def test_odd_files_leave_the_rest_unharmed(tmp_path, name):
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
    rows = run(folder, tasks.load(name, {}))
    bad = {name for name, (status, _) in rows.items() if status == "failed"}
    assert bad - {"bad.npy"} == {"cut.png"}
    assert all(error is None or "\n" not in error for _, error in rows.values())
