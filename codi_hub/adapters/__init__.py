"""Adapter kinds: one file each, found here by name."""

from collections.abc import Callable
from typing import Any

from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.adapters.full import FullAdapter
from codi_hub.adapters.lora import LoraAdapter
from codi_hub.adapters.residual import SideAdapter
from codi_hub.adapters.static import StaticAdapter
from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import UsageError

KINDS: dict[str, Callable[..., Adapter]] = {
    cls.kind: cls for cls in (ControlAdapter, LoraAdapter, StaticAdapter, SideAdapter, FullAdapter)
}


def build(kind: str, base: FrozenBase, **config: Any) -> Adapter:
    """A new adapter of a kind on a base.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: one of {', '.join(KINDS)}")
    return KINDS[kind](base, **config)
