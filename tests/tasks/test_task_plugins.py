"""A task of another package: found by its entry point, with its options, flags, columns and evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugins import install

from codi_hub import tasks
from codi_hub.errors import NotFound
from codi_hub.evaluation.context import EvaluationContext

CODE = '''
import numpy as np
from pydantic import Field

from codi_hub.evaluation.measured import Comparison
from codi_hub.evaluation.metrics import Column
from codi_hub.images.formats import EXTENSIONS
from codi_hub.tasks.base import FLAG, Pair, Prepared, Task, needed, pixels


class Invert(Task):
    """Negatives of images."""

    name = "invert"
    summary = "Invert the colours of an image"
    data = "leaves"
    baselines = ("exact",)
    columns = {"range": Column("range", 1, "higher", "largest minus smallest level")}

    class Options(Task.Options):
        share: float = Field(1.0, ge=0, le=1, json_schema_extra={FLAG: "F"})
        """Share of the inversion. More is not possible."""
        deep: bool = Field(False, json_schema_extra={FLAG: ""})
        """Invert twice."""

    def make_pair(self, example, rng):
        image = needed(example, "image", self.name)
        return Pair(255 - image, image, "")

    def prepare(self, image, path=None, rng=None):
        rgb = pixels(image)
        return Prepared(rgb, (rgb.shape[1], rgb.shape[0]))

    def evaluate(self, context):
        comparison = Comparison()
        image = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
        prepared = self.prepare(image)
        for name, samples in context.sample(self, [prepared]).items():
            own = {"range": float(np.ptp(samples.images[0]))}
            comparison.add("exact", "a", 255 - image, 255 - image, {"range": 255.0})
            comparison.add(name, "a", samples.images[0], 255 - image, own, samples.seconds)
            comparison.reference(255 - image)
            comparison.sheet["a"] = {"input": image, name: samples.images[0]}
        return comparison.measured(1, against="exact")
'''


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"codi_hub.tasks": {"invert": "toy_tasks:Invert", "broken": "toy_missing:Task"}}
    install(tmp_path / "site", monkeypatch, name="toy_tasks", code=CODE, entry_points=points)


def test_it_is_listed_loaded_and_brings_flags_and_columns(caplog: pytest.LogCaptureFixture) -> None:
    assert "invert" in tasks.builtin()
    assert tasks.load("invert", {"share": 0.5}).options.share == 0.5
    flags = tasks.option_flags()
    assert {name: (one.type, one.metavar) for name, one in flags.items()} == {
        "scale": (int, "N"), "estimate": (str, "MODEL"), "mask": (str, "FILE|FOLDER"),
        "share": (float, "F"), "deep": (bool, None),
    }  # fmt: skip
    assert flags["share"].help == "Share of the inversion"
    assert tasks.columns()["range"].meaning == "largest minus smallest level"
    tasks.columns()
    warning = "task broken: toy_missing:Task cannot be imported (ModuleNotFoundError: No module named 'toy_missing')"
    assert caplog.text.count(warning) == 1  # said once, however often the tasks are loaded


def test_the_commands_take_its_flags(codi: Callable[..., Any]) -> None:
    assert "--share" in codi("run", "--help").out
    answer = codi("task", "add", "half", "--like", "invert", "--share", "0.5", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["options"] == {"share": 0.5}


def test_its_evaluation_has_its_columns_and_the_registered_metrics() -> None:
    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        return [1 - condition for condition in conditions]

    measured = tasks.load("invert").evaluate(EvaluationContext(generate, steps=(2,)))
    assert measured.table.columns == ["psnr", "ssim", "gmsd", "range", "seconds"]
    assert [row["name"] for row in measured.table.rows] == ["exact", "2 steps"]
    assert measured.table.row("2 steps")["range"] == 255


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(NotFound, match="no task 'revert': choose one of"):
        tasks.load("revert")


def test_a_plug_in_that_raises_on_import_stops_only_the_commands_that_need_it(
    codi: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"codi_hub.tasks": {"faulty": "toy_faulty:Task"}, "codi_hub.samplers": {"faulty": "toy_faulty:Walk"}}
    install(tmp_path / "more", monkeypatch, name="toy_faulty", code="raise RuntimeError('boom')", entry_points=points)
    assert codi("task", "list", "--json").code == 0
    assert codi("run", "--help").code == 0
    answer = codi("task", "show", "faulty")
    reason = "toy_faulty:Task cannot be imported (RuntimeError: boom); repair or uninstall its package"
    assert (answer.code, answer.err.splitlines()[-1]) == (1, f"Error: task faulty: {reason}")
