"""The card of a base: few-step bases that are recognised, and the values that are set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import flux
from PIL import Image

from codi_hub import backbones
from codi_hub.backbones.card import recognised
from codi_hub.backbones.parts import ModelFiles
from codi_hub.config.base import BaseOptions
from codi_hub.errors import UsageError

SCHNELL = {"guidance_embeds": False}, {"shift": 1.0, "use_dynamic_shifting": False}


def files(scheduler: str = "DDIMScheduler", transformer: Any = None, sampling: Any = None) -> ModelFiles:
    configs = {"scheduler": sampling or {}} | ({"transformer": transformer} if transformer else {})
    classes = {"scheduler": scheduler} | ({"transformer": "FluxTransformer2DModel"} if transformer else {})
    return ModelFiles(Path("nowhere"), "", configs, classes)


@pytest.mark.parametrize(
    ("source", "seen", "card"),
    [
        ("owner/sd15", files(), {}),
        ("owner/sd15", files("EulerDiscreteScheduler", sampling={"timestep_spacing": "trailing"}), {}),
        ("owner/some-lcm", files("LCMScheduler"), {"distilled": True, "steps": 4}),
        ("stabilityai/sdxl-turbo", files(), {"distilled": True, "steps": 4}),
        ("/hub/models--stabilityai--sdxl-turbo/snapshots/0ab1", files(), {"distilled": True, "steps": 4}),
        ("/models/sd_xl_turbo_1.0_fp16.safetensors", files(), {"distilled": True, "steps": 4}),
        ("/models/Z-Image-Turbo", files(), {"distilled": True, "steps": 8}),
        ("/models/sdxl_lightning_8step.safetensors", files(), {"distilled": True, "steps": 8}),
        ("/models/my-turbo-car", files(), {}),
        ("/models/flux", files("FlowMatchEulerDiscreteScheduler", *SCHNELL), {"distilled": True, "steps": 4}),
        ("/models/flux", files("FlowMatchEulerDiscreteScheduler", {"guidance_embeds": True}, SCHNELL[1]), {}),
    ],
    ids=str,
)
def test_a_distilled_base_is_recognised_where_that_is_certain(source: str, seen: Any, card: dict[str, Any]) -> None:
    assert recognised(seen, BaseOptions(source=source)).card() == card


def test_what_was_asked_for_stays() -> None:
    asked = {"distilled": True, "steps": 2, "guidance": 3.0}
    assert recognised(files("LCMScheduler"), BaseOptions(source="a/b", **asked)).card() == asked
    assert recognised(files(), BaseOptions(source="a/b", distilled=True)).card() == {"distilled": True, "steps": 4}


def test_steps_of_a_base_that_is_not_distilled_are_refused() -> None:
    with pytest.raises(UsageError, match="steps 30: only a distilled base"):
        recognised(files(), BaseOptions(source="a/b", steps=30))
    fused = BaseOptions(source="a/sdxl", loras=["/l/sdxl_lightning_2step_lora.safetensors:0.9"])
    assert recognised(files(), fused).card() == {"distilled": True, "steps": 2}


def test_shift_and_guidance_are_set_on_the_loaded_base(tmp_path: Path, base_folder: Path) -> None:
    folder = str(flux(tmp_path))
    plain, chosen = (backbones.load(BaseOptions(source=folder, **card)) for card in ({}, {"guidance": 2.0, "shift": 3}))
    assert (plain.guidance, chosen.guidance) == (3.5, 2.0)
    assert chosen.schedule_for(64, 64).grid(2) == [1.0, pytest.approx(0.75)]  # 3 u / (1 + 2 u)
    for card, message in [
        ({"shift": 2.0}, "shift 2: only flow bases"),
        ({"guidance": 2.0}, "guidance 2: the base takes"),
    ]:
        with pytest.raises(UsageError, match=message):
            backbones.load(BaseOptions(source=str(base_folder), **card))


@pytest.mark.slow
def test_a_fast_base_is_registered_trained_on_its_grid_and_run_at_its_steps(
    codi: Callable[..., Any], base_folder: Path, tmp_path: Path
) -> None:
    answer = codi("base", "add", "fast", base_folder, "--distilled", "--steps", "3")
    refused = codi("base", "add", "shifted", base_folder, "--shift", "2")
    assert (refused.code, "--shift 2: only flow bases have one" in refused.err) == (2, True), refused.err
    assert "Added base fast, distilled for 3 steps." in answer.out, answer.err
    assert json.loads(codi("base", "show", "fast", "--json").out)["card"] == {"distilled": True, "steps": 3}
    small = ["--train-steps", "2", "--count", "6", "--size", "32", "--batch", "2", "--workers", "1", "--device", "cpu"]
    small += ["--sample-every", "0", "--base", "fast"]
    tuned = codi("distill", "depth", *small, "--method", "conditional")
    words = "base fast is distilled for 3 steps, and method conditional trains it back to 50: use method pe-codi"
    assert words in tuned.err
    kept = codi("distill", "depth", *small, "--method", "pe-codi", "--kind", "control", "--json")
    assert "is distilled for" not in kept.err
    shown = json.loads(codi("show", json.loads(kept.out)["adapter"], "--base", "fast", "--json").out)
    assert (shown["steps"], shown["config"]["training"]["grid"]) == (3, 3)
    assert "codi run depth INPUT --steps 3" in shown["card"]
    Image.new("L", (32, 32), 99).save(tmp_path / "m.png")
    report = json.loads(codi("run", shown["ref"], tmp_path / "m.png", "--base", "fast", "--json").out)
    assert report["steps"] == 3


@pytest.mark.slow
def test_the_record_and_the_card_state_shift_and_guidance(codi: Callable[..., Any], tmp_path: Path) -> None:
    assert codi("base", "add", "dev", flux(tmp_path), "--guidance", "2", "--shift", "3").code == 0
    small = ["--train-steps", "1", "--count", "6", "--size", "32", "--batch", "2", "--workers", "1", "--device", "cpu"]
    answer = codi("distill", "depth", *small, "--sample-every", "0", "--base", "dev", "--json")
    shown = json.loads(codi("show", json.loads(answer.out)["adapter"], "--base", "dev", "--json").out)
    assert (shown["config"]["shift"], shown["config"]["guidance"]) == (3.0, 2.0)
    assert "| shift | 3 |\n| guidance | 2 |" in shown["card"]
