"""`codi eval` on the bundled models: every column, the contestants, the report folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codi_hub.data.synthetic.leaves import leaves
from codi_hub.evaluation.features import FeatureNet, save_features


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_features(tmp_path / "net", FeatureNet(), "")
    return tmp_path / "net"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for k in range(2):
        Image.fromarray(leaves(np.random.default_rng([9, k]), 64)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_superres_beside_bicubic_and_the_base(
    codi: Callable[..., Any], images: Path, network: Path, tmp_path: Path
) -> None:
    fixed = ["eval", "superres", "--data", images, "--features", network, "--steps", "1,2", "--dtype", "fp32", "--json"]
    answer = codi(*fixed, "--against", "bicubic,base@3", "-o", tmp_path / "out")
    assert answer.code == 0
    report = json.loads(answer.out)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["bicubic", "autoencoder", "superres:1, 1 step", "superres:1, 2 steps", "base, 3 steps"]
    assert [c for c in report["columns"] if not c.endswith("_delta")] == [
        "psnr", "ssim", "gmsd", "frechet", "perceptual", "adherence", "seconds",
    ]  # fmt: skip
    assert (rows["base, 3 steps"]["method"], rows["base, 3 steps"]["steps"]) == ("base", 3)
    assert all(row[column] is not None for row in report["rows"] for column in ("frechet", "perceptual", "adherence"))
    assert rows["autoencoder"]["perceptual"] < rows["bicubic"]["perceptual"]
    assert rows["superres:1, 2 steps"]["adherence"] < rows["bicubic"]["adherence"] == 100
    assert report["notes"][0].startswith("Frechet: 6 patches of 64 px against 2 of the references; features: net")
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["rows"] == report["rows"]
    alone = {row["name"]: row for row in json.loads(codi(*fixed).out)["rows"]}
    assert alone["2 steps"]["psnr"] == rows["superres:1, 2 steps"]["psnr"]


def test_depth_has_the_same_columns_and_the_scenes_themselves(codi: Callable[..., Any], network: Path) -> None:
    answer = codi("eval", "depth", "--count", "2", "--steps", "1", "--features", network, "--json")
    report = json.loads(answer.out)
    scenes, one = report["rows"]
    assert (scenes["name"], one["name"]) == ("scenes", "1 step")
    assert scenes["perceptual"] == 0
    assert scenes["frechet"] == pytest.approx(0, abs=1e-6)
    assert scenes["psnr"] is None
    assert one["frechet"] > 0.01
    assert 0 < one["psnr"] < 40
    assert report["columns"] == [
        "psnr", "ssim", "gmsd", "frechet", "perceptual", "adherence", "shuffled", "margin", "seconds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--against", "nearest"],
            "against nearest: cannot be compared with superres:1; use one of bicubic, base, superres:1",
        ),
        (
            ["--against", "depth:1"],
            "against depth:1: cannot be compared with superres:1; use one of bicubic, base, superres:1",
        ),
        (["--against", "base@1001"], "steps 1001: a number from 1 to 1000"),
        (["--features", "nowhere"], "features nowhere: no such file or folder"),
    ],
)
def test_an_impossible_option_is_one_line(codi: Callable[..., Any], more: list[str], message: str) -> None:
    answer = codi("eval", "superres", *more)
    assert answer.code in (1, 2)
    assert answer.err.removeprefix("Error: ").removeprefix("--").startswith(message)
    assert answer.err.count("\n") == 1
