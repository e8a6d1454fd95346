"""The model card: the method in plain words, the loss, the lineage and the scores."""

from typing import Any

import pytest

from codi_hub.record import AdapterRecord, BaseRecord, TrainingRecord
from codi_hub.training.model_card import write_card

SCORES = {"held_out": 4, "by_steps": {"1": {"psnr": 20.0, "adherence": None}, "4": {"psnr": 21.5, "adherence": None}}}


def card(**changes: Any) -> str:
    base = BaseRecord(name="tiny", family="f" * 16, sketch={})
    told: dict[str, Any] = {"task": "depth", "kind": "control", "base": base, "prediction_type": "epsilon", "steps": 4}
    told |= {"config": {"condition_channels": 1}, "method": "pe-codi"} | changes
    return write_card(AdapterRecord(**told), 12_345)


@pytest.mark.parametrize(
    ("method", "words", "absent"),
    [
        ("pe-codi", "PE-CoDi, conditional diffusion distillation of an adapter", "regression"),
        ("codi", "CoDi, conditional diffusion distillation of the whole network", "regression"),
        ("conditional", "not\ndistilled", "conditional diffusion distillation"),
        ("cm", "Song et al., 2023", "Mei et al."),
        ("gd", "Salimans & Ho, 2022", "Mei et al."),
        ("regression", "A regression network, not a distilled diffusion model", "conditional diffusion distillation"),
        ("guidance-only", "not distilled: no consistency term", "conditional diffusion distillation"),
        ("another", "Trained with the method `another`", "Mei et al."),
        ("", "The method was not recorded", "Mei et al."),
    ],
)
def test_the_method_is_named_in_plain_words(method: str, words: str, absent: str) -> None:
    text = card(method=method)
    assert words.replace("\n", " ") in text.replace("\n", " ")
    assert absent not in text
    assert "4 " in text.partition("## Use")[0]
    assert "12,345 parameters" in text


def test_the_loss_the_start_and_the_settings_are_in_a_table() -> None:
    config = {"condition_channels": 3, "start": 0.1, "start_noise": 0.0, "blocks": 2}
    text = card(loss={"guidance": 1.0, "consistency": 0.5}, config=config, training={"batch": 16, "task_options": {}})
    assert "| loss | 1 x guidance + 0.5 x consistency |" in text
    assert "| sampling starts from | the condition without noise, at 0.1 of the schedule |" in text
    assert "| adapter | control, condition channels 3, blocks 2 |" in text
    assert "| settings of the last training | batch 16 |" in text
    assert "| loss | not recorded |" in card()
    assert "| sampling starts from | noise, at the end of the schedule |" in card()
    assert "the condition with 0.2 of that time's noise, at 0.3 of the schedule" in card(
        config={"start": 0.3, "start_noise": 0.2}
    )


def test_every_training_is_a_row_and_their_minutes_are_summed() -> None:
    first = TrainingRecord(method="regression (scene labels)", minutes=16.0, start="random initialisation")
    second = TrainingRecord(
        method="regression", data="9 pairs", minutes=9.5, steps=7, start="from depth:1", task="depth"
    )
    text = card(lineage=[first, second])
    assert "| 1 | not recorded | regression (scene labels) | random initialisation | not recorded |" in text
    assert "| 2 | depth | regression | from depth:1 | 9 pairs | 7 | 9.5 | not recorded |" in text
    assert "25.5 minutes of training in all." in text
    assert "The trainings before these were not recorded." in card(lineage=[second])
    assert "minutes of training in all" not in card(lineage=[second])
    assert "minutes of training in all" not in card(lineage=[first, TrainingRecord(method="regression")])
    assert "The trainings were not recorded." in card()


def test_scores_are_a_table_where_something_was_measured() -> None:
    text = card(metrics=SCORES | {"condition_psnr": 19.0})
    assert "## Scores on 4 held-out pairs" in text
    assert "| steps | psnr |\n|-|-|\n| 1 | 20 |\n| 4 | 21.5 |\n" in text
    assert "The condition itself scores 19.00 dB." in text
    assert "## Scores" not in card()
    assert "## Limits" in card()
