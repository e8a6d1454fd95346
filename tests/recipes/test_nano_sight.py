"""What edit, depth and canny adapters learn first: labels are those of the picture, and what is named is marked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import codi_hub
from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.backbones.unet import FrozenBase
from codi_hub.data.synthetic.edits import scene_edit
from codi_hub.data.synthetic.raycast import solid_map
from codi_hub.inference.engine import Engine
from codi_hub.registry import Registry
from recipes.nano import bundle, sight
from recipes.nano.__main__ import register_base

NANO = Path(codi_hub.__file__).parent / "nano"


def test_a_thing_is_seen_where_its_picture_changes_with_it() -> None:
    """Painted over, a thing changes where it is seen, and in what mirrors it or is lit by it."""
    found = 0
    for seed in range(40):
        edit = scene_edit(np.random.default_rng([7, seed]), 64)
        if edit.kind != "recolour":
            continue
        found += 1
        index = edit.setting.world.solids.index(edit.solid)
        seen = solid_map(edit.setting.world, 64) == index
        changed = np.abs(edit.before.image.astype(int) - edit.after.image).max(-1) > 24
        assert seen.any()
        assert (changed & seen).sum() > 0.8 * changed.sum()
    assert found > 5


def test_edits_are_labelled_with_what_is_seen_and_marked_where_they_name_it() -> None:
    whole = sight.labelled("edit", 40, 64, seed=3)
    again = sight.labelled("edit", 2, 64, seed=3, first=38)
    assert all(np.array_equal(whole[name][38:], part) for name, part in again.items())
    shapes = {name: made.shape[1:] for name, made in whole.items()}
    assert shapes["condition"] == shapes["target"] == (64, 64, 3)
    assert shapes["labels"] == shapes["marked"] == (32, 32)
    named = 0
    for k, instruction in enumerate(whole["prompt"]):
        labels, marked = whole["labels"][k], whole["marked"][k]
        classes, counts = np.unique(labels[labels > 0], return_counts=True)
        shape, colour = divmod(int(classes[counts.argmax()]) - 1, len(sight.NAMES))
        caption = scene_edit(np.random.default_rng([3, k]), 64, sight.SHARES).before.caption
        assert sight.SHAPES[shape] in caption
        assert sight.NAMES[colour] in caption or "wooden" in caption
        assert whole["removes"][k] == instruction.startswith(("remove", "delete", "take"))
        if marked.any():
            named += 1
            (kind,) = {int(label) for label in labels[marked]}
            assert sight.SHAPES[(kind - 1) // len(sight.NAMES)] in instruction
        else:
            assert any(word in instruction for word in ("add", "fog", "day", "night", "sunset"))
    assert named > 10


@pytest.mark.parametrize("task", ["depth", "canny"])
def test_scenes_are_labelled_as_their_edits_are_and_nothing_is_named(task: str) -> None:
    made, edits = sight.labelled(task, 6, 64, seed=3), sight.labelled("edit", 6, 64, seed=3)
    assert made["condition"].shape[1:] == (64, 64, 1)
    assert np.array_equal(made["target"], edits["condition"])
    assert np.array_equal(made["labels"], edits["labels"])
    assert not made["marked"].any()
    assert not made["removes"].any()
    assert list(made["prompt"]) == [
        scene_edit(np.random.default_rng([3, k]), 64, sight.SHARES).before.caption for k in range(6)
    ]


@pytest.mark.parametrize("task", ["edit", "depth"])
def test_a_short_training_registers_an_adapter_to_go_on_from(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(NANO / "base", tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    for name, value in {"COUNTS": {32: 24, 64: 24}, "CHUNK": 12, "HELD_OUT": 8, "CELLS": 512}.items():
        monkeypatch.setattr(sight, name, value)
    register_base(tmp_path)
    sight.run(tmp_path, task, sight.Sight(0.05, [sight.Pass(0.01, (32,)), sight.Pass(0.01, (32, 64))]), times=1)
    assert (tmp_path / f"sight-{task}" / "2" / "checkpoint.pt").exists()
    ref = (bundle.run_folder(tmp_path, f"sight-{task}", 1) / bundle.DONE).read_text()
    base = FrozenBase.load(str(NANO / "base"))
    base._prompts.clear()
    with Registry.open(tmp_path / "home") as registry:
        row = registry.resolve(ref, base=bundle.BASE)
        record = format.read_record(registry.file(row, format.RECORD))
        adapter = format.load(registry.file(row, format.WEIGHTS), record, base)
    assert (row.kind, record.task) == ("side", task)
    with torch.no_grad():
        first, added = adapter.prepare(
            torch.rand(1, {"edit": 3, "depth": 1}[task], 64, 64), base.embed(["remove the box"])
        )
    assert first.abs().max() == 0  # what it paints is added to the prediction
    assert added.abs().max() > 0
    terms = ("seen", "pointed", "painted") if task == "edit" else ("seen", "painted")
    assert record.metrics.keys() == {f"{term}, {size} px" for term in terms for size in (32, 64)}


def test_what_the_base_makes_alone_is_what_an_adapter_that_adds_nothing_makes() -> None:
    base = FrozenBase.load(str(NANO / "base"))
    adapter = adapters.build("side", base, **sight.FORM, start=0.05)
    made = sight.labelled("edit", 3, 64, seed=3)
    condition = torch.from_numpy(made["condition"]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        source, prompt = base.encode(condition), base.embed(list(made["prompt"]))
        top = torch.tensor([adapter.horizon(len(base.schedule)) - 1])
        data = {"x": source, "source": source, "prompt": prompt, "prompt_of": torch.arange(3)}
        alone = base.decode(sight._alone(base, data, top).float()).permute(0, 2, 3, 1).numpy()
    pictures = [picture / np.float32(255) for picture in made["condition"]]
    expected = Engine(base).generate(adapter, pictures, list(made["prompt"]), [0, 0, 0], steps=1)
    assert np.abs(alone - np.stack(expected)).max() < 0.05  # one is of bfloat16
    assert np.abs(alone - np.stack(pictures)).mean() > 2 * np.abs(alone - np.stack(expected)).mean()


@pytest.mark.parametrize(("share", "expected"), [(None, 0.25), (0.6, 0.6)])
def test_batches_hold_the_share_of_removals_asked_for_and_nothing_held_out(
    share: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sight, "HELD_OUT", 8)
    removes = np.arange(416) % 4 == 0
    rows = np.concatenate([sight._rows(removes, 24, share, number) for number in range(80)])
    assert len(rows) == 80 * 24
    assert rows.min() == 16
    assert rows.max() == 415
    assert abs(removes[rows].mean() - expected) < 0.05


def test_a_mirror_turns_pictures_and_what_is_said_of_their_sides() -> None:
    pictures = np.arange(12).reshape(2, 2, 3)
    assert sight.mirrored(pictures)[0::2].tolist() == pictures.tolist()
    assert sight.mirrored(pictures)[1::2].tolist() == pictures[:, :, ::-1].tolist()
    texts = np.array(["a box to the left of a cone", "a bright cone", "to the right"])
    turned = ["a box to the right of a cone", "a bright cone", "to the left"]
    assert sight.mirrored(texts).tolist() == [text for pair in zip(texts, turned, strict=True) for text in pair]
