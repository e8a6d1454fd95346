"""What every kind of adapter is to the engine and the trainer."""

from typing import Any

import torch
from torch import Tensor, nn

from codi_hub.backbones.unet import Features, FrozenBase
from codi_hub.errors import UsageError

Prepared = list[Tensor]
"""What an adapter has computed of the conditions of a batch, each (B, ...)."""

MAX_CHANNELS = 64  # of a condition: pictures and masks, several of them at most
START_NOISE = 0.5  # of adapters whose files do not say, being from before there was a choice
MIN_START = 0.02


class FromNoise:
    """What stands where an adapter does, and begins with pure noise: the engine's questions, answered so."""

    def horizon(self, length: int) -> int:
        """As `Adapter.horizon`."""
        return length

    def begun(self, base: FrozenBase, condition: Any, noise: Tensor) -> Tensor:
        """As `Adapter.begun`."""
        return noise


class Adapter(nn.Module):
    """A condition's way into the frozen base: what it adds to the base's features, and where sampling begins.

    Args:
        condition_channels: channels of the condition, an image in [0, 1].
        start: where sampling begins, as a share of the schedule. Below 1 it is not with noise but with the condition
            itself under some of the noise of that time.
        start_noise: how much of it. SDEdit (Meng et al., 2022) begins with all of it; with none, what the picture has
            is there from the first step, and a seed changes nothing.

    Raises:
        UsageError: an impossible number of channels, or a start that cannot be.
    """

    kind = ""

    def __init__(self, *, condition_channels: int = 3, start: float = 1.0, start_noise: float = START_NOISE):
        super().__init__()
        if type(condition_channels) is not int or not 1 <= condition_channels <= MAX_CHANNELS:
            raise UsageError(f"condition_channels {condition_channels!r:.40}: a number from 1 to {MAX_CHANNELS}")
        if type(start) not in (int, float) or not MIN_START <= start <= 1:
            raise UsageError(f"--start {start!r:.40}: from {MIN_START} to 1")
        if type(start_noise) not in (int, float) or not 0 <= start_noise <= 1:
            raise UsageError(f"--start-noise {start_noise!r:.40}: from 0 to 1")
        if start < 1 and condition_channels == 2:
            raise UsageError(f"--start {start}: the condition is no picture to start from: leave it out")
        self.start, self.start_noise = start, start_noise
        self.config: dict[str, Any] = {"condition_channels": condition_channels}
        if start < 1:  # others look as they did before there was such a thing
            self.config["start"] = start
            if start_noise != START_NOISE:
                self.config["start_noise"] = start_noise

    def horizon(self, length: int) -> int:
        """How many of a schedule's timesteps lie below the start."""
        return max(1, round(self.start * length))

    def begun(self, base: FrozenBase, condition: Tensor, noise: Tensor) -> Tensor:
        """z_t of the first step, float32 (B, C, h, w): noise, or the condition (B, C, H, W) under it."""
        if self.start == 1:
            return noise
        t = torch.full((len(noise),), self.horizon(len(base.schedule)) - 1, device=noise.device)
        return base.schedule.add_noise(base.encode(as_picture(condition.float())), self.start_noise * noise, t)

    def prepare(self, condition: Tensor, prompt: Tensor | None = None) -> Prepared:
        """What no step changes, once per image: (B, C, H, W) in [0, 1] -> [(B, width, H/f, W/f)].

        Kinds that read the prompt here, (B, tokens, width), must get it.
        """
        raise NotImplementedError

    def conditioned(
        self, emb: Tensor, features: Features, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Prepared
    ) -> Features:
        """h' at z_t; `emb` and `features` are the base's. Row k depends on row k of what is given alone."""
        raise NotImplementedError

    def corrected(self, emb: Tensor, prediction: Tensor, prepared: Prepared) -> Tensor:
        """What is made of the network's prediction, (B, C, h, w); most kinds leave it."""
        return prediction

    def predict(self, base: FrozenBase, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Prepared) -> Tensor:
        """What the base's network predicts at z_t under the condition, in the base's prediction type."""
        emb, features = base.features(z_t, t, prompt)
        fused = self.conditioned(emb, features, z_t, t, prompt, prepared)
        return self.corrected(emb, base.finish(emb, fused, prompt), prepared)

    def forward(self, base: FrozenBase, z_t: Tensor, t: Tensor, prompt: Tensor, condition: Tensor) -> Tensor:
        """`predict` from the condition itself: the call that training makes, which wrappers of a module can see."""
        return self.predict(base, z_t, t, prompt, self.prepare(condition, prompt))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimiser; each is clipped apart."""
        return [{"params": list(self.parameters()), "lr": lr}]


def as_picture(condition: Tensor) -> Tensor:
    """What of a condition (B, C, H, W) is a picture, (B, 3, H, W): three channels, or the one it has as gray."""
    return condition[:, :3] if condition.shape[1] > 1 else condition.expand(-1, 3, -1, -1)
