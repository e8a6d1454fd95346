"""Edits of scenes: the image changes as the instruction says, and nowhere else."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from codi_hub.data.sources import open_source
from codi_hub.data.synthetic import edits
from codi_hub.data.synthetic.edits import Edit, scene_edit
from codi_hub.data.synthetic.raycast import Solid, World
from codi_hub.data.synthetic.scenes import Setting, light_of, rendered, scene, surface_of
from codi_hub.data.synthetic.scenes_words import COLOURS, TIME_EDITS
from codi_hub.errors import InvalidInput
from codi_hub.tasks import load


@pytest.fixture(scope="module")
def samples() -> list[Edit]:
    return [scene_edit(np.random.default_rng([5, k]), 48) for k in range(40)]


def change(edit: Edit) -> np.ndarray:
    return np.abs(edit.before.image.astype(int) - edit.after.image).max(-1)


def test_every_kind_of_edit_occurs_and_is_visible(samples: list[Edit]) -> None:
    assert {edit.kind for edit in samples} == set(edits.KIND_SHARES)
    assert sum(edits.KIND_SHARES.values()) == pytest.approx(1)
    for edit in samples:
        assert (change(edit) > edits.VISIBLE_CHANGE).mean() >= edits.LEAST_SHARE, edit.instruction


def test_a_solid_changes_colour_and_keeps_its_place(samples: list[Edit]) -> None:
    recoloured = [edit for edit in samples if edit.kind == "recolour"]
    for edit in recoloured:
        assert edit.wanted in COLOURS
        assert edit.instruction.endswith(edit.wanted)
        assert edit.wanted in edit.after.caption
        assert np.array_equal(edit.before.depth, edit.after.depth)


def test_solids_are_removed_and_added(samples: list[Edit]) -> None:
    for edit in samples:
        if edit.kind == "remove":
            assert edit.wanted in edit.instruction
            assert (change(edit) > edits.VISIBLE_CHANGE).mean() < 0.95
            assert edit.after.caption.count(edit.wanted.split()[-1]) < edit.before.caption.count(
                edit.wanted.split()[-1]
            )
        if edit.kind == "add":
            assert edit.instruction in (f"add a {edit.wanted}", f"add an {edit.wanted}")
            assert edit.wanted in edit.after.caption
            assert edit.wanted not in edit.before.caption


def test_another_time_of_day_changes_the_light_alone(samples: list[Edit]) -> None:
    timed = [edit for edit in samples if edit.kind == "time"]
    for edit in timed:
        assert edit.instruction in TIME_EDITS[edit.wanted]
        assert np.array_equal(edit.before.depth, edit.after.depth)
    nights = [edit for edit in timed if edit.wanted == "night"]
    assert all(edit.after.image.mean() < edit.before.image.mean() for edit in nights)


def test_outcomes_of_other_instructions(samples: list[Edit]) -> None:
    recolour = next(edit for edit in samples if edit.kind == "recolour")
    coloured = list(recolour.outcomes(24))
    assert [name for name, _ in coloured] == [*COLOURS] * edits.SAMPLES
    assert not np.array_equal(coloured[0][1], coloured[len(COLOURS)][1])  # another shade
    time = next(edit for edit in samples if edit.kind == "time")
    outcomes = list(time.outcomes(24))
    assert sorted(name for name, _ in outcomes) == sorted([*TIME_EDITS] * edits.SAMPLES)
    assert outcomes[0][1].shape == (24, 24, 3)
    assert all(not list(edit.outcomes(24)) for edit in samples if edit.kind in ("add", "remove"))


def test_edits_are_reproducible() -> None:
    one, two = (scene_edit(np.random.default_rng(8), 32) for _ in range(2))
    assert (one.instruction, one.kind, one.wanted) == (two.instruction, two.kind, two.wanted)
    assert np.array_equal(one.after.image, two.after.image)


def test_scenes_equal_those_of_the_bundled_models_training() -> None:
    drawn = [scene(np.random.default_rng([1, k]), 32) for k in range(3)]
    words = hashlib.sha256("|".join(one.caption for one in drawn).encode()).hexdigest()[:12]
    assert words == "923050eef19b"
    assert [float(one.image.mean()) for one in drawn] == pytest.approx([176.9, 111.3, 138.8], abs=0.5)


def test_a_removal_reveals_no_solid_that_was_hidden_before() -> None:
    light = light_of(np.random.default_rng(0), "day")
    stone, small = (surface_of(np.random.default_rng(0), "", COLOURS[colour], 0.3) for colour in ("gray", "red"))
    box = Solid("box", (0.0, 2.0), (0.8, 0.8, 0.2), 0.0, stone, ("large", "gray", ""))
    hidden = Solid("sphere", (0.0, 3.0), (0.3, 0.3, 0.3), 0.0, small, ("small", "red", ""))
    world = World(0.8, 0.0, 0.6, stone, light, (box, hidden))
    setting = Setting(world, "gravel", "", "day")
    behind = edits.remove_solid(setting, box, rendered(setting, 48)[1], 48)
    assert "sphere" not in behind[1].caption
    assert [t.shape for t in behind[0].world.solids] == ["box"]
    beside = replace(hidden, at=(0.9, 2.0))
    setting = replace(setting, world=replace(world, solids=(box, beside)))
    visible = edits.remove_solid(setting, box, rendered(setting, 48)[1], 48)
    assert visible[0] == setting
    assert "sphere" in visible[1].caption


def test_removals_as_a_source_of_pairs_beside_all_edits() -> None:
    source = open_source("edits+removals", load("edit"), count=12, size=32, seed=4)
    verbs = [source[k]["edit_prompt"].split()[0] for k in range(12)]
    assert set(verbs[1::2]) <= {"remove", "take", "delete"}
    assert not set(verbs[::2]) <= {"remove", "take", "delete"}


def test_edits_as_a_source_of_pairs() -> None:
    source = open_source("edits", load("edit"), count=3, size=32, seed=4)
    example = source[1]
    assert set(example) == {"image", "caption", "edited", "edit_prompt"}
    assert example["image"].shape == example["edited"].shape == (32, 32, 3)
    assert np.array_equal(source[1]["edited"], example["edited"])
    with pytest.raises(InvalidInput, match="task edit needs data with 'edited'; this has caption, depth, image"):
        open_source("scenes", load("edit"), size=32)
