"""Editing: pairs of input, instruction and target under every column name; what `finish` restores."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codi_hub.data.sources import open_source
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import to_uint8
from codi_hub.tasks import load
from codi_hub.tasks.base import Pair, Prepared

TASK = load("edit")
BEFORE, AFTER = (np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8) for seed in (0, 1))


def first_pair(spec: str) -> Any:
    return TASK.make_pair(open_source(spec, TASK, size=40)[0], np.random.default_rng(0))


def assert_edits(pair: Any) -> None:
    assert np.array_equal(pair.condition, BEFORE)
    assert np.array_equal(pair.target, AFTER)
    assert pair.prompt == "make it noisier"


@pytest.mark.parametrize(
    "names",
    [
        ("input_image", "edited_image", "edit_prompt"),  # InstructPix2Pix
        ("original_image", "edited_image", "edit_prompt"),
        ("file_name", "edited_file_name", "instruction"),
        ("conditioning_image", "image", "text"),  # columns of data sets for ControlNet
        ("condition", "target", "edit_prompt"),
    ],
)
def test_a_folder_with_metadata(tmp_path: Path, names: tuple[str, str, str]) -> None:
    Image.fromarray(BEFORE).save(tmp_path / "a.png")
    Image.fromarray(AFTER).save(tmp_path / "b.png")
    row = dict(zip(names, ("a.png", "b.png", "make it noisier"), strict=True))
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert_edits(first_pair(str(tmp_path)))


@pytest.mark.parametrize("typed", [True, False])
def test_a_parquet_file_of_instruct_pix2pix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: bool) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = {}
    for name, image in (("input_image", BEFORE), ("edited_image", AFTER)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        cells[name] = [buffer.getvalue()]
    table = datasets.Dataset.from_dict(cells | {"edit_prompt": ["make it noisier"]})
    for name in cells if typed else ():
        table = table.cast_column(name, datasets.Image())
    table.to_parquet(str(tmp_path / "train.parquet"))
    assert_edits(first_pair(str(tmp_path / "train.parquet")))


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("edited", "task edit needs data with 'edited'; this has edit_prompt, image"),
        ("edit_prompt", "task edit needs data with 'edit_prompt'; this has edited, image"),
    ],
)
def test_data_without_a_column_are_refused(without: str, message: str) -> None:
    example = {"image": BEFORE, "edited": AFTER, "edit_prompt": "make it noisier"}
    del example[without]
    with pytest.raises(InvalidInput, match=f"^{message}$"):
        TASK.make_pair(example, np.random.default_rng(0))


def test_the_condition_is_the_image() -> None:
    prepared = TASK.prepare(Image.fromarray(BEFORE))
    assert np.array_equal((prepared.condition * 255).round().astype(np.uint8), BEFORE)


def test_adherence_is_the_psnr_to_the_input() -> None:
    same = BEFORE.astype(np.float32) / 255
    assert TASK.adherence(same, same) == 100
    assert TASK.adherence(np.clip(same + 0.1, 0, 1), same) == pytest.approx(20, abs=1)


def finished(keep: float, output: np.ndarray) -> np.ndarray:
    task = load("edit", {"keep": keep})
    return task.finish(output, task.prepare(Image.fromarray(BEFORE)))


def test_small_changes_are_undone_bit_for_bit_and_large_ones_kept() -> None:
    output = np.clip(BEFORE.astype(np.float32) / 255 + 0.02, 0, 1)  # slightly lighter everywhere
    output[:, 24:] = 0.9  # another content on the right
    result = finished(0.1, output)
    assert np.array_equal(result[:, :8], BEFORE[:, :8])
    assert np.array_equal(result[:, 36:], np.full_like(result[:, 36:], 230))


def test_keep_of_zero_restores_nothing() -> None:
    output = np.clip(BEFORE.astype(np.float32) / 255 + 0.01, 0, 1)
    assert np.array_equal(finished(0, output), (output * 255 + 0.5).astype(np.uint8))
    assert np.array_equal(finished(0.1, output), BEFORE)


def test_a_faint_edit_is_kept_if_it_is_the_largest_change() -> None:
    dark = BEFORE.astype(np.float32) / 255 * 0.8
    faint, strong = dark + np.float32(0.01), dark + np.float32(0.01)
    faint[:, 24:] = dark[:, 24:] + 0.06
    strong[:, 24:] = dark[:, 24:] + 0.06
    strong[:8, :8] = 1
    task = load("edit", {"keep": 0.05})
    results = [task.finish(output, Prepared(dark, (40, 40))) for output in (faint, strong)]
    assert np.array_equal(results[0][:, 36:], to_uint8(faint[:, 36:]))
    assert np.array_equal(results[0][:, :8], to_uint8(dark[:, :8]))
    assert not np.array_equal(results[1][:, 36:], to_uint8(strong[:, 36:]))


@pytest.mark.parametrize("keep", [-0.1, 1.0])
def test_an_impossible_option_is_refused(keep: float) -> None:
    with pytest.raises(UsageError, match="keep"):
        load("edit", {"keep": keep})


def test_done_is_the_share_of_the_change() -> None:
    pair = Pair(np.full_like(BEFORE, 128), BEFORE, "make it gray")
    before, after = (image.astype(np.float32) / 255 for image in (pair.condition, pair.target))
    assert TASK.done(before, pair) == pytest.approx(0, abs=1e-6)
    assert TASK.done(after, pair) == pytest.approx(1, abs=1e-6)
    assert TASK.done(0.25 * before + 0.75 * after, pair) == pytest.approx(0.75, abs=1e-3)
    assert TASK.done(2 * before - after, pair) == pytest.approx(-1, abs=1e-3)
    assert TASK.done(before, Pair(BEFORE, BEFORE, "do nothing")) is None
    assert load("superres").done(before, pair) is None
    assert TASK.latest_score({"psnr": 30.0, "done": 0.4}) == 0.4
