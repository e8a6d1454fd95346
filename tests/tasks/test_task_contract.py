"""The contract of every task."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.sources import GENERATORS
from codi_hub.data.synthetic.edits import scene_edit
from codi_hub.data.synthetic.scenes import scene
from codi_hub.errors import NotFound, UsageError
from codi_hub.evaluation import metrics
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.tasks import Task

SIDE = 64
UNDEFINED = ("colorize", "pairs")  # tasks without a measure of adherence


@pytest.fixture(params=sorted(tasks.builtin()))
def task(request: pytest.FixtureRequest) -> Task:
    return tasks.load(request.param)


@pytest.fixture
def example(task: Task) -> dict:
    """Return a scene with its edit and, for a task without data of its own, a condition."""
    edit = scene_edit(np.random.default_rng(3), SIDE)
    before = edit.before
    extra: dict = {"edited": edit.after.image, "edit_prompt": edit.instruction}
    if task.data is None:
        extra["condition"] = before.image[::-1].copy()
    return {"image": before.image, "depth": before.depth, "caption": before.caption} | extra


def readable(task: Task, image: np.ndarray) -> np.ndarray:
    """Return the image, with a transparent part if the task reads alpha."""
    if not task.reads_alpha:
        return image
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    alpha[: (len(alpha) + 1) // 2] = 0
    return np.dstack([image, alpha])


def test_it_describes_itself(task: Task) -> None:
    assert task.summary
    assert "\n" not in task.summary
    assert set((task.data or "leaves").split("+")) <= set(GENERATORS)
    assert task.uses_prompt or not task.needs_prompt
    assert ".png" in task.input_extensions
    assert all(ext.startswith(".") and ext == ext.lower() for ext in task.input_extensions)
    assert all(field.description for field in task.Options.model_fields.values())


def test_pair_has_one_size_and_the_declared_channels(task: Task, example: dict) -> None:
    pair = task.make_pair(example, np.random.default_rng(0))
    assert pair.target.dtype == pair.condition.dtype == np.uint8
    assert pair.target.shape == (SIDE, SIDE, 3)
    assert pair.condition.shape == (SIDE, SIDE, task.condition_channels)
    assert pair.prompt in ((example["caption"], example["edit_prompt"]) if task.uses_prompt else ("",))


def test_pair_depends_on_the_generator_alone(task: Task, example: dict) -> None:
    before = {key: np.copy(value) for key, value in example.items()}
    one, again = (task.make_pair(example, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one.condition, again.condition)
    assert np.array_equal(one.target, again.target)
    assert all(np.array_equal(before[key], example[key]) for key in before)


@pytest.mark.parametrize("size", [(48, 32), (33, 17), (1, 1)])
def test_prepared_condition_is_what_the_networks_take(task: Task, size: tuple[int, int]) -> None:
    width, height = size
    pixels = readable(task, np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))
    for image in (pixels, Image.fromarray(pixels)):
        prepared = task.prepare(image, rng=np.random.default_rng(0))
        condition = prepared.condition
        assert condition.dtype == np.float32
        assert condition.shape == (prepared.size[1], prepared.size[0], task.condition_channels)
        assert np.isfinite(condition).all()
        assert condition.min() >= 0
        assert condition.max() <= 1


def test_a_finished_image_is_8_bit_for_any_output(task: Task) -> None:
    prepared = task.prepare(readable(task, np.full((16, 24, 3), 90, np.uint8)))
    width, height = prepared.size
    output = np.random.default_rng(2).uniform(-0.5, 1.5, (height, width, 3)).astype(np.float32)
    kept = output.copy()
    image = task.finish(output, prepared)
    assert image.dtype == np.uint8
    assert image.shape == (height, width, 3)
    assert np.array_equal(output, kept)


def test_conditions_in_8_bits_and_floats_are_finished_alike(task: Task) -> None:
    eight = task.prepare(readable(task, np.random.default_rng(5).integers(0, 256, (32, 24, 3), np.uint8)))
    floats = replace(eight, values=eight.condition)
    shape = (eight.size[1], eight.size[0], 3)
    outputs = [np.random.default_rng(seed).random(shape, np.float32) for seed in (6, 7)]
    assert not task.untouched(eight)
    assert not task.untouched(floats)
    one, other = ([task.finish(output, prepared) for prepared in (eight, floats)] for output in outputs)
    assert np.array_equal(*one)
    assert np.array_equal(*other)
    assert not np.array_equal(one[0], other[0])


def test_adherence_prefers_the_target_to_other_images(task: Task, example: dict) -> None:
    pair = task.make_pair(example, np.random.default_rng(0))
    condition = pair.condition.astype(np.float32) / 255
    own = task.adherence(pair.target.astype(np.float32) / 255, condition)
    others = [scene(np.random.default_rng(seed), SIDE).image for seed in (10, 11, 12)]
    values = [task.adherence(other.astype(np.float32) / 255, condition) for other in others]
    assert (own is None and values == [None] * 3) if task.name in UNDEFINED else own > max(values)


def test_score_is_one_of_the_metrics(task: Task) -> None:
    assert task.latest_score({task.score: 0.5, "other": 1.0}) == 0.5
    assert task.latest_score({}) is None


def test_a_loaded_file_is_prepared(task: Task, tmp_path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(readable(task, np.random.default_rng(4).integers(0, 256, (12, 20, 3), np.uint8))).save(path)
    prepared = task.prepare(task.load(path), path=path)
    assert prepared.condition.ndim == 3
    assert not task.is_sidecar(path)
    assert list(task.companions(path)) == []


def test_an_unknown_option_names_the_options(task: Task) -> None:
    with pytest.raises(UsageError) as caught:
        tasks.load(task.name, {"nonsense": 1})
    assert str(caught.value).startswith(f"task {task.name}: no option 'nonsense'; it has ")
    assert str(caught.value).endswith(", ".join(task.Options.model_fields) or "none")


def test_options_survive_storage(task: Task) -> None:
    stored = task.options.model_dump(mode="json")
    assert tasks.load(task.name, stored).options == task.options


def test_an_unknown_task_names_the_tasks() -> None:
    with pytest.raises(NotFound, match=r"no task 'nope': choose one of .*depth.*superres"):
        tasks.load("nope")


def test_tasks_import_no_torch() -> None:
    code = (
        "import sys; from codi_hub import tasks; tasks.option_flags(); tasks.columns(); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


@pytest.mark.slow
def test_every_task_has_an_evaluation_with_described_columns(task: Task, example: dict, tmp_path: Path) -> None:
    data = None
    if task.data is None:
        for name, pixels in (("condition", example["condition"]), ("target", example["image"])):
            (tmp_path / name).mkdir()
            for k in range(2):
                Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
        data = str(tmp_path)
    elif task.baselines:
        Image.fromarray(example["image"]).save(tmp_path / "a.png")
        data = str(tmp_path / "a.png")

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        assert len(conditions) == len(prompts) == len(seeds)
        return [np.full((*condition.shape[:2], 3), 1 / steps, np.float32) for condition in conditions]

    measured = task.evaluate(EvaluationContext(generate, steps=(1, 4), count=2, size=32, data=data))
    assert {"1 step", "4 steps", *task.baselines} <= {row["name"] for row in measured.table.rows}
    described = metrics.columns() | dict(task.columns)
    assert {column.removesuffix("_delta") for column in measured.table.columns} <= set(described)
    assert all(len(images) == len(measured.references) for images in measured.outputs.values())
    assert measured.sheet
