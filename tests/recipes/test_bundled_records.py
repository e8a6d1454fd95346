"""The records and cards of the bundled adapters say how they were trained."""

import json
from pathlib import Path

import pytest

import codi_hub
from codi_hub.record import read_record

NANO = Path(codi_hub.__file__).parent / "nano"
ENTRIES = {entry["task"]: entry for entry in json.loads((NANO / "manifest.json").read_text())["adapters"]}
REGRESSION, PE_CODI = {"guidance": 1.0}, {"guidance": 1.0, "consistency": 1.0}
# method, loss, methods of the lineage, minutes of training in all
TRAINED = {
    "superres": ("regression", REGRESSION, ["regression"], 60),
    "deblur": ("regression", REGRESSION, ["regression"] * 2, 72),
    "inpaint": ("pe-codi", PE_CODI, ["pe-codi"] * 2, 48),
    "depth": ("regression", REGRESSION, ["regression (scene labels)", "regression", "regression"], 47),
    "canny": ("regression", REGRESSION, ["regression (scene labels)", "regression", "regression"], 40),
    "edit": ("regression", REGRESSION, ["regression (scene labels)"] * 3 + ["regression"] * 7, 366),
}


@pytest.mark.parametrize("task", TRAINED)
def test_a_bundled_record_has_its_method_its_loss_and_its_whole_lineage(task: str) -> None:
    method, loss, methods, minutes = TRAINED[task]
    record = read_record(NANO / task / "adapter.json")
    assert json.loads((NANO / task / "adapter.json").read_text())["format_version"] == 2
    assert (record.method, record.loss) == (method, loss)
    assert [one.method for one in record.lineage] == methods
    assert sum(one.minutes or 0 for one in record.lineage) == minutes
    assert record.lineage[0].start.endswith(" initialisation")  # nothing before it
    assert record.lineage[-1].task == task
    assert (ENTRIES[task]["kind"], ENTRIES[task]["method"], ENTRIES[task]["version"]) == (record.kind, method, 1)


@pytest.mark.parametrize("task", TRAINED)
def test_a_bundled_card_names_the_method(task: str) -> None:
    method, _, methods, minutes = TRAINED[task]
    card = (NANO / task / "README.md").read_text()
    assert ("regression network" in card) == (method == "regression")
    assert ("conditional diffusion distillation" in card) == (method == "pe-codi")
    assert f"{minutes} minutes of training in all" in card
    assert f"| {len(methods)} | " in card.partition("## Trainings")[2]
    assert "## The bundled models against their goals" in card


def test_every_bundled_adapter_is_checked_here() -> None:
    assert set(TRAINED) == set(ENTRIES)
