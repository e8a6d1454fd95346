"""A distribution term for few-step outputs: a hinge loss on features of the frozen base, at a random re-noising time.

d_x is a regression: where the condition leaves something open, its answer is a mean, which looks smooth. Here small
heads learn to tell noised data from noised predictions by what the frozen base's encoder half computes of both, and the
student is trained to be taken for data. Source: Sauer et al., *Fast High-Resolution Image Synthesis with Latent
Adversarial Diffusion Distillation* (LADD), 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt
from codi_hub.errors import UsageError

WIDTH = 64
GROUPS = 8


class Discriminator(nn.Module):
    """One small head for each resolution of the encoder half, on the last feature map that it has there.

    Args:
        base: the frozen base.

    Raises:
        UsageError: a base whose network has no encoder half that can be read.
    """

    def __init__(self, base: Backbone) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the same heads beside any adapter, which stays as it is
            torch.manual_seed(0)
            self.heads = nn.ModuleList(_head(channels) for channels in _widths(base))
        self.to(base.device)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return a map of logits for each head, (B, 1, h, w): above 0 where the features look like data's."""
        # in channels-last memory, the backward pass of PyTorch's group normalisation crashes on the CPU where its input
        # needs no gradient
        return [head(map_.contiguous()) for head, map_ in zip(self.heads, features, strict=True)]

    def frozen(self, features: list[Tensor]) -> list[Tensor]:
        """Return the same logits with a gradient to the features alone."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        logits: list[Tensor] = functional_call(self, weights, (features,))
        return logits


def encoder_features(base: Backbone, z_t: Tensor, t: Tensor, prompt: Prompt) -> list[Tensor]:
    """Return the last feature map of every resolution of the encoder half, with a gradient to z_t (B, C, h, w)."""
    last: dict[int, Tensor] = {}
    for feature in base.state(z_t, t, prompt, network=base.network).features:
        last[feature.shape[-1]] = feature  # they come in the order of the network
    return list(last.values())


def hinge_terms(
    discriminator: Discriminator,
    base: Backbone,
    prompt: Prompt,
    x: Tensor,
    x_hat: Tensor,
    noise: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the student's and the discriminator's loss, two scalars; neither has a gradient to the other's weights.

    With D the mean logit at (z_t, t), z_t = alpha_t x + sigma_t eps:

        student        -D(x_hat)
        discriminator  max(0, 1 - D(x)) + max(0, 1 + D(x_hat)),   at every location of every head

    Args:
        discriminator: its heads.
        base: the frozen base.
        prompt: of B rows.
        x, x_hat: clean and predicted latents, (B, C, h, w).
        noise: (u, eps), u uniform in [0, 1) (B,) and Gaussian eps (B, C, h, w); the same for both.
    """
    u, eps = noise
    factor = base.latents.factor
    schedule = base.schedule_for(*(factor * side for side in x.shape[2:]))
    t = schedule.time_of(u).to(x.device, torch.float32)
    fake = encoder_features(base, schedule.add_noise(x_hat, eps, t), t, prompt)
    with torch.no_grad():
        real = encoder_features(base, schedule.add_noise(x, eps, t), t, prompt)
    student = -_mean(discriminator.frozen(fake))
    taken = [(1 - logits).relu() for logits in discriminator(real)]
    refused = [(1 + logits).relu() for logits in discriminator([map_.detach() for map_ in fake])]
    return student, _mean(taken) + _mean(refused)


def _head(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.GroupNorm(1, channels),
        nn.Conv2d(channels, WIDTH, 3, padding=1),
        nn.GroupNorm(GROUPS, WIDTH),
        nn.SiLU(),
        nn.Conv2d(WIDTH, 1, 1),
    )


@torch.no_grad()
def _widths(base: Backbone) -> list[int]:
    """Return the channels of `encoder_features`, from the smallest latents that the base takes."""
    side = base.latents.multiple // base.latents.factor
    z_t = torch.zeros(1, base.latents.channels, side, side, device=base.device, dtype=base.dtype)
    t, prompt = torch.ones(1, device=base.device), base.unconditional().to(base.device)
    if base.state(z_t, t, prompt) is None:
        raise UsageError(
            f"loss.adversarial: a base of family {base.family} has no encoder half whose features could be compared; "
            "use a U-Net base, or leave it out"
        )
    return [map_.shape[1] for map_ in encoder_features(base, z_t, t, prompt)]


def _mean(maps: list[Tensor]) -> Tensor:
    """Return the mean over heads of the mean over locations, in float32."""
    return torch.stack([map_.float().mean() for map_ in maps]).mean()
