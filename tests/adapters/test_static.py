"""What sets the kind `static` apart: an encoder of the condition alone, run once per image, weighed by the time."""

import numpy as np
import pytest
import torch
from inputs import inputs
from kinds import trained
from tiny import unet, with_unet
from torch import nn

from codi_hub.backbones.unet import UNetBackbone, UNetState
from codi_hub.inference.engine import Engine, Request, Sampling


def test_the_encoder_runs_once_for_all_steps_and_never_sees_the_text(base: UNetBackbone) -> None:
    adapter = trained(base, "static")
    calls: list[str] = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, part in (("conditional", adapter.encoder.mid_block), ("base", base.unet.mid_block))
    ]
    condition = np.random.default_rng(0).random((16, 24, 3), np.float32)
    Engine(base).generate([Request(condition, adapter, "a red ball", 1)], Sampling(steps=4))
    for hook in hooks:
        hook.remove()
    assert calls == ["conditional"] + ["base"] * 4
    batch = inputs(base)
    with torch.no_grad():
        one, other = (
            adapter.prepare(base, batch.condition, base.embed([text] * 2)) for text in ("a red ball", "night")
        )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("only_cross_attention", [False, True])
def test_it_has_no_layer_that_attends_to_text(base: UNetBackbone, only_cross_attention: bool) -> None:
    other = with_unet(base, unet(only_cross_attention=only_cross_attention))
    adapter = trained(other, "static")
    assert not [name for name, _ in adapter.named_parameters() if "attn2" in name]
    self_attention = [name for name, _ in adapter.encoder.down_blocks.named_parameters() if "attn1" in name]
    assert bool(self_attention) is not only_cross_attention
    with torch.no_grad():
        assert adapter(other, *inputs(other)).isfinite().all()


def test_every_channel_is_weighed_by_the_time(any_base: UNetBackbone) -> None:
    adapter = trained(any_base, "static")
    z_t, t, prompt, condition = inputs(any_base)
    emb = torch.randn(2, adapter.gain.in_features)
    with torch.no_grad():
        assert [part.shape[1] for part in adapter.prepare(any_base, condition, prompt)] == adapter.widths
        ones = [torch.ones(2, width, 1, 1) for width in adapter.widths]
        state = UNetState(emb, [one * 0 for one in ones], prompt)
        residuals = adapter.residuals(any_base, state, z_t, t, prompt, ones)
        expected = adapter.gain(nn.functional.silu(emb))
    added = [residuals[str(k)] for k in range(len(ones))]
    assert torch.allclose(torch.cat(added, dim=1)[:, :, 0, 0], expected)


@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_without_a_gain_the_residuals_do_not_depend_on_the_time(base: UNetBackbone, fusion: str) -> None:
    adapter = trained(base, "static", fusion=fusion, gain=False)
    assert not [name for name, _ in adapter.named_parameters() if "gain" in name]
    z_t, t, prompt, condition = inputs(base)
    with torch.no_grad():
        prepared = adapter.prepare(base, condition, prompt)
        features = [torch.randn_like(part) for part in prepared]
        early, late = (
            adapter.residuals(base, UNetState(emb, features, prompt), z_t, t, prompt, prepared).tensors
            for emb in torch.randn(2, 2, 8)
        )
    assert early.keys() == late.keys()
    assert all(torch.equal(value, late[name]) for name, value in early.items())
