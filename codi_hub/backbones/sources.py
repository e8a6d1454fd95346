"""Where a base's files come from: a diffusers folder, one safetensors file, or the hub; and what takes their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from codi_hub.backbones import hub_files, single_file
from codi_hub.backbones.parts import ComponentFiles, ModelFiles, class_of, describe, read_json
from codi_hub.backbones.weights import GGUF, SUFFIX, check_variant, refuse_pickle
from codi_hub.config.base import BaseOptions
from codi_hub.errors import InvalidInput, NotFound, UsageError

CONFIGS = Path(__file__).parent / "configs"  # of models that come as one file: names of `BaseOptions.config`
SNAPSHOTS = "snapshots"  # in the folder of a model in the hub's cache

Needed = Callable[[ModelFiles], Sequence[str]]
"""Returns the components that the family of a model loads; empty where it is of none."""


def locate(options: BaseOptions, needed: Needed) -> tuple[BaseOptions, ModelFiles]:
    """Find a base's files, downloading what is needed, and read what they say.

    Args:
        options: what was asked for.
        needed: decides which weights of a hub model are downloaded.

    Returns:
        the options with the hub's commit, and the files.

    Raises:
        NotFound, InvalidInput, UsageError: something is not there, cannot be used, or has to be named.
    """
    path = Path(options.source).expanduser()
    if options.config and not path.is_file():
        raise UsageError(
            f"config {options.config}: it is for a single file, and {options.source} has its own; leave it out"
        )
    if path.is_file():
        files = _from_file(path, options)
    elif path.is_dir():
        files = describe(snapshot(path, options.revision))
    else:
        commit, folder = hub_files.snapshot(options, needed)
        options, files = options.replace(revision=commit), describe(folder)
    files = _replaced(files, options)
    if path.is_file():
        files = _with_weights(files)
    own = [where.folder for where in files.components.values() if where.file is None and where.folder.is_dir()]
    check_variant(options.variant, ([one.name for one in folder.iterdir()] for folder in own), options.source)
    return options, replace(files, variant=options.variant, loras=_loras(options))


def snapshot(folder: Path, revision: str | None = None) -> Path:
    """Return a model's folder: itself, or where it is the hub cache's folder of a model, one of its snapshots.

    Raises:
        NotFound: no such snapshot, or several and none that is `main`.
    """
    root = folder / SNAPSHOTS
    if not root.is_dir():
        return folder
    main = folder / "refs" / "main"
    there = sorted(path.name for path in root.iterdir())
    name = revision or (main.read_text().strip() if main.is_file() else there[0] if len(there) == 1 else "")
    if name not in there:
        raise NotFound(
            f"{folder} has no snapshot {name or 'called main'}; name one of {', '.join(there) or 'none'} under {root}"
        )
    return root / name


def _from_file(path: Path, options: BaseOptions) -> ModelFiles:
    """Describe a single file: its configs are those of `config`, or built in."""
    refuse_pickle(path)
    if path.suffix == GGUF:
        return _from_gguf(path, options)
    if path.suffix != SUFFIX:
        raise InvalidInput(f"{path} is a file; a base is a diffusers folder, a {SUFFIX} file or a hub id")
    form = single_file.recognise(path)
    config = options.config or form.config
    if config is None and form.name == "SD 2.x":
        raise UsageError(
            f"config: {path} is SD 2.x and does not say what it predicts; set sd21 (768 px, v) or sd21-base (512 px, "
            "the noise)"
        )
    if config is None:
        raise UsageError(f"config: {path} is {form.name}, of which no configs are built in; name a diffusers folder")
    files = describe(config_folder(config))
    if form.network not in files.configs:
        raise UsageError(f"config {config}: it has no {form.network}, which {path} ({form.name}) is")
    components = dict(files.components)
    for name in single_file.components_in(path, form.network):
        if name in components:
            components[name] = replace(components[name], file=path)
    scheduler = {**files.configs["scheduler"], **form.scheduler}
    return replace(files, components=components, configs={**files.configs, "scheduler": scheduler})


def _from_gguf(path: Path, options: BaseOptions) -> ModelFiles:
    """Describe a network in GGUF: everything else is of the folder `config`."""
    if options.quantize != "gguf":
        raise UsageError(f"quantize: {path} is quantised; set gguf")
    if options.config is None:
        raise UsageError(f"config: {path} is a network alone; name a diffusers folder of its family")
    files = describe(config_folder(options.config))
    name = next((name for name in ("transformer", "unet") if name in files.components), None)
    if name is None:
        raise UsageError(f"config {options.config}: it has no transformer and no unet")
    return replace(files, components={**files.components, name: replace(files.components[name], file=path)})


def _with_weights(files: ModelFiles) -> ModelFiles:
    """Return what is there beside a single file: a config alone is no component."""

    def is_there(name: str, where: ComponentFiles) -> bool:
        needs_none = name.startswith(("tokenizer", "scheduler"))
        return needs_none or where.file is not None or any(where.folder.glob(f"*{SUFFIX}"))

    there = {name: where for name, where in files.components.items() if is_there(name, where)}
    classes = {name: one for name, one in files.classes.items() if name in there or name not in files.components}
    return replace(files, components=there, classes=classes)


def config_folder(config: str) -> Path:
    """Return the folder that `BaseOptions.config` means: a folder, built-in configs, or a hub id. Raises NotFound."""
    path = Path(config).expanduser()
    if path.is_dir():
        return snapshot(path)
    if (CONFIGS / config / "model_index.json").is_file():
        return CONFIGS / config
    names = ", ".join(sorted(one.parent.name for one in CONFIGS.glob("*/model_index.json")))
    if "/" in config and not path.is_absolute():
        return hub_files.configs(config)
    raise NotFound(f"config {config}: neither a folder nor one of {names}")


def _replaced(files: ModelFiles, options: BaseOptions) -> ModelFiles:
    """Put the components that the options name in the place of the model's own."""
    named = [("vae", options.vae)] if options.vae else []
    for prefix, paths in (("text_encoder", options.text_encoders), ("tokenizer", options.tokenizers)):
        own = sorted(name for name in {*files.classes, *files.components} if name.startswith(prefix)) or [prefix]
        if len(paths) > len(own):
            raise UsageError(f"{prefix}s: {len(paths)} are named, and the model has {len(own)}")
        named += zip(own, paths, strict=False)
    configs, classes, components = dict(files.configs), dict(files.classes), dict(files.components)
    for name, path in named:
        components[name] = where = _component(name, Path(str(path)).expanduser(), files)
        config = where.folder / ("tokenizer_config.json" if name.startswith("tokenizer") else "config.json")
        if config.is_file():
            configs[name] = read_json(config)
            found = class_of(configs[name])
            _check_class(name, found, path, files.classes)
            classes[name] = found or classes.get(name, "")
    return replace(files, configs=configs, classes=classes, components=components)


def _check_class(name: str, found: str, path: str, own: Mapping[str, str]) -> None:
    """Refuse a component that cannot take the place of the model's own.

    A text encoder has to be of the same class, since the network has learned its output. An autoencoder may be another,
    and tokenizers have many classes that are one: of those only one that belongs to another place is refused.

    Raises:
        UsageError: named in another order than the pipeline's, or of another model.
    """
    field, expected = name.partition("_2")[0].partition("_3")[0], own.get(name, "")
    kind = field + "s" * (field != "vae")
    bare = found.removesuffix("Fast")
    others = {one.removesuffix("Fast") for other, one in own.items() if other.startswith(field)}
    wrong = {
        "vae": not found.startswith("Autoencoder"),
        "text_encoder": bool(expected) and found != expected,
        "tokenizer": bare in others and bare != expected.removesuffix("Fast"),
    }
    if found and wrong[field]:
        needs = expected or "an autoencoder"
        order = ", in the pipeline's order" * (len(others) > 1)
        raise UsageError(f"{kind} {path}: it is {found}, and the {name} has to be {needs}; name another{order}")


def _component(name: str, path: Path, files: ModelFiles) -> ComponentFiles:
    """Return where a component is that was named: a folder, with or without a subfolder of its name, or a file."""
    if path.is_dir():
        return ComponentFiles(path / name if (path / name).is_dir() else path)
    if not path.is_file():
        raise NotFound(f"no file or folder {path}, which was named as {name}")
    refuse_pickle(path)
    if name.startswith("tokenizer") or path.suffix != SUFFIX:
        raise InvalidInput(f"{path} cannot be the {name}: name a folder" + f" or a {SUFFIX} file" * (name == "vae"))
    if name not in files.configs:
        raise UsageError(f"config: {path} has no config of its own; name a diffusers folder with one of {name}")
    return ComponentFiles(files.folder / name, path)


def _loras(options: BaseOptions) -> list[tuple[Path, float]]:
    loras = [(path.expanduser(), scale) for path, scale in options.scaled_loras()]
    for path, _ in loras:
        if not path.is_file():
            raise NotFound(f"no LoRA file {path}")
        refuse_pickle(path)
        if path.suffix != SUFFIX:
            raise InvalidInput(f"{path} is no {SUFFIX} file")
    return loras


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' progress bars and remarks on unused config entries while a model is loaded."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
