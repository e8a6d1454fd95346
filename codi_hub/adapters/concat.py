"""`concat`: the condition's latents are further input channels of the base's own network, which has low-rank deltas.

FLUX.1-Control's form (a wider input layer and LoRA), on every family. It takes about the time of the base alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from codi_hub.adapters.adapter import Adapter, AdapterConfig, Prepared
from codi_hub.adapters.sharing import SharedTensors, Tensors, add_deltas, merged
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import UsageError

# Learning rate of the condition's layer, in those of the deltas. After 130 steps at 2e-3 the 4-step error of the toys
# in tests/training/test_distilled_toys.py is 0.71 instead of 1.05 (SDXL), and 0.49 instead of 0.65 (SD3).
EXTRA_RATE = 10


class ConcatConfig(AdapterConfig):
    """Settings of kind concat."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the deltas of the network's layers."""


class ConcatAdapter(Adapter):
    """A network that shares the frozen base's tensors, with deltas and a wider input layer; the base is unchanged.

    Raises:
        UsageError: a base whose input layer cannot be widened.
    """

    kind: ClassVar[str] = "concat"
    Config: ClassVar[type[AdapterConfig]] = ConcatConfig
    adds_residuals: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, config: ConcatConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        if not backbone.input_layer:
            raise UsageError(f"adapter.kind concat: bases of family {backbone.family} cannot take further channels")
        self.input_layer = backbone.input_layer
        tensors = SharedTensors((*backbone.network.parameters(), *backbone.network.buffers()))
        network = tensors.copy(backbone.network)
        add_deltas(network, backbone.lora_targets(), config.rank)
        tensors.release(network)
        further = backbone.condition_latents_channels(config.condition_channels)
        with torch.device(device or backbone.device):
            layer = network.get_submodule(self.input_layer)
            wide = WideInput(layer, backbone.latents.channels, further, cells_apart=backbone.cells_apart)
        network.set_submodule(self.input_layer, wide)
        self.network: Any = network
        self.float()

    def prepare(self, backbone: Backbone, condition: Tensor, prompt: Prompt) -> Prepared:
        """Return the condition's latents: [(B, K, h, w)]."""
        return [backbone.condition_latents(condition).to(backbone.dtype)]

    def residuals(
        self, backbone: Backbone, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """Refuse: the network is another, and nothing is added to the base's."""
        raise UsageError("an adapter of kind concat brings its own network, and has no residuals")

    def predict(
        self,
        backbone: Backbone,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        prepared: Prepared,
        strength: Tensor | None = None,
    ) -> Tensor:
        """Return what the wider network predicts; see `Adapter.predict`.

        With a strength the base is evaluated too, and the result lies between both predictions, exact at 0 and 1.
        """
        whole = backbone.predict(z_t, t, prompt, concat=prepared[0], network=self.network)
        if strength is None:
            return whole
        return torch.lerp(backbone.predict(z_t, t, prompt), whole, strength.to(whole).view(-1, 1, 1, 1))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the groups for the optimiser. The layer of the condition starts at zero, and has a higher rate."""
        extra = list(self.network.get_submodule(self.input_layer).extra.parameters())
        others = [value for name, value in self.named_parameters() if f"{self.input_layer}.extra." not in name]
        return [{"params": others, "lr": lr}, {"params": extra, "lr": EXTRA_RATE * lr}]

    def merged(self) -> Tensors:
        """Return the tensors of a plain network with a wider input layer, the deltas added."""
        tensors, layer = merged(self.network), self.input_layer
        wide = self.network.get_submodule(layer)
        tensors = {name.replace(f"{layer}.layer.", f"{layer}."): value for name, value in tensors.items()}
        tensors[f"{layer}.weight"] = wide.joined(tensors[f"{layer}.weight"], tensors.pop(f"{layer}.extra.weight"))
        return tensors


class WideInput(nn.Module):
    """layer(z) + extra(c), two products: with `extra` at zero this is the base's layer bit for bit.

    Args:
        layer: the base's input layer, a convolution of latents or a linear layer of patches.
        channels: latent channels of z.
        further: latent channels of c, which follow those of z.
        cells_apart: see `Backbone`.
    """

    def __init__(self, layer: Any, channels: int, further: int, *, cells_apart: bool = False) -> None:
        super().__init__()
        self.layer, self.channels, self.further, self.cells_apart = layer, channels, further, cells_apart
        if isinstance(layer, nn.Conv2d):
            form = {name: getattr(layer, name) for name in ("out_channels", "kernel_size", "stride", "padding")}
            self.extra: Any = nn.Conv2d(further, bias=False, **form)
        else:
            cells = layer.in_features // channels
            self.extra = nn.Linear(further * cells, layer.out_features, bias=False)
        nn.init.zeros_(self.extra.weight)

    def forward(self, x: Tensor) -> Tensor:
        z, c = self._parts(x, 1 if isinstance(self.extra, nn.Conv2d) else -1)
        return self.layer(z) + self.extra(c)

    def _parts(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        sizes = [self.channels, self.further]
        if self.cells_apart:
            z, c = x.unflatten(axis, (-1, sum(sizes))).split(sizes, axis)
            return z.flatten(-2), c.flatten(-2)
        cells = x.shape[axis] // sum(sizes)
        z, c = x.split([cells * size for size in sizes], axis)
        return z.contiguous(), c.contiguous()

    def joined(self, weight: Tensor, extra: Tensor) -> Tensor:
        """Return one layer's weight for all channels, from those of `layer` and of `extra`."""
        if not self.cells_apart:
            return torch.cat([weight.float(), extra.float()], dim=1)
        parts = [one.float().unflatten(1, (-1, size)) for one, size in ((weight, self.channels), (extra, self.further))]
        return torch.cat(parts, dim=2).flatten(1)
