"""A configuration as text: `config.yaml`, every field under its docstring as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from codi_hub.config import yaml_text
from codi_hub.config.distill import DistillConfig, RunState
from codi_hub.config.model import Options, declared

WIDTH = 116


def to_yaml(config: DistillConfig, models: Mapping[str, type[BaseModel]] | None = None, heading: str = "") -> str:
    """Return a configuration as YAML that `layers.read_config` takes back.

    Args:
        models: section -> the `Config` of the adapter kind or method whose fields stand there too.
        heading: a comment above everything.
    """
    fields = [*declared(DistillConfig), *declared(RunState, "run.")]
    fields += [one for section, model in (models or {}).items() for one in declared(model, f"{section}.")]
    comments = {one.path: one.help for one in fields}
    unrecorded = {one.path for one in fields if not one.recorded}
    lines = _comment(heading, "")
    for name, value in config.values().items():
        if value is None and name == "run":
            continue
        lines += _comment(comments.get(name, ""), "")
        if not isinstance(getattr(config, name), Options):
            lines += _field(name, value, "")
            continue
        lines.append(f"{name}:")
        for inner, own in value.items():
            if (path := f"{name}.{inner}") not in unrecorded:
                lines += [*_comment(comments.get(path, ""), "  "), *_field(inner, own, "  ")]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - len(indent))]


def _field(name: str, value: Any, indent: str) -> list[str]:
    text = yaml_text.dump({name: plain(value)})
    return [f"{indent}{line}" for line in text.splitlines()]


def plain(value: Any) -> Any:
    """Return a value as YAML and JSON know it: paths as text, tuples as lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
