"""Several adapters on one batch: each row has one or more, and the base's network runs once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codi_hub.adapters.adapter import Adapter, Prepared
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import UsageError


class MixedBatch:
    """Stands where one adapter does; conditions may differ in their channels.

    Args:
        adapters: one per condition, all with the same `start`.
        rows: row of the batch that each condition is of; by default each has a row of its own. The residuals of one
            row's adapters add up.

    Raises:
        UsageError: one of them replaces the network, they start at different times, or several of one row start from
            their conditions.
    """

    def __init__(self, adapters: Sequence[Adapter], rows: Sequence[int] | None = None) -> None:
        for adapter in adapters:
            if not adapter.adds_residuals:
                raise UsageError(
                    f"an adapter of kind {adapter.kind} brings its own network, and shares no batch with others"
                )
        if len({adapter.start for adapter in adapters}) > 1:
            raise UsageError("adapters that start at different times share no batch")
        self.start = adapters[0].start
        places = range(len(adapters)) if rows is None else rows
        if self.start != 1 and len({*places}) < len(adapters):
            raise UsageError("adapters that start from their condition share no image with others")
        self.parts: dict[Adapter, tuple[list[int], Tensor]] = {}  # conditions, and the rows that they are of
        for adapter in dict.fromkeys(adapters):
            own = [k for k, one in enumerate(adapters) if one is adapter]
            self.parts[adapter] = own, torch.tensor([places[k] for k in own])

    def initial_latents(self, backbone: Backbone, conditions: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return z_t of the first step; conditions: (1, K, H, W) each, in the order of the adapters."""
        latents = torch.empty_like(noise)
        for adapter, (own, rows) in self.parts.items():
            latents[rows] = adapter.initial_latents(backbone, torch.cat([conditions[k] for k in own]), noise[rows])
        return latents

    def prepare(self, backbone: Backbone, conditions: Sequence[Tensor], prompt: Prompt) -> list[Prepared]:
        """Return what each adapter prepares; conditions: (1, K, H, W) each, in the order of the adapters."""
        return [
            adapter.prepare(backbone, torch.cat([conditions[k] for k in own]), prompt.rows(rows))
            for adapter, (own, rows) in self.parts.items()
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
        """See `Adapter.predict`, row by row; the strengths are those of the conditions."""
        state: Any = backbone.state(z_t, t, prompt)
        residuals: Residuals | None = None
        parts = list[tuple[Tensor, Residuals]]()
        for (adapter, (own, rows)), views in zip(self.parts.items(), prepared, strict=True):
            part = None if state is None else state.rows(rows)
            added = adapter.residuals(backbone, part, z_t[rows], t[rows], prompt.rows(rows), views)
            parts.append((rows, added if strength is None else added.scaled(strength[own])))
        if (
            len({frozenset(added.tensors) for _, added in parts if added.tensors}) > 1
        ):  # imported ControlNets have any number of blocks
            parts = [(rows, backbone.per_block(added)) for rows, added in parts]
        for rows, added in parts:
            residuals = added.scatter(rows, residuals, len(z_t))
        return backbone.predict(z_t, t, prompt, residuals=residuals, state=state)
