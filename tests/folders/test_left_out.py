"""Prompts and masks by every spelling of their names, and what a run leaves out, by name and reason."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub import RunOptions, tasks
from codi_hub.errors import InvalidInput
from codi_hub.folders.plan import plan


def left_out(folder: Path, task, **options) -> dict[str, str]:
    found: dict[str, str] = {}
    out = folder.with_name("out")
    plan([folder], task, RunOptions(out=out, **options), on_left_out=lambda path, why: found.update({path.name: why}))
    return found


def test_prompts_from_the_metadata_of_every_folder_in_any_spelling(images, task, tmp_path):
    (images / "c.png").rename(images / unicodedata.normalize("NFD", "ç.PNG"))
    rows = [{"file_name": "sub\\e.png", "prompt": "root"}, {"file_name": "ç.png", "prompt": "composed"}]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (images / "sub" / "metadata.jsonl").write_text('{"file_name": "f.png", "text": "near"}')
    prompts = {item.name: item.prompt for item in plan([images], task, RunOptions(out=tmp_path / "out"))}
    assert (prompts["sub/e.png"], prompts["sub/f.png"]) == ("root", "near")
    assert prompts[unicodedata.normalize("NFD", "ç.PNG")] == "composed"


def test_the_nearest_metadata_counts(images, task, tmp_path):
    (images / "metadata.jsonl").write_text('{"file_name": "sub/e.png", "prompt": "far"}')
    (images / "sub" / "metadata.jsonl").write_text('{"file_name": "e.png", "prompt": "near"}')
    prompts = {item.name: item.prompt for item in plan([images], task, RunOptions(out=tmp_path / "out"))}
    assert prompts["sub/e.png"] == "near"


def test_what_matches_nothing_is_named(images, task):
    lines = [{"file_name": name, "prompt": "x"} for name in ("a.png", "gone.png", "sub/e.png")]
    (images / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("b.txt", "lost.txt", "z.mask.png", "clip.mp4", "raw.cr2"):
        (images / name).write_bytes(b"x")
    assert left_out(images, task) == {
        "metadata.jsonl": "its line for gone.png names no file",
        "lost.txt": "it belongs to no image that is read",
        "z.mask.png": "it belongs to no image that is read",
        "clip.mp4": "no image type that this task reads",
        "raw.cr2": "no image type that this task reads",
    }
    assert "metadata.jsonl" not in left_out(images, task, prompt="common")


def test_heic_without_its_plug_in_has_a_remedy(images, monkeypatch):
    (images / "a.HEIC").write_bytes(b"x")
    task = tasks.load("superres")
    monkeypatch.setattr(type(task), "input_extensions", frozenset({".png"}))
    assert left_out(images, task) == {"a.HEIC": "HEIC needs a plug-in: pip install pillow-heif"}


@pytest.mark.parametrize("name", ["a.mask.PNG", "a.mask.jpg", "a_mask.png", "a.Mask.tif"])
def test_a_mask_under_every_usual_name(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    Image.new("L", (8, 8), 255).save(folder / name)
    task = tasks.load("inpaint")
    assert [item.name for item in plan([folder], task, RunOptions(out=tmp_path / "out"))] == ["a.png"]
    assert task.companions(folder / "a.png") == (folder / name,)
    assert left_out(folder, task) == {}


def test_an_image_called_mask_is_an_input_of_its_own(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGBA", (8, 8)).save(folder / "carnival_mask.png")
    (item,) = plan([folder], tasks.load("inpaint"), RunOptions(out=tmp_path / "out"))
    assert item.name == "carnival_mask.png"


def test_a_folder_of_masks(tmp_path):
    images, masks = tmp_path / "in", tmp_path / "in" / "masks"
    for folder in (images / "sub", masks / "sub"):
        folder.mkdir(parents=True)
    for name in ("a.png", "sub/a.png", "sub/b.png"):
        Image.new("RGB", (8, 8)).save(images / name)
    Image.new("L", (8, 8), 255).save(masks / "a.jpg")
    covered = np.zeros((8, 8), np.uint8)
    covered[:4] = 255
    Image.fromarray(covered).save(masks / "sub" / "a_mask.png")
    task = tasks.load("inpaint", {"mask": masks})
    assert {item.name for item in plan([images], task, RunOptions(out=tmp_path / "out"))} == {
        "a.png", "sub/a.png", "sub/b.png"
    }  # fmt: skip
    assert task.companions(images / "a.png") == (masks / "a.jpg",)
    assert task.companions(images / "sub" / "a.png") == (masks / "sub" / "a_mask.png",)
    with pytest.raises(InvalidInput, match=r"^no mask for it in .*masks: add b.png, white in the hole$"):
        task.prepare(Image.new("RGB", (8, 8)), path=images / "sub" / "b.png")
