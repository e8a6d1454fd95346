"""The base without an adapter, as a contestant of `codi eval --against base`."""

from torch import Tensor

from codi_hub.adapters.adapter import FromNoise
from codi_hub.backbones.unet import FrozenBase


class PromptOnly(FromNoise):
    """The base alone with the interface of an adapter: it gets the prompt and ignores the condition."""

    def prepare(self, condition: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return the condition, which `predict` ignores."""
        return condition

    def predict(self, base: FrozenBase, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Tensor) -> Tensor:
        """Return the prediction of the base at z_t, (B, C, h, w)."""
        emb, features = base.features(z_t, t, prompt)
        return base.finish(emb, features, prompt)
