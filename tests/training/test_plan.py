"""The plan of a distillation: what a configuration leaves open is decided by task, method and kind."""

from pathlib import Path
from typing import Any

import pytest

from codi_hub import DistillConfig
from codi_hub.config.base import BaseOptions
from codi_hub.config.layers import merge, preset_names, read_preset
from codi_hub.errors import UsageError
from codi_hub.record import label
from codi_hub.training.job import Job, Plan, plan

NOWHERE = BaseOptions(source="nowhere")
METHODS = {"inpaint": "pe-codi", "superres-pe-codi": "pe-codi"}  # of presets for a task; the others are regression
BUNDLED = ("superres", "inpaint", "depth", "edit", "canny", "deblur")
OF_A_TASK = {name: name for name in BUNDLED} | {"superres-pe-codi": "superres"}


def planned(task: str, *layers: dict[str, Any], base_kind: str | None = None) -> Plan:
    """Return the plan of a configuration on a base that is not loaded."""
    config = DistillConfig(**merge(layers))
    return plan(Job(task, task, config.task, "nano", NOWHERE, config, Path("unused"), base_kind=base_kind))


@pytest.mark.parametrize("name", OF_A_TASK)
def test_a_preset_for_a_task_trains_what_it_says(name: str) -> None:
    work = planned(OF_A_TASK[name], read_preset(name))
    terms = work.method(work.loss, "cpu").weights()
    method = label(
        work.config.loss.method,
        consistency="consistency" in terms,
        guidance="guidance" in terms,
        start=work.adapter.start,
        start_noise=work.adapter.start_noise,
    )
    assert method == METHODS.get(name, "regression")


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in OF_A_TASK])
def test_the_other_presets_suit_every_task(name: str) -> None:
    for task in BUNDLED:
        assert planned(task, read_preset(name)).loss.consistency == 1.0


@pytest.mark.parametrize(
    ("layer", "rollout"),
    [
        ({}, 0.0),
        ({"adapter": {"start": 0.5}}, 1.0),
        ({"adapter": {"start": 0.5, "start_noise": 0.5}}, 0.0),
        ({"adapter": {"start": 0.5}, "loss": {"shared_t": False}}, 0.0),
        ({"adapter": {"start": 0.5}, "loss": {"rollout": 0.25}}, 0.25),
        ({"loss": {"rollout": 1.0}}, 1.0),
    ],
)
def test_states_of_the_sampler_are_trained_where_it_starts_from_an_image_without_noise(
    layer: dict[str, Any], rollout: float
) -> None:
    work = planned("superres", layer)
    assert work.loss.rollout == work.config.loss.extras["rollout"] == rollout


def test_the_kind_is_the_methods_unless_it_is_set() -> None:
    assert planned("superres").kind == "static"
    assert planned("superres", {"loss": {"method": "conditional"}}).kind == "control"
    assert planned("superres", {"loss": {"method": "codi"}}).kind == "full"
    assert planned("superres", {"adapter": {"kind": "side"}}).kind == "residual"


def test_a_base_with_a_kind_of_its_own_has_it_where_it_is_frozen() -> None:
    assert planned("superres", base_kind="concat").kind == "concat"
    assert planned("superres", {"loss": {"method": "conditional"}}, base_kind="concat").kind == "concat"
    assert planned("superres", {"loss": {"method": "codi"}}, base_kind="concat").kind == "full"
    assert planned("superres", {"adapter": {"kind": "control"}}, base_kind="concat").kind == "control"


def test_a_distilled_base_is_trained_on_its_own_grid() -> None:
    def on(base: dict[str, Any], **loss: Any) -> Plan:
        options = BaseOptions(source="nowhere", **base)
        return plan(Job("superres", "superres", {}, "fast", options, DistillConfig(loss=loss), Path("unused")))

    fast = {"distilled": True, "steps": 4}
    for method in ("pe-codi", "codi"):
        assert (on(fast, method=method).loss.grid, on(fast, method=method).sampling_steps) == (4, 4)
        assert (on({}, method=method).loss.grid, on({"steps": 30}, method=method).loss.grid) == (8, 8)
        assert on(fast, method=method).warning is None
    one = on({"distilled": True, "steps": 1})
    assert (one.loss.grid, one.sampling_steps) == (2, 1)
    assert on(fast, grid=16).loss.grid == 16
    tuned = on(fast, method="conditional")
    assert tuned.sampling_steps == 50
    assert tuned.warning == (
        "base fast is distilled for 4 steps, and method conditional trains it back to 50: use method pe-codi to keep "
        "it fast"
    )
    assert on({}, method="conditional").warning is None


def test_every_field_has_its_value() -> None:
    work = planned("superres", {"adapter": {"kind": "lora"}, "task": {"scale": 2}})
    config = work.config
    assert config.adapter.extras == {
        "fusion": "zero_conv",
        "init": "pretrained",
        "attend": "base",
        "top_down": False,
        "rank": 16,
    }
    assert (config.adapter.start, config.adapter.start_noise) == (1.0, 0.0)
    assert (config.data.source, config.base, config.training.train_steps) == ("leaves", "nano", 2000)
    assert config.task == {"scale": 2}
    assert plan(Job("superres", "superres", config.task, "nano", NOWHERE, config, Path("unused"))).config == config


@pytest.mark.parametrize("layer", [{"attend": "all"}, {"top_down": True}])
def test_a_form_that_is_no_longer_trained_is_refused(layer: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="attend all and top_down"):
        planned("depth", {"adapter": {"kind": "control"} | layer})
