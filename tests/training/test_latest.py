"""Which version is the latest after a training, where the one before does not say on which pairs it was measured."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codi_hub.hub import Hub

SMALL: dict[str, Any] = {
    "training": {"train_steps": 1, "batch": 2, "device": "cpu", "precision": "fp32", "sample_every": 0},
    "data": {"count": 24, "size": 32, "workers": 1},
    "adapter": {"kind": "residual", "start": 0.1},
}


@pytest.mark.slow
def test_a_bundled_version_is_measured_on_the_pairs_of_a_training_on_the_tasks_own_data(home: Path) -> None:
    with Hub.open() as hub:
        result = hub.distill("deblur", SMALL)
        assert (result.comparable, result.moved_latest) == (True, False)  # one step against a finished training
        before = result.metrics["latest_before"]
        assert before["adapter"] == result.latest == "deblur:1"
        assert before["score"] > result.score + 1
        row = hub.catalog.registry.adapters.resolve("deblur:2")
        assert row.metrics["latest_before"] == before


@pytest.mark.slow
def test_on_a_users_own_data_it_is_not_and_stays(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    for k in range(6):
        Image.new("RGB", (64, 64), (60 + 20 * k,) * 3).save(tmp_path / "cards" / f"{k}.png")
    with Hub.open() as hub:
        result = hub.distill("deblur", SMALL | {"data": {**SMALL["data"], "source": str(tmp_path / "cards")}})
    assert (result.comparable, result.latest) == (False, "deblur:1")
    assert "latest_before" not in result.metrics
