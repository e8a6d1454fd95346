"""The configuration of one distillation: what was asked for, laid over what the task prefers."""

from collections.abc import Mapping
from typing import Any

from codi_hub.config.distill import DistillConfig
from codi_hub.config.first_edition import layer_of
from codi_hub.config.layers import Layer, merge
from codi_hub.losses import METHODS


def compose(preferences: Mapping[str, Any], *layers: Layer) -> DistillConfig:
    """Return the configuration of layers, the last on top, over a task's preferences and the defaults.

    Args:
        preferences: `Task.distill`, by flag names such as `{"count": 2500, "lr": 6e-4}`. Its kind gives way to a method
            or a parent that is asked for, which have a kind themselves; its guidance to a method without guidance.
        layers: nested mappings with the fields of `DistillConfig`.

    Raises:
        UsageError: a field that does not exist, or a value that it cannot have.
    """
    asked = merge(layers)
    adapter, loss = asked.get("adapter", {}), asked.get("loss", {})
    preferred = dict(preferences)
    if loss.get("method") or adapter.get("parent"):
        preferred.pop("kind", None)
    if loss.get("method") and "guidance" not in METHODS.load(loss["method"]).Config.model_fields:
        preferred.pop("guidance", None)
    return DistillConfig(**merge([layer_of(preferred), asked]))
