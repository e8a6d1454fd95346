"""`full`: CoDi as published, everything trained. The adapter carries a U-Net of its own beside its encoder."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from codi_hub.adapters.adapter import Prepared
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import FrozenBase, decode_features, encode_features


class FullAdapter(ControlAdapter):
    """A conditional encoder, its fusion, and a trained copy of the base's U-Net; of the base, the text encoder, the
    autoencoder and the schedule are used.

    Args and errors are those of `ControlAdapter`; `pretrained` is about the conditional encoder alone, since the copy
    of the U-Net is the base's in any case.
    """

    kind = "full"

    def __init__(self, base: FrozenBase, **config: Any):
        super().__init__(base, **config)
        shapes = {id(v): nn.Parameter(torch.empty_like(v, device="meta")) for v in base.unet.parameters()}
        unet = copy.deepcopy(base.unet, shapes if base.device.type == "meta" else {})
        self.unet = unet.requires_grad_(True).train()
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(self, base: FrozenBase, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Prepared) -> Tensor:
        """What the adapter's own network predicts at z_t under the condition, in the base's prediction type."""
        emb, features = encode_features(self.unet, z_t, t, prompt)
        _, conditional = encode_features(self.encoder, z_t, t, prompt, prepared[0])
        return decode_features(self.unet, emb, self.fuse(features, conditional), prompt)
