"""Editing by instruction through the command line, on a tiny base: distill, run, resume, evaluate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import save_base, scheduler_config

SMALL = ["--train-steps", "2", "--count", "12", "--batch", "2", "--precision", "fp32", "--device", "cpu"]
SMALL += ["--sample-every", "0", "--workers", "1", "--lr", "0.05"]
RUN = ["--steps", "1", "--dtype", "fp32", "--device", "cpu", "--json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "tiny", scheduler_config("v_prediction", zero_snr=True))


@pytest.fixture
def ready(codi: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """Distil an edit adapter on a tiny base; return the JSON and the progress output, `stderr`."""
    assert codi("base", "add", "tiny", folder).code == 0
    assert codi("base", "use", "tiny").code == 0
    answer = codi("distill", "edit", *SMALL, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out) | {"stderr": answer.err}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.png", "sub/c.png")):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)
    return folder


def rows(answer: Any) -> dict[str, tuple[str, str | None]]:
    items = json.loads(answer.out)["items"]
    return {Path(item["input"]).name: (item["status"], item.get("prompt")) for item in items}


def test_edits_from_training_to_images(
    codi: Callable[..., Any], ready: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    assert ready["adapter"] == "edit:1"
    assert "of 16 px from edits" in ready["stderr"]
    assert ready["metrics"]["condition_psnr"] > 0
    answer = codi("run", "edit", images, "--prompt", "make it night", *RUN)
    assert answer.code == 0
    assert rows(answer) == dict.fromkeys(("a.png", "b.png", "c.png"), ("ok", "make it night"))
    night = np.asarray(Image.open(tmp_path / "imgs_edit" / "a.png"))
    assert night.shape == (16, 16, 3)
    codi("run", "edit", images / "a.png", "-o", tmp_path / "red.png", "--prompt", "paint the box red", *RUN)
    assert not np.array_equal(night, np.asarray(Image.open(tmp_path / "red.png")))


def test_without_an_instruction_nothing_is_started(
    codi: Callable[..., Any], ready: dict[str, Any], images: Path
) -> None:
    (images / "a.txt").write_text("make it night")
    answer = codi("run", "edit", images)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        f"Error: task edit needs a prompt for every image; without one: {images / 'b.png'}, "
        f"{images / 'sub' / 'c.png'}. Give one prompt for all images, a line in metadata.jsonl, "
        "or NAME.txt beside NAME.png\n"
    )
    (images / "metadata.jsonl").write_text('{"file_name": "b.png", "prompt": 7}\n')
    answer = codi("run", "edit", images)
    assert answer.err == f"Error: {images / 'metadata.jsonl'} line 1: prompt is 7, not text\n"
    assert not images.with_name("imgs_edit").exists()


@pytest.mark.slow
def test_a_changed_instruction_recomputes_its_own_image_only(
    codi: Callable[..., Any], ready: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    (images / "a.txt").write_text("make it night\n")
    metadata = images / "metadata.jsonl"
    lines = ['{"file_name": "b.png", "edit_prompt": "add fog"}', '{"file_name": "sub/c.png", "text": "make it sunset"}']
    metadata.write_text("\n".join(lines))
    first = rows(codi("run", "edit", images, *RUN))
    assert first == {"a.png": ("ok", "make it night"), "b.png": ("ok", "add fog"), "c.png": ("ok", "make it sunset")}
    before = {path.name: path.read_bytes() for path in (tmp_path / "imgs_edit").rglob("*.png")}
    assert {status for status, _ in rows(codi("run", "edit", images, *RUN)).values()} == {"skipped"}

    (images / "a.txt").write_text("paint the box red")
    again = rows(codi("run", "edit", images, *RUN))
    assert again == {
        "a.png": ("ok", "paint the box red"),
        "b.png": ("skipped", "add fog"),
        "c.png": ("skipped", "make it sunset"),
    }
    metadata.write_text(lines[0].replace("add", "remove the") + "\n" + lines[1])
    assert rows(codi("run", "edit", images, *RUN))["b.png"] == ("ok", "remove the fog")
    after = {path.name: path.read_bytes() for path in (tmp_path / "imgs_edit").rglob("*.png")}
    assert [name for name in before if before[name] != after[name]] == ["a.png", "b.png"]

    (images / "a.txt").write_bytes(b"\xff")
    answer = codi("run", "edit", images, *RUN)
    assert answer.code == 1
    assert [row[0] for row in rows(answer).values()] == ["failed", "skipped", "skipped"]
    assert {status for status, _ in rows(codi("run", "edit", images, "--prompt", "add fog", *RUN)).values()} == {"ok"}


@pytest.mark.slow
def test_the_share_of_followed_instructions_is_measured(
    codi: Callable[..., Any], ready: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    answer = codi("eval", "edit", "--steps", "1,2", "--count", "4", "-o", out, "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    table = {row["name"]: row for row in json.loads(answer.out)["rows"]}
    assert list(table) == ["input", "ground truth", "autoencoder", "1 step", "2 steps"]
    assert (table["input"]["followed"], table["ground truth"]["followed"]) == (0, 1)
    assert table["2 steps"]["seconds"] > 0
    assert Image.open(out / "sheet.png").width > 4 * 256
