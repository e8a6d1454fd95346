"""What a base is made of: the components of a diffusers pipeline, before and after they are loaded."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from codi_hub.backbones import single_file
from codi_hub.backbones.clip_vocabulary import clip_tokenizer, has_vocabulary
from codi_hub.backbones.weights import weights_in
from codi_hub.errors import InvalidInput, UsageError

MODEL_INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes a component may be of
CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json")
NAMED = 3  # tensors in a message


@dataclass(frozen=True)
class ComponentFiles:
    """Where a component is.

    Attributes:
        folder: has its config, or its tokenizer's files, and its weights unless `file` has them.
        file: a safetensors file with its weights, possibly among those of others; None: those in `folder`.
    """

    folder: Path
    file: Path | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A model that is not loaded yet.

    Attributes:
        folder: the model's folder, or that of a single file's configs.
        pipeline: class that `model_index.json` names, "" where there is none.
        configs: config of every component that has one, by the component's name, `scheduler` among them.
        classes: class of every component, by its name.
        components: where every component is, by its name.
        variant: of the weight files, None where the precision decides.
        loras: LoRA files to merge, with their scales.
        arguments: further ones for the loading of a component, by its name, such as those of `quantised`.
        outlines: names of components to make of their configs alone, with shapes and no data.
    """

    folder: Path
    pipeline: str
    configs: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, str]
    components: Mapping[str, ComponentFiles] = field(default_factory=dict)
    variant: str | None = None
    loras: Sequence[tuple[Path, float]] = ()
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outlines: Collection[str] = ()


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
    index = read_json(folder / MODEL_INDEX) if (folder / MODEL_INDEX).is_file() else {}
    configs, classes, components = {}, {}, {}
    for path in sorted(folder.glob("*/*.json")):
        name = path.parent.name
        if path.name in CONFIGS:
            components[name] = ComponentFiles(path.parent)
            config = read_json(path)
            classes[name] = class_of(config)
            if not name.startswith("tokenizer"):
                configs[name] = config
    named = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and entry[1]}
    return ModelFiles(folder, str(index.get("_class_name", "")), configs, classes | named, components)


def class_of(config: Mapping[str, Any]) -> str:
    """Return the class that a component's config names, "" where it names none."""
    return str(
        config.get("_class_name") or (config.get("architectures") or [""])[0] or config.get("tokenizer_class") or ""
    )


def load_parts(files: ModelFiles, components: Sequence[str], dtype: torch.dtype) -> Parts:
    """Load components of a model, safetensors only, as they lie in the files: mapped, in one copy.

    Args:
        files: the model.
        components: names of the components to load.
        dtype: precision of the networks; an autoencoder stays in float32 where half precision overflows
            (`force_upcast`).

    Raises:
        UsageError: a component that is not there, by its field. InvalidInput: tensors that are missing, or belong to
            nothing.
    """
    for name in components:
        if name not in files.components:
            raise UsageError(f"{_field(name)}: the model has no {name}; name a folder or a safetensors file")
    if "scheduler" not in files.configs:
        raise InvalidInput(f"{files.folder} has no scheduler/scheduler_config.json: take it from the original model")
    loaded = {
        name: _tokenizer(name, files) if name.startswith("tokenizer") else _network(files, name, dtype)
        for name in components
    }
    return Parts(loaded, files.configs["scheduler"])


def weight_files(files: ModelFiles, name: str) -> list[Path]:
    """Return a component's weight files, the plain ones before a variant; none where it has no weights."""
    where = files.components.get(name)
    if where is None or name not in files.configs or name == "scheduler":
        return []
    if where.file:
        return [where.file]
    return [where.folder / file for file in weights_in(where.folder, files.variant).files]


def _network(files: ModelFiles, name: str, dtype: torch.dtype) -> Any:
    """Load a network, and refuse one whose tensors are not exactly those of its class."""
    where, config = files.components[name], files.configs[name]
    wide = torch.float32 if config.get("force_upcast") and dtype == torch.float16 else dtype
    network_class = _class(files.classes[name])
    if name in files.outlines:
        with torch.device("meta"):
            return network_class.from_config(config).to(wide).to_empty(device="cpu")
    arguments = {"torch_dtype": wide, **files.arguments.get(name, {})}
    if where.file:
        model, missing, unexpected = single_file.load(network_class, where.file, where.folder, name, arguments)
    else:
        choice = weights_in(where.folder, files.variant, half=wide != torch.float32)
        model, info = network_class.from_pretrained(
            where.folder,
            variant=choice.variant,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **arguments,
        )
        missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    _check_complete(name, where.file or where.folder, missing, unexpected)
    return model


def _check_complete(name: str, where: Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    for what, keys in (("lacks", missing), ("has unknown", unexpected)):
        if keys:
            some = ", ".join(sorted(keys)[:NAMED]) + (", ..." if len(keys) > NAMED else "")
            raise InvalidInput(
                f"{name} of {where} {what} {len(keys)} tensors ({some}): the file is incomplete, or its config is "
                "another model's: download it again, or name the config that belongs to it"
            )


def _tokenizer(name: str, files: ModelFiles) -> Any:
    folder, tokenizer_class = files.components[name].folder, files.classes.get(name) or "CLIPTokenizer"
    if has_vocabulary(folder):
        return _class(tokenizer_class).from_pretrained(folder)
    if tokenizer_class.startswith("CLIPTokenizer"):
        return clip_tokenizer(read_json(folder / "tokenizer_config.json"))
    raise UsageError(f"tokenizers: {folder} has no words of {tokenizer_class}; name a folder that has them")


def _field(component: str) -> str:
    """Return the field of `BaseOptions` that gives a component."""
    fields = {"text_encoder": "text_encoders", "tokenizer": "tokenizers", "vae": "vae"}
    return next((field for prefix, field in fields.items() if component.startswith(prefix)), "source")


def _class(name: str) -> Any:
    for library in LIBRARIES:
        if hasattr(module := importlib.import_module(library), name):
            return getattr(module, name)
    raise ValueError(f"no class {name!r} in {' or '.join(LIBRARIES)}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    return dict(json.loads(path.read_text(encoding="utf-8")))
