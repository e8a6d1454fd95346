"""Layers of a distillation's configuration: presets, YAML files, overrides, and how they are laid over each other.

From the lowest: defaults, the task's preferences, the preset, the file, overrides, flags. A layer is a nested mapping
with the field names of `DistillConfig`; it is checked by itself, so that an error names where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from codi_hub.config import yaml_text
from codi_hub.config.distill import DistillConfig
from codi_hub.errors import InvalidInput, UsageError, one_line


class LayerError(UsageError):
    """A field of a file, preset or override that cannot be: its message names the path as it is written there."""


Layer = Mapping[str, Any]
MAX_FILE = 1 << 18  # bytes of a configuration file; the longest there are have a few thousand
PRESETS = resources.files("codi_hub.config") / "presets"


def read_config(path: Path) -> dict[str, Any]:
    """Return the layer in a YAML file. The `run` section of a run folder's `config.yaml` is left out.

    Raises:
        InvalidInput: a file that cannot be read, is too large or is not YAML.
        UsageError: a field that does not exist or a value that it cannot have.
    """
    layer = read_yaml(path)
    layer.pop("run", None)
    return check_layer(layer, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises InvalidInput."""
    try:
        if (size := path.stat().st_size) > MAX_FILE:
            raise InvalidInput(f"{path}: {size} bytes, over the limit of {MAX_FILE} for a configuration")
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or one_line(error, 160)}") from error


def preset_names() -> list[str]:
    """Return the names of the bundled presets, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the layer of a bundled preset. Raises UsageError for a name that there is not."""
    if name not in preset_names():
        raise UsageError(f"no preset {one_line(name, 40)!r}: one of {', '.join(preset_names())}")
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    return check_layer(_parse(text, f"preset {name}"), f"preset {name}")


def parse_override(text: str) -> dict[str, Any]:
    """Return the layer of one `path.to.field=value`; the value is a YAML scalar or list. Raises UsageError."""
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in names):
        raise UsageError(f"{one_line(text, 80)!r}: not an override; write path.to.field=value, as training.ema=0.999")
    try:
        layer = nested({path.strip(): yaml_text.load(value)})
    except InvalidInput as error:
        raise UsageError(f"{one_line(text, 80)!r}: {error}") from error
    return check_layer(layer, "")


def check_layer(layer: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return a layer whose fields exist and can have the values they have. Raises UsageError naming its origin."""
    try:
        DistillConfig(**layer)
    except UsageError as error:
        raise LayerError(f"{origin}: {error}" if origin else str(error)) from None
    return layer


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Lay mappings over each other, the last on top; mappings inside them are merged, other values replaced."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            before = merged.get(name)
            if isinstance(value, Mapping):
                merged[name] = merge([before if isinstance(before, Mapping) else {}, value])
            else:
                merged[name] = value
    return merged


def nested(paths: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layer of values given by dotted paths, such as `{"training.lr": 1e-3}`."""
    layers = []
    for path, value in paths.items():
        layer: Any = value
        for name in reversed(path.split(".")):
            layer = {name: layer}
        layers.append(layer)
    return merge(layers)


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        value = yaml_text.load(text)
    except InvalidInput as error:
        raise InvalidInput(f"{one_line(origin, 160)}: {error}") from error
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidInput(f"{one_line(origin, 160)}: not a configuration: a mapping of sections such as training")
    return value
