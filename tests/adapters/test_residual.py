"""The kind `residual`: what it adds and where, what it attends to, and how it comes back from its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import inputs
from kinds import built, trained
from tiny import record_of
from torch import nn

from codi_hub import adapters, backbones
from codi_hub.adapters import format
from codi_hub.adapters.residual import ResidualAdapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine, Request, Sampling

FORMS: list[dict[str, Any]] = [{"blocks": 2}, {"blocks": 1, "levels": 2, "read": True}]
every_form = pytest.mark.parametrize("form", FORMS, ids=["flat", "with text"])


@every_form
def test_it_adds_to_the_first_features_and_to_the_prediction_weighed_by_the_time(
    any_base: UNetBackbone, form: dict[str, Any]
) -> None:
    adapter = trained(any_base, "residual", **form)
    z_t, t, prompt, condition = inputs(any_base)
    unet, timestep, context = any_base.unet, any_base.schedule.model_time(t), prompt["context"]
    with torch.no_grad():
        first, last = adapter.prepare(any_base, condition, prompt)
        assert last.shape == z_t.shape
        gains = adapter.gain(nn.functional.silu(any_base.state(z_t, t, prompt).emb))[:, :, None, None]
        of_first, of_last = gains.split([first.shape[1], last.shape[1]], dim=1)
        # the first features feed the decoder's last skip connection alone: the encoder half is the base's
        hook = unet.up_blocks[-1].register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"res_hidden_states_tuple": _added(kwargs, of_first * first)}),
            with_kwargs=True,
        )
        expected = unet(z_t, timestep, context).sample + of_last * last
        hook.remove()
        assert torch.allclose(adapter(any_base, z_t, t, prompt, condition), expected, atol=1e-5)


def _added(kwargs: dict[str, Any], residual: torch.Tensor) -> tuple[torch.Tensor, ...]:
    first, *others = kwargs["res_hidden_states_tuple"]
    return (first + residual, *others)


@pytest.mark.parametrize(("form", "reads"), list(zip(FORMS, (False, True), strict=True)), ids=["flat", "with text"])
def test_only_with_read_does_it_depend_on_the_prompt(base: UNetBackbone, form: dict[str, Any], reads: bool) -> None:
    adapter = trained(base, "residual", **form)
    condition = torch.rand(1, 3, 16, 24).expand(2, -1, -1, -1)
    with torch.no_grad():
        added = adapter.prepare(base, condition, base.embed(["a red ball", "night"]))
        assert all(torch.allclose(part[0], part[1], atol=1e-6) is not reads for part in added)


def test_prompts_count_by_their_difference_from_an_empty_one(base: UNetBackbone) -> None:
    adapter = built(base, "residual", levels=2, blocks=1, read=True)
    assert torch.equal(adapter.text.nothing, base.embed([""])["context"][0])


def test_it_runs_once_for_all_steps(base: UNetBackbone) -> None:
    adapter = trained(base, "residual", **FORMS[1])
    calls: list[str] = []
    parts = (("residual", adapter.stem), ("base", base.unet.mid_block))
    hooks = [part.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, part in parts]
    condition = np.random.default_rng(0).random((16, 24, 3), np.float32)
    Engine(base).generate([Request(condition, adapter, "a red ball", 1)], Sampling(steps=4))
    for hook in hooks:
        hook.remove()
    assert calls == ["residual"] + ["base"] * 4


def test_its_levels_take_images_whose_halves_are_odd(base: UNetBackbone) -> None:
    """Cells of 2 px: 18 x 14 px are 9 x 7 of them, which the base would have padded, and 5 x 4 below."""
    adapter = trained(base, "residual", **FORMS[1])
    with torch.no_grad():
        first, _ = adapter.prepare(base, torch.rand(1, 3, 18, 14), base.embed([""]))
    assert first.shape[2:] == (9, 7)


@every_form
def test_it_is_loaded_by_a_program_that_has_embedded_no_prompt_yet(
    tmp_path: Path, form: dict[str, Any], base_folder: Path
) -> None:
    base = backbones.load(str(base_folder))
    adapter = trained(base, "residual", **form)
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    fresh = backbones.load(str(base_folder))
    again = format.load(tmp_path / format.WEIGHTS, format.read_record(tmp_path / format.RECORD), fresh)
    assert again.config == adapter.config
    assert form.items() <= again.config.items()
    with torch.no_grad():
        expected = adapter(base, *inputs(base))
        assert (again(fresh, *inputs(fresh)) - expected).norm() < 0.005 * expected.norm()  # weights take two bytes


def test_it_is_built_by_the_name_of_the_first_edition_too(base: UNetBackbone) -> None:
    assert isinstance(adapters.build("side", base), ResidualAdapter)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"blocks": 0}, r"adapter\.blocks 0: at least 1"),
        ({"blocks": True}, r"adapter\.blocks true: a whole number"),
        ({"levels": 3}, r"adapter\.levels 3: from 1 to the base's 2"),
        ({"read": "yes"}, r"adapter\.read yes: true or false"),
        ({"fusion": "gate"}, r"adapter\.fusion: no such field; one of .*blocks, levels, read"),
        ({"attend": "all"}, r"adapter\.attend: no such field"),
        ({"top_down": True}, r"adapter\.top_down: no such field"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(base: UNetBackbone, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(base, "residual", **config)


@pytest.mark.parametrize("name", ["blocks", "levels", "read"])
@pytest.mark.parametrize("kind", ["control", "lora", "static", "full"])
def test_its_settings_are_refused_by_other_kinds(base: UNetBackbone, kind: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"adapter\.{name}: no such field"):
        built(base, kind, **{name: 2})
