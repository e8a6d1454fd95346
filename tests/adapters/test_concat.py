"""What sets the kind `concat` apart: the base's own network with further input channels, as two products."""

import copy
from typing import Any

import pytest
import torch
from inputs import inputs
from kinds import built, trained
from tiny import unet
from torch import nn

from codi_hub.adapters.concat import WideInput
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_merged_network_of_diffusers_predicts_the_same(any_base: UNetBackbone, channels: int) -> None:
    adapter = trained(any_base, "concat", condition_channels=channels)
    z_t, t, prompt, condition = inputs(any_base, channels)
    further = any_base.condition_latents(condition)
    config = any_base.wider_config(further.shape[1])
    assert config["in_channels"] == 4 + further.shape[1]
    plain = unet(**config)
    plain.load_state_dict(adapter.merged())
    with torch.no_grad():
        theirs = plain(torch.cat([z_t, further], 1), any_base.schedule.model_time(t), prompt["context"]).sample
        ours = adapter(any_base, z_t, t, prompt, condition)
        base = any_base.predict(z_t, t, prompt)
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    assert (ours - base).norm() > 0.1 * base.norm()


def test_it_shares_the_bases_tensors_and_so_do_its_copies(base: UNetBackbone) -> None:
    adapter = built(base, "concat")
    stored = {value.data_ptr() for value in (*base.parameters(), *base.buffers())}
    for one in (adapter, copy.deepcopy(adapter)):
        assert (
            one.network.down_blocks[0].resnets[0].conv1.base_layer.weight
            is base.unet.down_blocks[0].resnets[0].conv1.weight
        )
        assert one.network.conv_in.layer.weight is base.unet.conv_in.weight
        assert not stored & {value.data_ptr() for value in one.state_dict().values()}


def test_a_strength_between_lies_between_both_predictions(base: UNetBackbone) -> None:
    adapter, (z_t, t, prompt, condition) = trained(base, "concat"), inputs(base)
    with torch.no_grad():
        prepared = adapter.prepare(base, condition, prompt)
        none, whole = base.predict(z_t, t, prompt), adapter.predict(base, z_t, t, prompt, prepared)
        half = adapter.predict(base, z_t, t, prompt, prepared, torch.tensor([0.5, 0.25]))
    assert torch.allclose(half, none + torch.tensor([0.5, 0.25]).view(2, 1, 1, 1) * (whole - none), atol=1e-6)


def test_a_family_without_an_input_layer_is_refused(base: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(base), "input_layer", "")
    with pytest.raises(UsageError, match=r"^adapter\.kind concat: bases of family sd cannot take further channels$"):
        built(base, "concat")


@pytest.mark.parametrize(
    ("layer", "cells_apart"),
    [(nn.Conv2d(3, 8, 2, 2), False), (nn.Linear(12, 8), False), (nn.Linear(12, 8), True)],
    ids=["convolution of latents", "patches channel by channel", "patches cell by cell"],
)
def test_the_joined_weight_computes_the_same_in_one_product(layer: Any, cells_apart: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = WideInput(layer, 3, 2, cells_apart=cells_apart)
    nn.init.normal_(wide.extra.weight, generator=generator)
    latents = torch.randn(2, 5, 4, 4, generator=generator)
    if isinstance(layer, nn.Conv2d):
        x, base = latents, layer(latents[:, :3])
        plain = torch.nn.functional.conv2d
        joined = plain(x, wide.joined(layer.weight, wide.extra.weight), layer.bias, 2)
    else:
        # (B, tokens, C * 4) as FLUX packs latents, or (B, tokens, 4 * C) as Z-Image cuts them
        order = (0, 2, 4, 3, 5, 1) if cells_apart else (0, 2, 4, 1, 3, 5)
        x, z = (
            part.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(order).flatten(3).flatten(1, 2)
            for part in (latents, latents[:, :3])
        )
        joined, base = nn.functional.linear(x, wide.joined(layer.weight, wide.extra.weight), layer.bias), layer(z)
    assert torch.allclose(wide(x), joined, atol=1e-5)
    nn.init.zeros_(wide.extra.weight)
    assert torch.equal(wide(x), base)
