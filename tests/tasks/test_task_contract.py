"""What every task promises, whatever it does."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.sources import GENERATORS
from codi_hub.data.synthetic.edits import scene_edit
from codi_hub.data.synthetic.scenes import scene
from codi_hub.errors import NotFound, UsageError
from codi_hub.tasks import Task

SIDE = 64
UNTOLD = ("colorize", "pairs")  # of which nothing but the true target says how good an output is


@pytest.fixture(params=sorted(tasks.builtin()))
def task(request: pytest.FixtureRequest) -> Task:
    return tasks.load(request.param)


@pytest.fixture
def example(task: Task) -> dict:
    """A scene and its edited twin; for a task without data of its own, as half of a pair."""
    made = scene_edit(np.random.default_rng(3), SIDE)
    before = made.before
    given: dict = {"edited": made.after.image, "edit_prompt": made.instruction}
    if task.data is None:
        given["condition"] = before.image[::-1].copy()
    return {"image": before.image, "depth": before.depth, "caption": before.caption} | given


def readable(task: Task, picture: np.ndarray) -> np.ndarray:
    """The picture, with a transparent part for a task that works on those."""
    if not task.reads_alpha:
        return picture
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    alpha[: (len(alpha) + 1) // 2] = 0
    return np.dstack([picture, alpha])


def test_it_says_what_it_is(task: Task) -> None:
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
    picture = readable(task, np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))
    for image in (picture, Image.fromarray(picture)):
        prepared = task.prepare(image, rng=np.random.default_rng(0))
        condition = prepared.condition
        assert condition.dtype == np.float32
        assert condition.shape == (prepared.size[1], prepared.size[0], task.condition_channels)
        assert np.isfinite(condition).all()
        assert condition.min() >= 0
        assert condition.max() <= 1


def test_finished_picture_is_8_bit_whatever_the_networks_make(task: Task) -> None:
    prepared = task.prepare(readable(task, np.full((16, 24, 3), 90, np.uint8)))
    width, height = prepared.size
    output = np.random.default_rng(2).uniform(-0.5, 1.5, (height, width, 3)).astype(np.float32)
    kept = output.copy()
    picture = task.finish(output, prepared)
    assert picture.dtype == np.uint8
    assert picture.shape == (height, width, 3)
    assert np.array_equal(output, kept)


def test_a_condition_in_8_bits_and_in_floats_is_finished_alike(task: Task) -> None:
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


def test_adherence_if_it_can_be_told_prefers_the_target_to_anything_else(task: Task, example: dict) -> None:
    pair = task.make_pair(example, np.random.default_rng(0))
    condition = pair.condition.astype(np.float32) / 255
    own = task.adherence(pair.target.astype(np.float32) / 255, condition)
    others = [scene(np.random.default_rng(seed), SIDE).image for seed in (10, 11, 12)]
    found = [task.adherence(other.astype(np.float32) / 255, condition) for other in others]
    assert (own is None and found == [None] * 3) if task.name in UNTOLD else own > max(found)


def test_score_is_one_of_the_metrics(task: Task) -> None:
    assert task.latest_score({task.score: 0.5, "other": 1.0}) == 0.5
    assert task.latest_score({}) is None


def test_loaded_file_prepares(task: Task, tmp_path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(readable(task, np.random.default_rng(4).integers(0, 256, (12, 20, 3), np.uint8))).save(path)
    prepared = task.prepare(task.load(path), path=path)
    assert prepared.condition.ndim == 3
    assert not task.is_sidecar(path)
    assert list(task.companions(path)) == []


def test_unknown_option_names_the_known_ones(task: Task) -> None:
    with pytest.raises(UsageError) as caught:
        tasks.load(task.name, {"nonsense": 1})
    assert str(caught.value).startswith(f"task {task.name}: no option 'nonsense'; it has ")
    assert str(caught.value).endswith(", ".join(task.Options.model_fields) or "none")


def test_options_come_back_as_stored(task: Task) -> None:
    stored = task.options.model_dump(mode="json")
    assert tasks.load(task.name, stored).options == task.options


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"no task 'nope' to be like; there are .*depth.*superres"):
        tasks.load("nope")


def test_tasks_bring_in_no_torch() -> None:
    code = "import sys; from codi_hub import tasks; tasks.load('depth'); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
