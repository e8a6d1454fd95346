"""Adapter kinds by name. Importing the package needs no torch: a kind's module is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from codi_hub.plugins import Plugins

if TYPE_CHECKING:
    from codi_hub.adapters.adapter import Adapter
    from codi_hub.adapters.controlnet import ControlAdapter
    from codi_hub.adapters.full import FullAdapter
    from codi_hub.adapters.lora import LoraAdapter
    from codi_hub.adapters.residual import ResidualAdapter
    from codi_hub.adapters.static import StaticAdapter
    from codi_hub.backbones.unet import FrozenBase

__all__ = [
    "KINDS",
    "Adapter",
    "ControlAdapter",
    "FullAdapter",
    "LoraAdapter",
    "ResidualAdapter",
    "StaticAdapter",
    "build",
    "kind_name",
]

KINDS = Plugins(
    "adapter kind",
    "codi_hub.adapters",
    {
        "control": "codi_hub.adapters.controlnet:ControlAdapter",
        "lora": "codi_hub.adapters.lora:LoraAdapter",
        "static": "codi_hub.adapters.static:StaticAdapter",
        "residual": "codi_hub.adapters.residual:ResidualAdapter",
        "full": "codi_hub.adapters.full:FullAdapter",
    },
)
_PLACES = {place.partition(":")[2]: place.partition(":")[0] for place in KINDS.own.values()}
_PLACES["Adapter"] = "codi_hub.adapters.adapter"


def kind_name(kind: str) -> str:
    """Return the present name of a kind: `residual` was called `side`."""
    return "residual" if kind == "side" else kind


def build(kind: str, base: FrozenBase, **config: Any) -> Adapter:
    """Return a new adapter of a kind on a base.

    Raises:
        UsageError: an unknown kind, or a config that the kind refuses.
    """
    adapter: Adapter = KINDS.load(kind_name(kind))(base, **config)
    return adapter


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
