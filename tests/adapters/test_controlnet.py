"""The kinds `control` and `full`: fusion by the paper's formula, a ControlNet tensor for tensor, the condition stem."""

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from inputs import inputs
from kinds import built, trained
from tiny import stir, unet, with_unet
from torch import Tensor

from codi_hub.adapters.controlnet import GATE_LR
from codi_hub.backbones.condition_stem import LUMA_DEVIATION, WHITEN, initialise_stem
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Residuals


def added(residuals: Residuals) -> list[Tensor]:
    return [residuals[str(k)] for k in range(len(residuals.tensors))]


def test_at_initialisation_gates_get_the_papers_gradient_and_the_encoder_none(base: UNetBackbone) -> None:
    """At mu = 0 the gradient into h_eta is exactly zero, and into mu it is <g, h_eta - h_theta>."""
    adapter = trained(base, "control", fusion="gate")
    with torch.no_grad():
        adapter.mu.zero_()
    shape = (len(adapter.mu), 2, 4)
    h, h_eta, g = (list(v) for v in torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
    h_eta = [v.requires_grad_() for v in h_eta]
    sum((a * b).sum() for a, b in zip(added(adapter.fuse(h, h_eta)), g, strict=True)).backward()
    expected = torch.stack([(a * (b - c)).sum() for a, b, c in zip(g, h_eta, h, strict=True)])
    assert torch.allclose(adapter.mu.grad, expected, atol=1e-5)
    assert all(torch.equal(v.grad, torch.zeros_like(v)) for v in h_eta)


def test_gates_follow_the_papers_formula(base: UNetBackbone) -> None:
    """H' = (1 - mu) h + mu h_eta."""
    adapter = built(base, "control", fusion="gate")
    with torch.no_grad():
        adapter.mu.copy_(torch.linspace(0, 1, len(adapter.mu)))
    ones, threes = [torch.ones(1)] * len(adapter.mu), [torch.full((1,), 3.0)] * len(adapter.mu)
    fused = 1 + torch.cat(added(adapter.fuse(ones, threes)))
    assert torch.allclose(fused, (1 - adapter.mu) * 1 + adapter.mu * 3)


def test_gates_have_their_own_rate_and_no_weight_decay(base: UNetBackbone) -> None:
    encoder, gates = built(base, "control", fusion="gate").parameter_groups(1e-4)
    assert encoder["lr"] == 1e-4
    assert gates["lr"] == GATE_LR >= 1e-2
    assert gates["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in gates["params"]] == [(5,)]  # conv_in, two levels and one way down, the middle
    assert len(built(base, "control").parameter_groups(1e-4)) == 1


def test_a_stem_whitens_colours_and_scales_a_mask_beside_them() -> None:
    """The weights are those of the same draw of He's initialisation, times the matrix of the condition's channels."""

    def first_layer(channels: int, *, initialised: bool) -> torch.nn.Conv2d:
        stem = ControlNetConditioningEmbedding(16, channels, (8, 8))
        torch.manual_seed(5)
        if initialised:
            initialise_stem(stem)
        else:
            torch.nn.init.kaiming_normal_(stem.conv_in.weight, nonlinearity="relu")
        return stem.conv_in

    scale = torch.diag(torch.full((4,), 1 / LUMA_DEVIATION))
    scale[:3, :3] = torch.tensor(WHITEN)
    for channels, expected in ((1, scale[3:, 3:]), (3, scale[:3, :3]), (4, scale)):
        drawn, layer = (first_layer(channels, initialised=done) for done in (False, True))
        assert torch.allclose(layer.weight, torch.einsum("ochw,cd->odhw", drawn.weight, expected), atol=1e-5)
        with torch.no_grad():  # gray, and half a mask, is zero
            assert layer(torch.full((1, channels, 5, 5), 0.5))[0, :, 2, 2].abs().max() < 1e-4


def test_zero_conv_is_a_controlnet_tensor_for_tensor(any_base: UNetBackbone) -> None:
    adapter = trained(any_base, "control")
    z_t, t, prompt, condition = inputs(any_base)
    timestep, context = torch.tensor([999, 300]), prompt["context"]
    with torch.no_grad():
        down, middle = adapter.encoder(z_t, timestep, context, controlnet_cond=condition, return_dict=False)
        expected = any_base.unet(
            z_t, timestep, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        assert torch.allclose(adapter(any_base, z_t, t, prompt, condition), expected, atol=1e-6)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_the_encoder_starts_from_the_bases_weights_or_from_random_ones(base: UNetBackbone, init: str) -> None:
    adapter = built(base, "control", init=init)
    own, theirs = (net.down_blocks[0].resnets[0].conv1.weight for net in (adapter.encoder, base.unet))
    assert torch.equal(own, theirs) is (init == "pretrained")
    assert "init" not in adapter.config  # of the training, not of the adapter


def test_a_full_adapter_runs_its_own_network_and_leaves_the_bases_alone(base: UNetBackbone) -> None:
    adapter, batch = built(base, "full"), inputs(base)
    with torch.no_grad():
        before = adapter(base, *batch)
        other = with_unet(base, stir(unet(), 0.1))
        assert torch.equal(adapter(other, *batch), before)  # whatever U-Net the base has now
        stir(adapter.unet, 0.01)
        assert not torch.equal(adapter(base, *batch), before)
