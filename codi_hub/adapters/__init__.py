"""Adapter kinds: one file each, found by name in `KINDS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codi_hub.config.values import KIND_ALIASES
from codi_hub.errors import UsageError
from codi_hub.plugins import Plugins
from codi_hub.validation import validated

if TYPE_CHECKING:
    import torch

    from codi_hub.adapters.adapter import Adapter
    from codi_hub.backbones.backbone import Backbone

KINDS = Plugins(
    "adapter kind",
    "codi_hub.adapters",
    {
        "control": "codi_hub.adapters.controlnet:ControlAdapter",
        "lora": "codi_hub.adapters.lora:LoraAdapter",
        "concat": "codi_hub.adapters.concat:ConcatAdapter",
        "static": "codi_hub.adapters.static:StaticAdapter",
        "residual": "codi_hub.adapters.residual:ResidualAdapter",
        "full": "codi_hub.adapters.full:FullAdapter",
    },
)


def build(kind: str, base: Backbone, *, device: torch.device | None = None, **config: Any) -> Adapter:
    """Return a new adapter of a kind on a base.

    Args:
        kind: a name in `KINDS`.
        base: the base it belongs to.
        device: of its tensors (default: the base's).
        config: what the kind's `Config` has.

    Raises:
        UsageError: an unknown kind, settings it cannot have, or a base that it is not for.
    """
    cls = KINDS.load(KIND_ALIASES.get(kind, kind))
    if cls.needs_unet and base.network_name != "unet":
        raise UsageError(
            f"adapter.kind {cls.kind}: it needs a U-Net, and bases of family {base.family} have none; use kind "
            "concat or control"
        )
    return cls(base, validated(cls.Config, config, "adapter"), device)
