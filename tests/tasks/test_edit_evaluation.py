"""Editing measured: the ground truth passes, doing nothing does not, nor does another edit."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codi_hub import tasks
from codi_hub.data.synthetic.edits import Edit
from codi_hub.errors import UsageError
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.images.filters import smooth
from codi_hub.images.metrics import as_float
from codi_hub.tasks.edit import KINDS, Judge, compare_with_ground_truth, held_out_edits

SIDE = 48


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return held_out_edits(24, SIDE)


def answering(edits: list[Edit], own: Callable[[Edit], np.ndarray]) -> Any:
    """Return an adapter that outputs `own` for each pair of image and instruction, and the image otherwise."""
    answers = {(edit.before.image.tobytes(), edit.instruction): own(edit) for edit in edits}

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        outputs = []
        for condition, prompt in zip(conditions, prompts, strict=True):
            image = (condition * 255 + 0.5).astype(np.uint8)
            outputs.append(as_float(answers.get((image.tobytes(), prompt), image)).astype(np.float32))
        return outputs

    return generate


@pytest.mark.slow
def test_the_ground_truth_passes_and_doing_nothing_does_not(edits: list[Edit]) -> None:
    progress: list[tuple[int, int]] = []
    context = EvaluationContext(
        answering(edits, lambda edit: edit.after.image),
        steps=(1, 4),
        autoencode=lambda images: [smooth(image, 0.7) for image in images],
        on_progress=lambda done, total: progress.append((done, total)),
    )
    report = compare_with_ground_truth(tasks.load("edit", {"keep": 0.0}), edits, context)
    assert [row["name"] for row in report.table.rows] == ["input", "ground truth", "autoencoder", "1 step", "4 steps"]
    assert report.table.columns == [
        "psnr", "ssim", "gmsd", "followed", *KINDS, "shuffled", "kept", "seconds",
    ]  # fmt: skip
    for kind in ("followed", *KINDS):
        assert report.table.row("input")[kind] <= 0.05
        assert report.table.row("ground truth")[kind] >= 0.95
        assert report.table.row("4 steps")[kind] >= 0.95
        assert report.table.row("autoencoder")[kind] >= 0.8
    assert report.table.row("4 steps")["shuffled"] <= 0.05  # with another instruction, this adapter does nothing
    assert report.table.row("ground truth")["kept"] == 1
    assert report.table.row("input")["shuffled"] is None
    assert report.table.row("4 steps")["seconds"] >= 0
    assert progress == [(1, 2), (2, 2)]
    assert list(report.sheet)[1] == f"1: {edits[1].instruction}"
    assert list(report.sheet[f"0: {edits[0].instruction}"]) == ["input", "1 step", "4 steps", "ground truth"]
    document = json.loads(json.dumps(report.details, allow_nan=False))
    assert len(document["figures"]) == len(edits) * 5


@pytest.mark.slow
def test_the_outcome_of_another_instruction_does_not_pass(edits: list[Edit]) -> None:
    passed = []
    for edit in edits:
        judge = Judge(edit)
        others = [image for name, image in edit.outcomes(SIDE) if name != edit.wanted]
        passed += [judge.followed(image) for image in others]
        if edit.kind == "remove":
            passed.append(judge.followed((edit.before.image * 0.3).astype(np.uint8)))
    assert len(passed) > 60
    assert np.mean(passed) <= 0.05


@pytest.mark.slow
def test_another_correct_outcome_passes(edits: list[Edit]) -> None:
    """Another night than the ground truth's, and another shade of the colour."""
    from codi_hub.data.synthetic.edits import recolour_solid, replace_solid
    from codi_hub.data.synthetic.scenes import rendered

    passed = []
    for edit in edits:
        judge = Judge(edit)
        if edit.kind == "time":
            passed += [judge.followed(image) for name, image in edit.outcomes(SIDE) if name == edit.wanted]
        elif edit.kind == "recolour":
            other = replace_solid(
                edit.setting, edit.solid, recolour_solid(np.random.default_rng(9), edit.solid, edit.wanted)
            )
            passed.append(judge.followed(rendered(other, SIDE)[0].image))
        else:  # the ground truth with grain
            grain = np.random.default_rng(9).normal(0, 40, edit.after.image.shape)
            passed.append(judge.followed(np.clip(edit.after.image + grain, 0, 255).astype(np.uint8)))
    assert np.mean(passed) >= 0.9


def test_kept_pixels_are_counted_outside_the_edit(edits: list[Edit]) -> None:
    for edit in edits:
        judge = Judge(edit)
        if edit.kind == "time":
            assert judge.kept(edit.before.image) is None
            continue
        spoilt = edit.after.image.copy()
        spoilt[: SIDE // 2] += 128  # with overflow
        rest = ~judge.touched
        assert judge.kept(edit.after.image) == 1
        assert judge.kept(spoilt) == pytest.approx(rest[SIDE // 2 :].sum() / rest.sum())


def test_held_out_edits_are_reproducible_and_measurable(edits: list[Edit]) -> None:
    again = held_out_edits(3, SIDE)
    assert [edit.instruction for edit in again] == [edit.instruction for edit in edits[:3]]
    assert {edit.kind for edit in edits} == set(KINDS)
    with pytest.raises(UsageError, match=r"count 1: .* at least 2 edits"):
        compare_with_ground_truth(
            tasks.load("edit"), edits[:1], EvaluationContext(answering(edits, lambda edit: edit.after.image))
        )
