"""Evaluations of several contestants as one table, with distances, and the report folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation import plot, run
from codi_hub.evaluation.context import step_name
from codi_hub.evaluation.features import FeatureNet, Features
from codi_hub.evaluation.measured import Contestant, Measured, merged, named, trimmed, with_set_metrics
from codi_hub.evaluation.table import Table

SCENES = [scene(np.random.default_rng([8, k]), 64).image for k in range(3)]


def evaluation(strength: int, *steps: int) -> Measured:
    """Return an evaluation of darkened references beside a constant grey baseline."""
    outputs = {"flat": [np.full_like(image, 128) for image in SCENES]}
    outputs |= {step_name(n): [image // (1 + strength) * strength for image in SCENES] for n in steps}
    rows: list[dict[str, Any]] = [{"name": "flat", "psnr": 10.0, "adherence": None, "seconds": None}]
    rows += [{"name": step_name(n), "psnr": 20.0 + n, "adherence": None, "seconds": 0.1 * n} for n in steps]
    sheet = {"scene 0": {"input": SCENES[0], **{name: images[0] for name, images in outputs.items()}}}
    sheet["scene 0"]["original"] = SCENES[0]
    table = Table(["psnr", "adherence", "seconds"], rows)
    return Measured(len(SCENES), table, {"strength": strength}, sheet, outputs, SCENES)


def contestant(name: str, *steps: int) -> Contestant:
    return Contestant(name, lambda *_: [], steps)


@pytest.fixture
def both() -> Measured:
    us, them = contestant("x:1", 1, 4), contestant("x:2", 50)
    return merged(
        [named(evaluation(9, 1, 4), us, alone=False), named(evaluation(1, 50), them, alone=False)], [us, them]
    )


def test_alone_a_row_is_named_by_its_steps() -> None:
    result = named(evaluation(9, 1, 4), contestant("x:1", 1, 4), alone=True)
    assert [(row["name"], row["method"], row["steps"]) for row in result.table.rows] == [
        ("flat", "flat", None),
        ("1 step", "x:1", 1),
        ("4 steps", "x:1", 4),
    ]


def test_beside_others_a_row_is_named_by_its_contestant(both: Measured) -> None:
    assert [(row["name"], row["method"], row["steps"], row["psnr"]) for row in both.table.rows] == [
        ("flat", "flat", None, 10.0),
        ("x:1, 1 step", "x:1", 1, 21.0),
        ("x:1, 4 steps", "x:1", 4, 24.0),
        ("x:2, 50 steps", "x:2", 50, 70.0),
    ]
    columns = ["input", "flat", "x:1, 1 step", "x:1, 4 steps", "x:2, 50 steps", "original"]
    assert list(both.sheet["scene 0"]) == columns
    assert set(both.outputs) == {row["name"] for row in both.table.rows}
    assert both.details["against"] == {"x:2": {"strength": 1}}


def test_distances_are_columns_after_the_image_metrics(both: Measured) -> None:
    torch.manual_seed(0)
    result = with_set_metrics(both, Features("mine", FeatureNet(), torch.device("cpu")))
    assert result.table.columns == ["psnr", "frechet", "perceptual", "adherence", "seconds"]
    flat, one, four, other = result.table.rows
    assert flat["perceptual"] > other["perceptual"] > one["perceptual"] == four["perceptual"] > 0
    assert flat["frechet"] > one["frechet"] > 0
    assert result.notes == ("Frechet: 3 patches of 64 px against 3 of the references; features: mine",)
    assert np.mean(result.details["perceptual"]["flat"]) == pytest.approx(flat["perceptual"])
    assert result.details["frechet_samples"] == {"outputs": 3, "references": 3, "patch": 64}


def test_sets_are_not_compared_without_references() -> None:
    plain = Measured(1, Table(["psnr"], []), {}, {})
    assert with_set_metrics(plain, Features("mine", FeatureNet(), torch.device("cpu"))) is plain


def test_a_column_without_any_value_is_dropped(both: Measured) -> None:
    assert trimmed(both).table.columns == ["psnr", "seconds"]
    assert trimmed(both).details["columns"] == ["psnr", "seconds"]


def test_the_folder_has_the_table_three_times_and_the_images(both: Measured, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run.write(trimmed(both), "x:1, 3 images", tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert result.notes == ()
    assert sorted(path.name for path in out.iterdir()) == [
        "eval.json", "quality.png", "sheet.png", "table.md", "table.txt",
    ]  # fmt: skip
    assert json.loads((out / "eval.json").read_text())["rows"] == result.table.rows
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2:5] == ["|  | PSNR dB | s/image |", "|-|-:|-:|", "| flat | 10.00 | - |"]
    assert lines[-1] == "- s/image: time per image, s (lower is better)"
    with Image.open(out / "quality.png") as plot_image:
        assert np.ptp(np.asarray(plot_image.convert("L"))) > 200


def test_without_matplotlib_there_is_a_note_and_everything_else(
    both: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    result = run.write(trimmed(both), "x:1", tmp_path)
    assert result.notes == ("No plot: matplotlib is not installed; pip install 'codi-hub[plot]'",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "sheet.png", "table.md", "table.txt"]


def test_every_described_and_plotted_column_has_a_chart() -> None:
    table = Table(["psnr", "psnr_delta", "frechet", "matched", "adherence", "shuffled", "seconds"], [])
    assert plot.plotted(table) == ["psnr", "frechet", "adherence"]
