"""`control`: a trained copy of the base's encoder half that sees z_t, t, the prompt and the condition (PE-CoDi).

With `zero_conv` fusion it is a ControlNet, tensor for tensor; with `gate` the paper's
h' = (1 - mu) h_theta + mu h_eta.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from codi_hub.adapters.adapter import Adapter, AdapterConfig, Prepared
from codi_hub.adapters.top_down import TopDown
from codi_hub.backbones.unet import Features, UNetState, encode_features, match_text_heads
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import UsageError

GATE_LR = 1e-2  # at mu = 0 only mu has a gradient, so it needs a rate of its own


class ControlConfig(AdapterConfig):
    """Settings of kinds with a conditional encoder."""

    fusion: Literal["zero_conv", "gate"] = "zero_conv"
    """How the condition enters the base: a ControlNet's zero convolutions, or the paper's gates."""
    init: Literal["pretrained", "random"] = Field("pretrained", exclude=True)
    """Start of the conditional encoder: the base's weights, or random ones."""
    attend: Literal["base", "all"] = "base"
    """First edition only, loaded and run but not trained: `all` has cross-attention at every level of the encoder."""
    top_down: bool = False
    """First edition only, loaded and run but not trained: a top-down pathway beside the encoder."""

    first_edition_forms: ClassVar[bool] = True  # whether the kind ever had `attend` and `top_down`

    @model_validator(mode="after")
    def _has_the_form(self) -> Self:
        if not self.first_edition_forms and (self.attend != "base" or self.top_down):
            setting = "top_down true" if self.top_down else f"attend {self.attend}"
            raise ValueError(f"{setting}: only with kinds control and full")
        return self

    @model_validator(mode="after")
    def _gates_replace(self) -> Self:
        if self.top_down and self.fusion == "gate":
            raise ValueError("top_down: not with fusion gate, which replaces features and adds nothing")
        return self

    def check_trainable(self) -> None:
        """Raise UsageError for `attend` and `top_down`, which only tuned the first edition's bundle."""
        if self.attend != "base" or self.top_down:
            raise UsageError(
                "attend all and top_down can be run but are no longer trained: train a new adapter without them"
            )


class ControlNetConfig(ControlConfig):
    """Settings of kind control."""

    network: dict[str, Any] | None = None
    """Configuration of an imported ControlNet, as its class in diffusers has it; without it the encoder has the form of
    the base's. `codi import` writes it, and trainings keep it."""

    @model_validator(mode="after")
    def _is_a_controlnet(self) -> Self:
        if self.network is not None and (self.fusion, self.attend, self.top_down) != ("zero_conv", "base", False):
            raise ValueError("network: an imported ControlNet has fusion zero_conv and nothing beside its encoder")
        return self


class ControlAdapter(Adapter):
    """A conditional encoder and its fusion with the frozen base; at initialisation it adds zero.

    An imported ControlNet keeps its own form: any number of blocks, and a stem of three
    channels for a condition of one.
    """

    kind: ClassVar[str] = "control"
    Config: ClassVar[type[AdapterConfig]] = ControlNetConfig

    def __init__(self, backbone: Any, config: ControlConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        if backbone.network_name != "unet" and (config.fusion, config.attend, config.top_down) != (
            "zero_conv",
            "base",
            False,
        ):
            raise UsageError(
                f"adapter.fusion {config.fusion}: it needs a U-Net, and bases of family {backbone.family} have "
                "none; use fusion zero_conv"
            )
        device = device or backbone.device
        pretrained = config.init == "pretrained" and device.type != "meta"
        network = getattr(config, "network", None)
        self.encoder: Any = (
            backbone.controlnet(config.condition_channels, pretrained=pretrained, device=device)
            if network is None
            else backbone.controlnet_from(network, device=device)
        )
        if config.attend == "all":
            self.encoder = attending(self.encoder)
            match_text_heads(self.encoder, backbone.unet)
        self.encoder.requires_grad_(True).train()
        for name in backbone.dead_ends(self.encoder):  # several processes wait for the gradient of all that is trained
            self.encoder.get_parameter(name).requires_grad_(False)
        if config.top_down:
            self.top_down = TopDown(self.encoder)
        if config.fusion == "gate":
            count = len(self.encoder.controlnet_down_blocks) + 1
            self.encoder.controlnet_down_blocks = nn.ModuleList()
            self.encoder.controlnet_mid_block = nn.Identity()
            self.mu = nn.Parameter(torch.zeros(count, device=device))
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def config(self) -> dict[str, Any]:
        """See `Adapter.config`; `network` is there where there is one."""
        return {name: value for name, value in super().config.items() if (name, value) != ("network", None)}

    def prepare(self, backbone: Any, condition: Tensor, prompt: Prompt) -> Prepared:
        """Return the encoder's view of the condition."""
        return backbone.control_condition(self.encoder, condition)

    def residuals(
        self, backbone: Any, state: UNetState, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """Return the ControlNet's residuals; of a U-Net, one per feature of the frozen encoder half."""
        if self.settings.fusion == "zero_conv" and not self.settings.top_down:
            return backbone.control_residuals(self.encoder, state, z_t, t, prompt, prepared)
        timestep = backbone.schedule.model_time(t)
        _, conditional = encode_features(self.encoder, z_t, timestep, state.prompt, prepared[0])
        return self.fuse(state.features, conditional)

    def fuse(self, features: Features, conditional: Features) -> Residuals:
        """Return what turns h_theta into h': zero_conv(h_eta), or mu (h_eta - h_theta)."""
        if self.settings.fusion == "gate":
            added = [mu * (h_eta - h) for mu, h, h_eta in zip(self.mu, features, conditional, strict=True)]
        else:
            convolutions = [*self.encoder.controlnet_down_blocks, self.encoder.controlnet_mid_block]
            added = [conv(h_eta) for conv, h_eta in zip(convolutions, conditional, strict=True)]
        if self.settings.top_down:
            for place, more in self.top_down(conditional).items():
                added[place] = added[place] + more
        return Residuals({str(k): value for k, value in enumerate(added)})

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the groups for the optimiser. The gates have their own rate and no weight decay."""
        weights = [value for name, value in self.named_parameters() if name != "mu"]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": lr}]
        if self.settings.fusion == "gate":
            groups.append({"params": [self.mu], "lr": max(GATE_LR, lr), "weight_decay": 0.0})
        return groups


def attending(encoder: Any) -> Any:
    """Return the encoder with cross-attention at every level; the new layers add nothing yet."""
    from diffusers import ControlNetModel

    own = encoder.config["down_block_types"]
    types = ["CrossAttnDownBlock2D" if name == "DownBlock2D" else name for name in own]
    one = encoder.config["only_cross_attention"]
    only = [one] * len(own) if isinstance(one, bool) else one
    only = [before or name != now for before, name, now in zip(only, own, types, strict=True)]
    config = dict(encoder.config) | {"down_block_types": types, "only_cross_attention": only}
    with torch.device(encoder.device):
        wider: Any = ControlNetModel.from_config(config)
    if encoder.device.type != "meta":
        wider.load_state_dict(encoder.state_dict(), strict=False)
    for name, now, block in zip(own, types, wider.down_blocks, strict=True):
        for attention in block.attentions if name != now else ():
            nn.init.zeros_(attention.proj_out.weight)
            nn.init.zeros_(attention.proj_out.bias)
    return wider
