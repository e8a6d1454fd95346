"""The configuration of one distillation: what was asked for, laid over what the task prefers, or what a run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codi_hub.config.distill import DistillConfig, TrainingConfig
from codi_hub.config.first_edition import layer_of
from codi_hub.config.layers import Layer, merge
from codi_hub.losses import METHODS
from codi_hub.training.folder import run_folder, started_layer


def compose(task: str, preferences: Mapping[str, Any], layers: Sequence[Layer], home: Path) -> DistillConfig:
    """Return the configuration of layers, the last on top, over a task's preferences and the defaults.

    A run that is resumed has its own configuration in place of the preferences; what differs from it is compared
    later, by `folder.claim`.

    Args:
        task: the task's name.
        preferences: `Task.distill`, by flag names such as `{"count": 2500, "lr": 6e-4}`.
        layers: nested mappings with the fields of `DistillConfig`.
        home: the state folder, where a run to resume is looked for.

    Raises:
        UsageError: a field that does not exist, a value that it cannot have, or nothing to resume.
    """
    asked = merge(layers)
    training = TrainingConfig(**asked.get("training", {}))
    if training.resume:
        folder = run_folder(home, task, training)
        return DistillConfig(**merge([started_layer(folder, task), asked, {"training": {"run_dir": folder}}]))
    return DistillConfig(**merge([_preferred(preferences, asked), asked]))


def _preferred(preferences: Mapping[str, Any], asked: Layer) -> dict[str, Any]:
    """Return the preferences as a layer: the kind gives way to a method or a parent, which have one themselves."""
    adapter, loss = asked.get("adapter", {}), asked.get("loss", {})
    preferred = dict(preferences)
    if loss.get("method") or adapter.get("parent"):
        preferred.pop("kind", None)
    method = loss.get("method")
    if method in METHODS and "guidance" not in METHODS.load(method).Config.model_fields:
        preferred.pop("guidance", None)
    return layer_of(preferred)
