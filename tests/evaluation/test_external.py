"""Images written for other tools, and their values read back."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codi_hub.errors import InvalidInput, NotFound
from codi_hub.evaluation.external import read_metrics, save_images, with_imported
from codi_hub.evaluation.measured import Measured
from codi_hub.evaluation.table import Table


@pytest.fixture
def measured() -> Measured:
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 100)]
    rows = [{"name": "bicubic", "psnr": 1.0}, {"name": "depth:2, 4 steps", "psnr": 2.0}]
    outputs = {"bicubic": images, "depth:2, 4 steps": images[::-1]}
    return Measured(2, Table(["psnr"], rows), {}, {}, outputs, images)


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_image_is_written_and_values_come_back_by_its_name(measured: Measured, tmp_path: Path) -> None:
    save_images(measured, tmp_path / "images")
    files = sorted(file.relative_to(tmp_path / "images").as_posix() for file in tmp_path.rglob("*.png"))
    rows = ("bicubic", "depth-2-4-steps", "references")
    assert files == [f"{row}/0000{k}.png" for row in rows for k in range(2)]
    with (tmp_path / "other.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "image", "brightness"])
        for file in files[:4]:
            row, image = file.split("/")
            writer.writerow([row, image, np.asarray(Image.open(tmp_path / "images" / file)).mean()])
    result = with_imported(measured, read_metrics(tmp_path / "other.csv"))
    assert result.table.columns == ["psnr", "brightness"]
    assert [row["brightness"] for row in result.table.rows] == [50.0, 50.0]


def test_a_row_that_is_measured_in_part_has_no_mean(measured: Measured, tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.csv", "row,image,musiq", "bicubic,00000,70", "bicubic,00001,60", "depth-2-4-steps,00000,1"
    )
    assert [row["musiq"] for row in with_imported(measured, read_metrics(file)).table.rows] == [65.0, None]


def test_a_column_of_ours_is_not_replaced(measured: Measured, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", "row,image,psnr", "bicubic,00000,70", "bicubic,00001,60")
    assert with_imported(measured, read_metrics(file)).table.columns == ["psnr", "imported psnr"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,m", "00000,1"], "no column 'row'"),
        (["row,image", "bicubic,00000"], "no column besides row and image"),
        (["row,image,m", "bicubic,00000,nan"], "line 2, m: 'nan' is no finite number"),
        (["row,image,m", "bicubic,00000"], "line 2, m: None is no finite number"),
        (["row,image,m", "bicubic,00000,1", "bicubic,00000.png,2"], "line 3: bicubic 00000.png for the second time"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_metrics(written(tmp_path / "a.csv", *lines))


def test_values_of_images_that_are_not_there_are_refused(measured: Measured, tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", "row,image,m", "bicubic,00007,1")
    with pytest.raises(InvalidInput, match=r"no image 00007 of a row bicubic; its rows: bicubic, depth-2-4-steps"):
        with_imported(measured, read_metrics(file))
    with pytest.raises(NotFound, match="no such file"):
        read_metrics(tmp_path / "none.csv")


@pytest.mark.slow
def test_the_command_measures_with_published_weights(codi: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "in" / f"{k}.png")
    options = ["--data", tmp_path / "in", "--steps", "1", "--dtype", "fp32"]
    command = ["eval", "superres", *options, "--metric", "st-lpips", "--metric", "frechet-imagenet"]
    answer = codi(*command, "--save-images", tmp_path / "images", "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / "out" / "eval.json").read_text())
    row = {row["name"]: row for row in document["rows"]}["1 step"]
    assert row["st-lpips"] == pytest.approx(np.mean(document["st-lpips"]["1 step"]))
    assert len(document["st-lpips"]["1 step"]) == 6
    assert "ST-LPIPS: alex_shift_tolerant.pth, sha256 b356b382f960; whole images, 6 of them" in answer.out
    assert "patches of 128 px; 6 of outputs against 2 of references" in answer.out
    lines = ["row,image,musiq", *(f"1-step,{k:05d}.png,{k}" for k in range(6))]
    imported = codi("eval", "superres", *options, "--import-metrics", written(tmp_path / "m.csv", *lines), "--json")
    rows = {row["name"]: row for row in json.loads(imported.out)["rows"]}
    assert (rows["1 step"]["musiq"], rows["bicubic"]["musiq"]) == (2.5, None)
    refused = codi("eval", "superres", *options, "--metric", "lpips")
    assert refused.code == 2
    assert refused.err == "Error: --metric lpips: needs weights, as lpips=FILE, the state dict of lpips.LPIPS\n"
