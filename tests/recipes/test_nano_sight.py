"""What edit adapters learn first: labels are those of the picture, texts name what is marked, and folding is exact."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import codi_hub
from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.base import FrozenBase
from codi_hub.data.edits import scene_edit
from codi_hub.data.raycast import things_at
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
        index = edit._setting.world.things.index(edit._thing)
        seen = things_at(edit._setting.world, 64) == index
        changed = np.abs(edit.before.image.astype(int) - edit.after.image).max(-1) > 24
        assert seen.any()
        assert (changed & seen).sum() > 0.8 * changed.sum()
    assert found > 5


def test_labels_are_of_the_things_in_the_caption() -> None:
    whole = sight.labelled(6, 64, seed=3)
    again = sight.labelled(2, 64, seed=3, first=4)
    assert all(np.array_equal(whole[name][4:], part) for name, part in again.items())
    shapes = {"image": (64, 64, 3), "depth": (64, 64, 1), "caption": (), "labels": (32, 32)}
    assert {name: made.shape[1:] for name, made in whole.items()} == shapes
    for labels, caption in zip(whole["labels"], whole["caption"], strict=True):
        classes, counts = np.unique(labels[labels > 0], return_counts=True)
        shape, colour = divmod(int(classes[counts.argmax()]) - 1, len(sight.NAMES))
        assert sight.SHAPES[shape] in caption
        assert sight.NAMES[colour] in caption or "wooden" in caption


def test_a_text_names_what_is_marked_by_its_colour_only_where_it_must() -> None:
    labels = np.zeros((32, 32), np.uint8)
    red, blue = sight.NAMES.index("red"), sight.NAMES.index("blue")
    labels[:8, :8], labels[20:, 20:] = 1 + red, 1 + blue  # two spheres
    labels[20:, :8] = 1 + len(sight.NAMES) + red  # a box
    labels[15, 15] = 1 + 2 * len(sight.NAMES)  # too small to be named
    marked: dict[str, set[str]] = {}
    for seed in range(60):
        text, mask = sight.told(labels, np.random.default_rng(seed))
        where = {(True, False, False): "first", (False, True, False): "second", (False, False, True): "box"}
        key = where.get((bool(mask[0, 0]), bool(mask[30, 30]), bool(mask[30, 0])), "nothing")
        marked.setdefault(key, set()).add(text)
    assert marked["nothing"] == {""}
    assert all("the red sphere" in text for text in marked["first"])
    assert all("the blue sphere" in text for text in marked["second"])
    assert all("the box" in text for text in marked["box"])


def test_normalisation_is_folded_into_what_computes_the_same() -> None:
    base = FrozenBase.load(str(NANO / "base"))
    torch.manual_seed(0)
    adapter = adapters.build("side", base, levels=2, blocks=2, read=True)
    names = [name for name, _ in adapter.named_parameters()]
    learner = sight.Learner(copy.deepcopy(adapter))
    images, prompt = torch.rand(2, 3, 32, 64), base.embed(["a red ball", ""])
    for _ in range(3):  # statistics
        learner(images, prompt)
    torch.nn.init.normal_(learner.adapter.out.weight)
    learner.eval()
    with torch.no_grad():
        expected = learner.adapter.prepare(images, prompt)
        folded = sight.folded(learner.adapter)
        made = folded.prepare(images, prompt)
    assert [name for name, _ in folded.named_parameters()] == names
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize(("task", "channels"), [("edit", 3), ("depth", 1)])
def test_a_short_training_registers_an_adapter_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, channels: int
) -> None:
    shutil.copytree(NANO / "base", tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    for name, value in {"COUNT": 24, "CHUNK": 12, "HELD_OUT": 8, "BATCH": 4}.items():
        monkeypatch.setattr(sight, name, value)
    register_base(tmp_path)
    sight.run(tmp_path, task, minutes=0.01)
    ref = (bundle.run_folder(tmp_path, f"sight-{task}", 1) / bundle.DONE).read_text()
    base = FrozenBase.load(str(NANO / "base"))
    with Registry.open(tmp_path / "home") as registry:
        row = registry.resolve(ref, base=bundle.BASE)
        record = format.read_record(registry.file(row, format.RECORD))
        adapter = format.load(registry.file(row, format.WEIGHTS), record, base)
    assert (row.kind, record.task) == ("side", task)
    z_t, t, prompt = torch.randn(1, 12, 16, 16), torch.tensor([100]), base.embed(["remove the box"])
    with torch.no_grad():  # it changes nothing yet
        assert torch.equal(
            adapter(base, z_t, t, prompt, torch.rand(1, channels, 64, 64)), base.unet(z_t, t, prompt).sample
        )
