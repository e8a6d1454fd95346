"""How evaluations of several contestants become one table, with distances, and what is left in the folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation import plot, run
from codi_hub.evaluation.features import FeatureNet, Features
from codi_hub.evaluation.measured import Contestant, Measured, merged, named, step_name, trimmed, with_distances
from codi_hub.evaluation.table import Table

SCENES = [scene(np.random.default_rng([8, k]), 64).image for k in range(3)]


def made(strength: int, *steps: int) -> Measured:
    """An evaluation whose outputs are nearer to the truth at more steps, beside a reference that is not near at all."""
    outputs = {"flat": [np.full_like(image, 128) for image in SCENES]}
    outputs |= {step_name(n): [image // (1 + strength) * strength for image in SCENES] for n in steps}
    rows: list[dict[str, Any]] = [{"name": "flat", "psnr": 10.0, "adherence": None, "seconds": None}]
    rows += [{"name": step_name(n), "psnr": 20.0 + n, "adherence": None, "seconds": 0.1 * n} for n in steps]
    pictures = {"scene 0": {"input": SCENES[0], **{name: images[0] for name, images in outputs.items()}}}
    pictures["scene 0"]["original"] = SCENES[0]
    table = Table(["psnr", "adherence", "seconds"], rows)
    return Measured(len(SCENES), table, {"strength": strength}, pictures, outputs, SCENES)


def contestant(name: str, *steps: int) -> Contestant:
    return Contestant(name, lambda *_: [], steps)


@pytest.fixture
def both() -> Measured:
    us, them = contestant("x:1", 1, 4), contestant("x:2", 50)
    return merged([named(made(9, 1, 4), us, alone=False), named(made(1, 50), them, alone=False)], [us, them])


def test_alone_a_row_is_its_steps() -> None:
    found = named(made(9, 1, 4), contestant("x:1", 1, 4), alone=True)
    assert [(row["name"], row["method"], row["steps"]) for row in found.table.rows] == [
        ("flat", "flat", None),
        ("1 step", "x:1", 1),
        ("4 steps", "x:1", 4),
    ]


def test_beside_others_a_row_says_whose_it_is(both: Measured) -> None:
    assert [(row["name"], row["method"], row["steps"], row["psnr"]) for row in both.table.rows] == [
        ("flat", "flat", None, 10.0),
        ("x:1, 1 step", "x:1", 1, 21.0),
        ("x:1, 4 steps", "x:1", 4, 24.0),
        ("x:2, 50 steps", "x:2", 50, 70.0),
    ]
    columns = ["input", "flat", "x:1, 1 step", "x:1, 4 steps", "x:2, 50 steps", "original"]
    assert list(both.pictures["scene 0"]) == columns
    assert set(both.outputs) == {row["name"] for row in both.table.rows}
    assert both.details["against"] == {"x:2": {"strength": 1}}


def test_distances_are_columns_behind_those_of_pixels(both: Measured) -> None:
    torch.manual_seed(0)
    found = with_distances(both, Features("mine", FeatureNet(), torch.device("cpu")))
    assert found.table.columns == ["psnr", "frechet", "perceptual", "adherence", "seconds"]
    flat, one, four, other = found.table.rows
    assert flat["perceptual"] > other["perceptual"] > one["perceptual"] == four["perceptual"] > 0
    assert flat["frechet"] > one["frechet"] > 0
    assert found.notes == ("Frechet: 3 patches of 64 px against 3 of the true pictures; features: mine",)
    assert np.mean(found.details["perceptual"]["flat"]) == pytest.approx(flat["perceptual"])
    assert found.details["frechet_samples"] == {"made": 3, "true": 3, "patch": 64}


def test_nothing_is_measured_without_true_pictures() -> None:
    plain = Measured(1, Table(["psnr"], []), {}, {})
    assert with_distances(plain, Features("mine", FeatureNet(), torch.device("cpu"))) is plain


def test_a_column_without_any_figure_is_left_out(both: Measured) -> None:
    assert trimmed(both).table.columns == ["psnr", "seconds"]
    assert trimmed(both).details["columns"] == ["psnr", "seconds"]


def test_the_folder_holds_the_table_three_times_and_the_pictures(both: Measured, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = run.write(trimmed(both), "x:1, 3 images", tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert found.notes == ()
    assert sorted(path.name for path in out.iterdir()) == [
        "eval.json", "quality.png", "sheet.png", "table.md", "table.txt",
    ]  # fmt: skip
    assert json.loads((out / "eval.json").read_text())["rows"] == found.table.rows
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2:5] == ["|  | PSNR dB | s/image |", "|-|-:|-:|", "| flat | 10.00 | - |"]
    assert lines[-1] == "- s/image: time per image (lower is better)"
    with Image.open(out / "quality.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 200


def test_without_matplotlib_one_note_says_so_and_the_rest_is_there(
    both: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    found = run.write(trimmed(both), "x:1", tmp_path)
    assert found.notes == ("No plot: matplotlib is not installed; pip install 'codi-hub[plot]'",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "sheet.png", "table.md", "table.txt"]


def test_a_chart_for_each_figure_that_says_which_way_is_better() -> None:
    table = Table(["psnr", "psnr_delta", "frechet", "matched", "adherence", "shuffled", "seconds"], [])
    assert plot.drawn(table) == ["psnr", "frechet", "adherence"]
