"""Pretraining on scene labels: the labels match the image, and the object that an instruction names is marked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import codi_hub
from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.backbones import load
from codi_hub.data.synthetic.edits import scene_edit
from codi_hub.data.synthetic.raycast import solid_map
from codi_hub.inference.engine import Engine, Request, Sampling
from codi_hub.registry import Registry
from recipes.nano import bundle, pretraining
from recipes.nano.__main__ import register_base

NANO = Path(codi_hub.__file__).parent / "nano"


def test_an_object_is_visible_where_the_image_changes_with_it() -> None:
    """A recoloured object changes where it is visible, in its reflections, and in the light it reflects."""
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


@pytest.mark.slow
def test_edits_have_labels_of_what_is_visible_and_a_mask_of_the_named_object() -> None:
    whole = pretraining.labelled("edit", 40, 64, seed=3)
    again = pretraining.labelled("edit", 2, 64, seed=3, first=38)
    assert all(np.array_equal(whole[name][38:], part) for name, part in again.items())
    shapes = {name: made.shape[1:] for name, made in whole.items()}
    assert shapes["condition"] == shapes["target"] == (64, 64, 3)
    assert shapes["labels"] == shapes["marked"] == (32, 32)
    named = 0
    for k, instruction in enumerate(whole["prompt"]):
        labels, marked = whole["labels"][k], whole["marked"][k]
        classes, counts = np.unique(labels[labels > 0], return_counts=True)
        shape, colour = divmod(int(classes[counts.argmax()]) - 1, len(pretraining.NAMES))
        caption = scene_edit(np.random.default_rng([3, k]), 64, pretraining.SHARES).before.caption
        assert pretraining.SHAPES[shape] in caption
        assert pretraining.NAMES[colour] in caption or "wooden" in caption
        assert whole["removes"][k] == instruction.startswith(("remove", "delete", "take"))
        if marked.any():
            named += 1
            (kind,) = {int(label) for label in labels[marked]}
            assert pretraining.SHAPES[(kind - 1) // len(pretraining.NAMES)] in instruction
        else:
            assert any(word in instruction for word in ("add", "fog", "day", "night", "sunset"))
    assert named > 10


@pytest.mark.parametrize("task", ["depth", "canny"])
def test_scenes_have_the_labels_of_their_edits_and_no_mask(task: str) -> None:
    made, edits = pretraining.labelled(task, 6, 64, seed=3), pretraining.labelled("edit", 6, 64, seed=3)
    assert made["condition"].shape[1:] == (64, 64, 1)
    assert np.array_equal(made["target"], edits["condition"])
    assert np.array_equal(made["labels"], edits["labels"])
    assert not made["marked"].any()
    assert not made["removes"].any()
    assert list(made["prompt"]) == [
        scene_edit(np.random.default_rng([3, k]), 64, pretraining.SHARES).before.caption for k in range(6)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["edit", "depth"])
def test_a_short_pretraining_registers_an_adapter_to_start_from(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(NANO / "base", tmp_path / "base")
    (tmp_path / "images").mkdir()
    for name, value in {"CHUNK": 12, "HELD_OUT": 8, "CELLS": 512}.items():
        monkeypatch.setattr(pretraining, name, value)
    register_base(tmp_path)
    phases = [pretraining.Phase(0.01, (32,)), pretraining.Phase(0.01, (32, 64))]
    pretraining.run(tmp_path, task, pretraining.Pretraining(0.05, phases), times=1, counts={32: 24, 64: 24})
    assert (tmp_path / f"pretraining-{task}" / "2" / "checkpoint.pt").exists()
    ref = (bundle.run_folder(tmp_path, f"pretraining-{task}", 1) / bundle.DONE).read_text()
    base = load(str(NANO / "base"))
    with Registry.open(tmp_path / "home") as registry:
        row = registry.adapters.resolve(ref, base=bundle.BASE)
        record = format.read_record(registry.adapters.file(row, format.RECORD))
        adapter = format.load(registry.adapters.file(row, format.WEIGHTS), record, base)
    assert (row.kind, record.task, record.method) == ("residual", task, "regression")
    assert [one.method for one in record.lineage] == ["regression (scene labels)"] * 2
    assert [one.start for one in record.lineage] == ["random initialisation", "from the training before"]
    with torch.no_grad():
        first, added = adapter.prepare(
            base, torch.rand(1, {"edit": 3, "depth": 1}[task], 64, 64), base.embed(["remove the box"])
        )
    assert first.abs().max() == 0  # the residual is added to the prediction alone
    assert added.abs().max() > 0
    terms = ("labels", "pointing", "painting") if task == "edit" else ("labels", "painting")
    assert record.metrics.keys() == {f"{term}, {size} px" for term in terms for size in (32, 64)}


def test_latents_of_the_base_alone_are_those_of_an_adapter_that_adds_nothing() -> None:
    base = load(str(NANO / "base"))
    adapter = adapters.build("residual", base, **pretraining.FORM, start=0.05)
    made = pretraining.labelled("edit", 3, 64, seed=3)
    condition = torch.from_numpy(made["condition"]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        source, prompt = base.encode(condition), base.embed(list(made["prompt"]))
        top = torch.tensor(base.schedule.grid(1, adapter.start))
        data = {"x": source, "source": source, "prompt": prompt["context"], "prompt_of": torch.arange(3)}
        alone = base.decode(pretraining.base_alone(base, data, top).float()).permute(0, 2, 3, 1).numpy()
    images = [image / np.float32(255) for image in made["condition"]]
    requests = [Request(image, adapter, prompt) for image, prompt in zip(images, made["prompt"], strict=True)]
    expected = Engine(base).generate(requests, Sampling(1)).images
    assert np.abs(alone - np.stack(expected)).max() < 0.05  # one is of bfloat16
    assert np.abs(alone - np.stack(images)).mean() > 2 * np.abs(alone - np.stack(expected)).mean()


@pytest.mark.parametrize(("share", "expected"), [(None, 0.25), (0.6, 0.6)])
def test_batches_have_the_requested_share_of_removals_and_no_held_out_pair(
    share: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "HELD_OUT", 8)
    removes = np.arange(416) % 4 == 0
    rows = np.concatenate([pretraining.sample_rows(removes, 24, share, number) for number in range(80)])
    assert len(rows) == 80 * 24
    assert rows.min() == 16
    assert rows.max() == 415
    assert abs(removes[rows].mean() - expected) < 0.05


def test_mirroring_flips_images_and_the_sides_in_their_prompts() -> None:
    images = np.arange(12).reshape(2, 2, 3)
    assert pretraining.mirrored(images)[0::2].tolist() == images.tolist()
    assert pretraining.mirrored(images)[1::2].tolist() == images[:, :, ::-1].tolist()
    texts = np.array(["a box to the left of a cone", "a bright cone", "to the right"])
    turned = ["a box to the right of a cone", "a bright cone", "to the left"]
    assert pretraining.mirrored(texts).tolist() == [text for pair in zip(texts, turned, strict=True) for text in pair]
