"""Files of a hub model that a base needs: one variant of the components that its family loads, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.backbones.parts import MODEL_INDEX, ModelFiles, describe, read_json
from codi_hub.backbones.weights import PICKLES, SUFFIX, check_variant, choose, variants, weights_in
from codi_hub.config.base import BaseOptions
from codi_hub.errors import CodiError, InvalidInput, NotFound, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Small files of a component: configs, vocabularies, and the index of shards in safetensors.
SMALL = re.compile(r"[\w-]+\.json|[\w-]+\.safetensors\.index(?:\.\w+)?\.json|\w+\.txt|\w+\.model|[\w-]+\.jinja")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def config_names(names: Collection[str], index: Mapping[str, Any]) -> list[str]:
    """Return the files of a repository that say what the model is: configs, tokenizers, indexes of shards.

    Args:
        names: all files of the repository.
        index: its `model_index.json`.
    """
    components = {name for name, entry in index.items() if isinstance(entry, list) and entry[1] and name not in UNUSED}
    split = ((name, *name.split("/")) for name in names if name.count("/") == 1)
    return [MODEL_INDEX, *sorted(name for name, where, file in split if where in components and SMALL.fullmatch(file))]


def weight_names(names: Collection[str], components: Sequence[str], wanted: str | None) -> list[str]:
    """Return the weight files of a repository that components are loaded from, one variant of each.

    Args:
        names: all files of the repository.
        components: names of the components, tokenizers among them.
        wanted: variant that was asked for.

    Raises:
        InvalidInput: a component has no safetensors files. UsageError: no component has the variant.
    """
    chosen = []
    files = {name: {path.partition("/")[2] for path in names if path.startswith(f"{name}/")} for name in components}
    check_variant(wanted, files.values(), "the repository")
    for component, inside in files.items():
        if component.startswith("tokenizer") or not inside:
            continue
        choice = choose(inside, variants(wanted, half=False))
        if choice is None:
            pickled = " (only pickles, which can run code)" if any(n.endswith(PICKLES) for n in inside) else ""
            raise InvalidInput(f"{component} has no safetensors files{pickled}: choose another repository")
        chosen += [f"{component}/{name}" for name in choice.files]
    return chosen


def snapshot(options: BaseOptions, needed: Callable[[ModelFiles], Sequence[str]]) -> tuple[str, Path]:
    """Return the commit and the folder of a hub model whose needed files are in the cache, downloaded if need be.

    Raises:
        NotFound: it cannot be reached, and is not in the cache. InvalidInput: not in the diffusers layout.
    """
    source = options.source
    if options.revision and (folder := _cached(source, options, needed)):
        return options.revision, folder
    from huggingface_hub import HfApi

    try:
        return _download(HfApi(), options, needed)
    except CodiError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub client raises a dozen unrelated kinds; all mean "cannot be had"
        if folder := _cached(source, options, needed):
            return folder.name, folder
        reason = one_line(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
        raise NotFound(
            f"base {source!r} is neither a folder or file here nor a model that the hub could give: {reason}"
        ) from None


def _download(api: HfApi, options: BaseOptions, needed: Callable[[ModelFiles], Sequence[str]]) -> tuple[str, Path]:
    """Download in steps: what says which family it is, then the weights that the family needs."""
    info = api.model_info(options.source, revision=options.revision)
    names = [entry.rfilename for entry in info.siblings or []]
    commit = str(info.sha)
    if MODEL_INDEX not in names:
        single = sorted(name for name in names if name.endswith(SUFFIX))
        hint = f"download {single[0]} and name the file" if single else "choose another repository"
        raise InvalidInput(f"{options.source} on the hub is not in the diffusers layout (no {MODEL_INDEX}): {hint}")
    folder = _get(options.source, commit, [MODEL_INDEX])
    _get(options.source, commit, config_names(names, read_json(folder / MODEL_INDEX)))
    components = replaced_by(options, needed(describe(folder)))
    if weights := weight_names(names, components, options.variant):
        _get(options.source, commit, weights)
    return commit, folder


def replaced_by(options: BaseOptions, components: Sequence[str]) -> list[str]:
    """Return the components without those that the options take from elsewhere."""
    encoders = [name for name in components if name.startswith("text_encoder")]
    others = {*encoders[: len(options.text_encoders)], *(["vae"] if options.vae else [])}
    return [name for name in components if name not in others]


def _cached(source: str, options: BaseOptions, needed: Callable[[ModelFiles], Sequence[str]]) -> Path | None:
    """Return the folder in the cache that has everything, without asking the hub; None where something is missing."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=options.revision, local_files_only=True))
        files = describe(folder)
        components = [name for name in replaced_by(options, needed(files)) if name in files.classes]
        for name in components:
            if not name.startswith("tokenizer"):
                weights_in(folder / name, options.variant)  # raises where a file or a shard is missing
    except Exception:  # noqa: BLE001 - incomplete or not there at all: the hub is asked
        return None
    return folder if components else None


def _get(source: str, commit: str, names: Sequence[str]) -> Path:
    """Download some files of a repository; return the folder of its snapshot."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=commit, allow_patterns=list(names)))


def configs(source: str) -> Path:
    """Return a folder with the configs and tokenizers of a hub model, without its weights. Raises NotFound."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(source)
        folder = _get(source, str(info.sha), [MODEL_INDEX])
        names = [entry.rfilename for entry in info.siblings or []]
        return _get(source, str(info.sha), config_names(names, read_json(folder / MODEL_INDEX)))
    except Exception as error:  # noqa: BLE001 - see `snapshot`
        reason = one_line(error, 160)
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception:  # noqa: BLE001 - see `snapshot`
        raise NotFound(
            f"config {source}: neither a folder here nor a model that the hub could give: {reason}"
        ) from None
