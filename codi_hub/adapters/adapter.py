"""The adapter interface that the engine and the trainer use, and the settings common to all kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from codi_hub.adapters.sharing import copied
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt, Residuals

Prepared = list[Tensor]
"""What an adapter computed from the conditions of a batch, once per image, each (B, ...)."""

MAX_CHANNELS = 64  # of a condition: images and masks, several of them at most


class AdapterConfig(BaseModel):
    """Settings of every kind; a kind's own `Config` adds fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    condition_channels: int = Field(3, ge=1, le=MAX_CHANNELS)
    """Channels of the condition, an image in [0, 1]."""
    start: float = Field(1.0, ge=0.02, le=1)
    """Where sampling starts, as a share of the schedule; below 1 it starts from the condition instead of noise."""
    start_noise: float = Field(0.0, ge=0, le=1)
    """With `start` below 1, share of that time's noise that is added to the condition. SDEdit (Meng et al., 2022) uses
    1; with 0 the result does not depend on the seed."""

    @model_validator(mode="after")
    def _start_is_an_image(self) -> Self:
        if self.start < 1 and self.condition_channels == 2:
            raise ValueError(
                f"start {self.start}: a condition of two channels cannot be the initial image: leave `start` out"
            )
        return self

    def check_trainable(self) -> None:
        """Raise UsageError for a form that can be loaded and run, but no longer trained."""


class Adapter(nn.Module, ABC):
    """A network that adds a condition to the frozen base: residuals for every step, and the initial latents.

    Args:
        backbone: the base it belongs to.
        config: an instance of the kind's `Config`, kept as `settings`.
        device: of the new tensors (default: the base's); `meta` for shapes alone.

    Attributes:
        kind: the kind's name.
        Config: the class of its settings.
        settings: its settings, an instance of `Config`; `config` has them as plain values.
        scalable: whether `strength` can scale it.
        trains_base: whether it trains a copy of the base's network too.
        adds_residuals: whether it adds to the base's network, and so can share a batch with others; else it brings its
            own.
        needs_unet: whether it is made for U-Nets alone.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[AdapterConfig]] = AdapterConfig
    scalable: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    adds_residuals: ClassVar[bool] = True
    needs_unet: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, config: Any, device: torch.device | None = None) -> None:
        super().__init__()
        self.settings: Any = config

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the adapter; tensors that are the base's and no parameters of its own are shared."""
        return copied(self, memo)

    @property
    def config(self) -> dict[str, Any]:
        """The settings as the adapter's record keeps them."""
        return self.settings.model_dump(mode="json")

    @property
    def start(self) -> float:
        """Where sampling starts, as a share of the schedule."""
        return self.settings.start

    def initial_latents(self, backbone: Backbone, condition: Tensor, noise: Tensor) -> Tensor:
        """Return z_t of the first step, float32 (B, C, h, w): noise, or the condition (B, K, H, W) with noise."""
        if self.start == 1:
            return noise
        schedule = backbone.schedule_for(*condition.shape[2:])
        (begin,) = schedule.grid(1, self.start)
        t = torch.full((len(noise),), begin, device=noise.device)
        latents = backbone.encode_condition(condition.float())
        return schedule.add_noise(latents, self.settings.start_noise * noise, t)

    @abstractmethod
    def prepare(self, backbone: Backbone, condition: Tensor, prompt: Prompt) -> Prepared:
        """Compute what is the same at every step, once per image, from a condition (B, K, H, W) in [0, 1]."""

    @abstractmethod
    def residuals(
        self, backbone: Backbone, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """Return what the adapter adds at z_t, per sample. Row k depends on row k of the arguments alone.

        Args:
            backbone: the base.
            state: what `Backbone.state` returned at z_t.
            z_t, t, prompt: see `Backbone.predict`.
            prepared: what `prepare` returned.
        """

    def predict(
        self,
        backbone: Backbone,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        prepared: Prepared,
        strength: Tensor | None = None,
    ) -> Tensor:
        """Return what the base's network predicts at z_t under the condition, in the base's own parametrisation.

        Args:
            backbone, z_t, t, prompt: see `Backbone.predict`.
            prepared: what `prepare` returned.
            strength: (B,), scales what the adapter adds; 0 is the base bit for bit, None is 1.
        """
        state = backbone.state(z_t, t, prompt)
        residuals = self.residuals(backbone, state, z_t, t, prompt, prepared)
        if strength is not None:
            residuals = residuals.scaled(strength)
        return backbone.predict(z_t, t, prompt, residuals=residuals, state=state)

    def forward(self, backbone: Backbone, z_t: Tensor, t: Tensor, prompt: Prompt, condition: Tensor) -> Tensor:
        """`predict` from the condition itself: the call that training makes, which wrappers of a module can see."""
        return self.predict(backbone, z_t, t, prompt, self.prepare(backbone, condition, prompt))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the groups for the optimiser; each is clipped apart."""
        return [{"params": list(self.parameters()), "lr": lr}]
