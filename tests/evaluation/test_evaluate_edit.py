"""Whether an instruction was followed: the truth scores, doing nothing does not, nor does another edit."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codi_hub import tasks
from codi_hub.data.synthetic.edits import Edit
from codi_hub.evaluation.edit import KINDS, Judge, evaluate_edit, held_out_edits
from codi_hub.images.filters import smooth
from codi_hub.images.metrics import as_float

SIDE = 48


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return held_out_edits(24, SIDE)


def answering(edits: list[Edit], own: Callable[[Edit], np.ndarray]) -> Any:
    """An adapter that answers an instruction it knows for the picture with `own`, and leaves the picture otherwise."""
    known = {(edit.before.image.tobytes(), edit.instruction): own(edit) for edit in edits}

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        made = []
        for condition, prompt in zip(conditions, prompts, strict=True):
            picture = (condition * 255 + 0.5).astype(np.uint8)
            made.append(as_float(known.get((picture.tobytes(), prompt), picture)).astype(np.float32))
        return made

    return generate


def test_the_truth_scores_and_doing_nothing_does_not(edits: list[Edit]) -> None:
    told: list[tuple[int, int]] = []
    obedient = answering(edits, lambda edit: edit.after.image)
    report = evaluate_edit(
        edits,
        obedient,
        tasks.load("edit", {"keep": 0.0}),
        steps=(1, 4),
        autoencode=lambda images: [smooth(image, 0.7) for image in images],
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert [row["name"] for row in report.table.rows] == ["input", "twin", "autoencoder", "1 step", "4 steps"]
    assert report.table.columns == ["followed", *KINDS, "shuffled", "kept", "seconds"]
    for kind in ("followed", *KINDS):
        assert report.table.row("input")[kind] <= 0.05
        assert report.table.row("twin")[kind] >= 0.95
        assert report.table.row("4 steps")[kind] >= 0.95
        assert report.table.row("autoencoder")[kind] >= 0.8
    assert report.table.row("4 steps")["shuffled"] <= 0.05  # told something else, this adapter did nothing
    assert report.table.row("twin")["kept"] == 1
    assert report.table.row("input")["shuffled"] is None
    assert report.table.row("4 steps")["seconds"] >= 0
    assert told == [(1, 2), (2, 2)]
    assert list(report.pictures)[1] == f"1: {edits[1].instruction}"
    assert list(report.pictures[f"0: {edits[0].instruction}"]) == ["input", "1 step", "4 steps", "twin"]
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert len(document["figures"]) == len(edits) * 5


def test_the_outcome_of_another_instruction_does_not_score(edits: list[Edit]) -> None:
    passed = []
    for edit in edits:
        judge = Judge(edit)
        others = [picture for name, picture in edit.outcomes(SIDE) if name != edit.wanted]
        passed += [judge.followed(picture) for picture in others]
        if edit.kind == "remove":
            passed.append(judge.followed((edit.before.image * 0.3).astype(np.uint8)))
    assert len(passed) > 60
    assert np.mean(passed) <= 0.05


def test_another_right_answer_scores(edits: list[Edit]) -> None:
    """Another night than the twin's, and another shade of the colour."""
    from codi_hub.data.synthetic.edits import _coloured, _with
    from codi_hub.data.synthetic.scenes import rendered

    passed = []
    for edit in edits:
        judge = Judge(edit)
        if edit.kind == "time":
            passed += [judge.followed(picture) for name, picture in edit.outcomes(SIDE) if name == edit.wanted]
        elif edit.kind == "recolour":
            other = _with(edit.setting, edit.thing, _coloured(np.random.default_rng(9), edit.thing, edit.wanted))
            passed.append(judge.followed(rendered(other, SIDE)[0].image))
        else:  # the same but for grain
            grain = np.random.default_rng(9).normal(0, 40, edit.after.image.shape)
            passed.append(judge.followed(np.clip(edit.after.image + grain, 0, 255).astype(np.uint8)))
    assert np.mean(passed) >= 0.9


def test_what_is_kept_is_counted_outside_the_edit(edits: list[Edit]) -> None:
    for edit in edits:
        judge = Judge(edit)
        if edit.kind == "time":
            assert judge.kept(edit.before.image) is None
            continue
        spoilt = edit.after.image.copy()
        spoilt[: SIDE // 2] += 128  # and round
        rest = ~judge.touched
        assert judge.kept(edit.after.image) == 1
        assert judge.kept(spoilt) == pytest.approx(rest[SIDE // 2 :].sum() / rest.sum())


def test_held_out_edits_are_the_same_again_and_can_be_measured(edits: list[Edit]) -> None:
    again = held_out_edits(3, SIDE)
    assert [edit.instruction for edit in again] == [edit.instruction for edit in edits[:3]]
    assert {edit.kind for edit in edits} == set(KINDS)
    with pytest.raises(ValueError, match="two edits"):
        evaluate_edit(edits[:1], answering(edits, lambda edit: edit.after.image), tasks.load("edit"))
