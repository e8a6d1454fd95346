"""What a base is made of: the components of a diffusers pipeline, before and after they are loaded."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MODEL_INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes a component may be of


@dataclass(frozen=True)
class ModelFiles:
    """A model that is not loaded yet.

    Attributes:
        folder: the model's folder.
        pipeline: class that `model_index.json` names, "" where there is none.
        configs: config of every component that has one, by the component's name, `scheduler` among them.
        classes: class of every component, by its name.
    """

    folder: Path
    pipeline: str
    configs: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, str]


@dataclass(frozen=True)
class Parts:
    """Loaded components of a model.

    Attributes:
        components: networks and tokenizers by their names in diffusers' pipelines, such as `unet` or `tokenizer_2`.
        scheduler: the scheduler's config.
    """

    components: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.components[name]

    def named(self, prefix: str) -> dict[str, Any]:
        """Return the components whose names start with a prefix, such as `text_encoder`, in pipeline order."""
        return {name: self.components[name] for name in sorted(self.components) if name.startswith(prefix)}


def describe(folder: Path) -> ModelFiles:
    """Read what a model folder says of itself. Raises ValueError or OSError for a file that is damaged."""
    index = _read(folder / MODEL_INDEX) if (folder / MODEL_INDEX).is_file() else {}
    configs, classes = {}, {}
    for path in sorted(folder.glob("*/*.json")):
        name = path.parent.name
        if path.name in ("config.json", "scheduler_config.json"):
            configs[name] = _read(path)
            classes[name] = str(configs[name].get("_class_name") or (configs[name].get("architectures") or [""])[0])
        elif path.name == "tokenizer_config.json":
            classes[name] = str(_read(path).get("tokenizer_class", ""))
    named = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and entry[1]}
    return ModelFiles(folder, str(index.get("_class_name", "")), configs, classes | named)


def load_parts(files: ModelFiles, components: Sequence[str], dtype: torch.dtype) -> Parts:
    """Load components of a model folder, safetensors only.

    Args:
        files: the model.
        components: names of the components to load; those of text encoders and tokenizers that are not there are left
            out.
        dtype: precision of the networks; an autoencoder stays in float32 where half precision overflows
            (`force_upcast`).
    """
    loaded = {}
    for name in components:
        if name.startswith("tokenizer"):
            loaded[name] = _class(files.classes.get(name) or "CLIPTokenizer").from_pretrained(files.folder / name)
            continue
        config = files.configs[name]
        wide = torch.float32 if config.get("force_upcast") and dtype == torch.float16 else dtype
        loaded[name] = _class(files.classes[name]).from_pretrained(
            files.folder / name, torch_dtype=wide, use_safetensors=True, low_cpu_mem_usage=True
        )
    return Parts(loaded, files.configs["scheduler"])


def _class(name: str) -> Any:
    for library in LIBRARIES:
        if hasattr(module := importlib.import_module(library), name):
            return getattr(module, name)
    raise ValueError(f"no class {name!r} in {' or '.join(LIBRARIES)}")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
