"""The base without an adapter, where an adapter is expected: it sees the prompt, and no condition."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from codi_hub.adapters.adapter import Adapter, AdapterConfig, Prepared
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt, Residuals


class BaseOnly(Adapter):
    """Adds nothing, and starts from noise."""

    kind: ClassVar[str] = "base"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, AdapterConfig())

    def prepare(self, backbone: Backbone, condition: Tensor, prompt: Prompt) -> Prepared:
        """See `Adapter.prepare`."""
        return []

    def residuals(
        self, backbone: Backbone, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """See `Adapter.residuals`."""
        return Residuals({})
