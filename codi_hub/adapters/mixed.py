"""Several adapters on one batch: each row has its own, and the base's network runs once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codi_hub.adapters.adapter import Adapter, Prepared
from codi_hub.backbones.backbone import Backbone, Prompt, Residuals
from codi_hub.errors import UsageError


class MixedBatch:
    """Stands where one adapter does; conditions may differ in their channels.

    Args:
        adapters: one per row of the batch, all with the same `start`.

    Raises:
        UsageError: one of them replaces the network, or they start at different times.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        for adapter in adapters:
            if not adapter.adds_residuals:
                raise UsageError(
                    f"an adapter of kind {adapter.kind} brings its own network, and shares no batch with others"
                )
        if len({adapter.start for adapter in adapters}) > 1:
            raise UsageError("adapters that start at different times share no batch")
        self.start = adapters[0].start
        self.rows: dict[Adapter, Tensor] = {
            adapter: torch.tensor([k for k, one in enumerate(adapters) if one is adapter])
            for adapter in dict.fromkeys(adapters)
        }

    def initial_latents(self, backbone: Backbone, conditions: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return z_t of the first step; conditions: (1, K, H, W) each, in the batch's order."""
        latents = torch.empty_like(noise)
        for adapter, rows in self.rows.items():
            latents[rows] = adapter.initial_latents(backbone, torch.cat([conditions[k] for k in rows]), noise[rows])
        return latents

    def prepare(self, backbone: Backbone, conditions: Sequence[Tensor], prompt: Prompt) -> list[Prepared]:
        """Return what each adapter prepares; conditions: (1, K, H, W) each, in the batch's order."""
        return [
            adapter.prepare(backbone, torch.cat([conditions[k] for k in rows]), prompt.rows(rows))
            for adapter, rows in self.rows.items()
        ]

    def predict(
        self,
        backbone: Backbone,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        prepared: list[Prepared],
        strength: Tensor | None = None,
    ) -> Tensor:
        """See `Adapter.predict`, row by row."""
        state: Any = backbone.state(z_t, t, prompt)
        residuals: Residuals | None = None
        for (adapter, rows), own in zip(self.rows.items(), prepared, strict=True):
            part = None if state is None else state.rows(rows)
            added = adapter.residuals(backbone, part, z_t[rows], t[rows], prompt.rows(rows), own)
            residuals = added.scatter(rows, residuals, len(z_t))
        if residuals is not None and strength is not None:
            residuals = residuals.scaled(strength)
        return backbone.predict(z_t, t, prompt, residuals=residuals, state=state)
