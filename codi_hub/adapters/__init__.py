"""Adapter kinds: one file each, found here by name."""

from types import SimpleNamespace
from typing import Any

import torch

from codi_hub.adapters.control import ControlAdapter
from codi_hub.adapters.full import FullAdapter
from codi_hub.adapters.lora import LoraAdapter
from codi_hub.adapters.static import StaticAdapter
from codi_hub.base import FrozenBase
from codi_hub.errors import UsageError

KINDS: dict[str, type[ControlAdapter]] = {
    cls.kind: cls for cls in (ControlAdapter, LoraAdapter, StaticAdapter, FullAdapter)
}


def build(kind: str, base: FrozenBase, **config: Any) -> ControlAdapter:
    """A new adapter of a kind on a base.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: one of {', '.join(KINDS)}")
    return KINDS[kind](base, **config)


def skeleton(kind: str, base: FrozenBase, **config: Any) -> ControlAdapter:
    """An adapter whose own tensors have shapes only (device `meta`): no memory is taken and nothing is drawn.

    Raises:
        UsageError: see `build`. TypeError: a setting that the kind does not have.
    """
    shape = SimpleNamespace(unet=base.unet, factor=base.factor, device=torch.device("meta"))
    with shape.device:
        return build(kind, shape, pretrained=False, **config)  # type: ignore[arg-type]
