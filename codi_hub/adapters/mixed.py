"""Several adapters on one batch: row k is the k-th one's, and the base's network runs once for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from codi_hub.adapters.adapter import Adapter, FromNoise, Prepared
from codi_hub.adapters.full import FullAdapter
from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import UsageError


class MixedBatch(FromNoise):
    """Stands where one adapter does; conditions may differ in their channels.

    Args:
        adapters: one per row of the batch.

    Raises:
        UsageError: one of them brings a U-Net of its own, or does not start from noise.
    """

    def __init__(self, adapters: Sequence[Adapter]):
        self.rows: dict[Adapter, Tensor] = {}
        for adapter in dict.fromkeys(adapters):
            if isinstance(adapter, FullAdapter):
                raise UsageError("an adapter of kind full brings its own network, and shares no batch with others")
            if adapter.start < 1:
                raise UsageError("an adapter that starts from its condition shares no batch with others")
            self.rows[adapter] = torch.tensor([k for k, one in enumerate(adapters) if one is adapter])

    def prepare(self, conditions: Sequence[Tensor], prompt: Tensor) -> list[Prepared]:
        """Of each adapter; conditions: (1, C, H, W) each, in the batch's order."""
        return [
            adapter.prepare(torch.cat([conditions[k] for k in rows]), prompt[rows])
            for adapter, rows in self.rows.items()
        ]

    def predict(self, base: FrozenBase, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: list[Prepared]) -> Tensor:
        """As `Adapter.predict`, row by row."""
        emb, features = base.features(z_t, t, prompt)
        fused = [torch.empty_like(h) for h in features]
        for (adapter, rows), own in zip(self.rows.items(), prepared, strict=True):
            of_emb, of_z, of_t, of_prompt = (h[rows] for h in (emb, z_t, t.expand(len(z_t)), prompt))
            part = adapter.conditioned(of_emb, [h[rows] for h in features], of_z, of_t, of_prompt, own)
            for whole, h in zip(fused, part, strict=True):
                whole[rows] = h
        made = base.finish(emb, fused, prompt)
        for (adapter, rows), own in zip(self.rows.items(), prepared, strict=True):
            made[rows] = adapter.corrected(emb[rows], made[rows], own)
        return made
