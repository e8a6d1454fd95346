"""A metric of another package becomes a column of every task; nothing else is edited."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plugins import install

from codi_hub import tasks
from codi_hub.data.synthetic.leaves import leaves
from codi_hub.errors import UsageError
from codi_hub.evaluation import metrics
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.evaluation.measured import trimmed, with_set_metrics

CODE = """
import numpy as np

from codi_hub.evaluation.metrics import Column, SetMetric, SetScores, image_metric


@image_metric(head="MAE", meaning="mean absolute error, levels of 255", better="lower", decimals=1)
def mae(image, reference):
    assert image.dtype == reference.dtype == np.uint8
    return float(np.abs(image.astype(float) - reference).mean())


def brightness(outputs, references, features):
    reference = np.mean([image.mean() for image in references])
    return SetScores({name: {"bias": float(np.mean([i.mean() for i in images]) - reference)}
                      for name, images in outputs.items()}, {"toy": 1}, ("bias: a note",))


bias = SetMetric({"bias": Column("bias", 2, "nearer 0", "mean brightness minus that of the references")}, brightness)


def plain(image, reference):
    return 0.0
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"codi_hub.metrics": {"mae": "toy_metrics:mae", "bias": "toy_metrics:bias"}}
    install(tmp_path / "site", monkeypatch, name="toy_metrics", code=CODE, entry_points=points)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for k in range(2):
        Image.fromarray(leaves(np.random.default_rng([9, k]), 64)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path / "images"


def gray(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
    return [np.full((*condition.shape[:2], 3), 0.5, np.float32) for condition in conditions]


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.builtin())
@pytest.mark.usefixtures("toy")
def test_it_is_a_column_of_every_task(name: str, images: Path, tmp_path: Path) -> None:
    task = tasks.load(name)
    data = str(images) if name in ("superres", "inpaint") else None
    if task.data is None:  # a folder of pairs
        for folder in ("condition", "target"):
            (tmp_path / "pairs" / folder).mkdir(parents=True)
            for file in images.iterdir():
                (tmp_path / "pairs" / folder / file.name).write_bytes(file.read_bytes())
        data = str(tmp_path / "pairs")
    measured = task.evaluate(EvaluationContext(gray, steps=(1,), count=2, size=32, data=data))
    table = trimmed(with_set_metrics(measured, None)).table
    row = table.row("1 step")
    pairs = zip(measured.outputs["1 step"], measured.references, strict=True)
    expected = [np.abs(output.astype(float) - reference).mean() for output, reference in pairs]
    assert row["mae"] == pytest.approx(np.mean(expected))
    assert row["bias"] is not None
    columns = [column for column in table.columns if not column.endswith("_delta")]
    assert columns[:5] == ["psnr", "ssim", "gmsd", "mae", "bias"]


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_the_command_shows_it_in_table_legend_and_files(codi: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    answer = codi("eval", "superres", "--data", images, "--steps", "1", "--dtype", "fp32", "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    head, *_ = answer.out.splitlines()[1:]
    assert "MAE" in head
    assert "bias: a note" in answer.out
    document = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert document["figures"][0]["mae"] > 0
    assert document["toy"] == 1
    assert "- MAE: mean absolute error, levels of 255 (lower is better)" in (tmp_path / "out" / "table.md").read_text()
    assert "MAE: mean absolute error" in codi("eval", "--help").out


def test_a_plain_function_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"codi_hub.metrics": {"plain": "toy_metrics:plain"}}
    install(tmp_path / "site", monkeypatch, name="toy_metrics", code=CODE, entry_points=points)
    with pytest.raises(UsageError, match="metric 'plain' is a function: decorate the function with image_metric"):
        metrics.columns()


def test_built_in_metrics_come_first_and_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"codi_hub.metrics": {"psnr": "toy_metrics:mae", "a": "toy_metrics:mae"}}
    install(tmp_path / "site", monkeypatch, name="toy_metrics", code=CODE, entry_points=points)
    assert list(metrics.image_metrics()) == ["psnr", "ssim", "gmsd", "a"]
    assert metrics.columns()["psnr"].head == "PSNR dB"
