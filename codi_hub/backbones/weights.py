"""Weight files of a component: which of its variants is there, and what a safetensors file says of itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codi_hub.errors import InvalidInput, UsageError, one_line

SUFFIX, GGUF = ".safetensors", ".gguf"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
HALF = "fp16"  # diffusers' name of the variant with 16-bit weights
HEADER_LIMIT = 10**8  # bytes, as in the safetensors format
STEM = r"(?:diffusion_pytorch_model|model)"


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself, read without its tensors.

    Attributes:
        shapes: of every tensor, by its name.
        metadata: text that the writer added.
        dtype: of most tensors, as the format spells it, such as F16.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    dtype: str = "F32"

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def any(self, *prefixes: str) -> bool:
        """Return whether some tensor's name begins so."""
        return any(name.startswith(prefixes) for name in self.shapes)


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file. Raises InvalidInput for another file, or one that is cut off."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(length)) if 0 < length < HEADER_LIMIT else {}
            if not entries:
                raise ValueError("no header")
            metadata = entries.pop("__metadata__", {})
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            if not entries:
                raise ValueError("no tensors")
            if path.stat().st_size < 8 + length + end:
                raise ValueError("it is cut off")
            dtype = Counter(entry["dtype"] for entry in entries.values()).most_common(1)[0][0]
            return Header({name: tuple(entry["shape"]) for name, entry in entries.items()}, metadata, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} is not a safetensors file, or damaged: {one_line(error, 80)}") from error


@dataclass(frozen=True)
class Choice:
    """Weight files of a component, by name.

    Attributes:
        variant: such as fp16; None for the plain files.
        index: the index of a sharded model, None for one file.
        files: the file, or the shards.
    """

    variant: str | None
    index: str | None
    files: Sequence[str]


def choose(names: Collection[str], variants: Sequence[str | None]) -> Choice | None:
    """Choose one set of safetensors files among the names of a component's files.

    Args:
        names: names without a folder.
        variants: to look for, the preferred one first; None is the plain files.

    Returns:
        None where no variant is there.
    """
    for variant in variants:
        mark = f"\\.{re.escape(variant)}" if variant else ""
        single = re.compile(rf"{STEM}{mark}\.safetensors")
        index = re.compile(rf"{STEM}\.safetensors\.index{mark}\.json")
        shard = re.compile(rf"{STEM}(?:{mark}-\d+-of-\d+|-\d+-of-\d+{mark})\.safetensors")
        if found := sorted(filter(single.fullmatch, names)):
            return Choice(variant, None, found[:1])
        if found := sorted(filter(index.fullmatch, names)):
            return Choice(variant, found[0], sorted(filter(shard.fullmatch, names)))
    return None


def check_variant(wanted: str | None, components: Iterable[Collection[str]], source: str) -> None:
    """Check that a variant that was asked for is there: some models have it of a part of their components.

    Args:
        wanted: the variant, None for any.
        components: names of the files of every component.
        source: the model.

    Raises:
        UsageError: no component has it.
    """
    if wanted and not any(choose(names, [wanted]) for names in components):
        raise UsageError(f"variant {wanted}: {source} has no weights of that name; leave it out")


def variants(wanted: str | None, half: bool) -> list[str | None]:
    """Return the variants to look for in order: the one that was asked for, then by the precision of the weights."""
    order: list[str | None] = [HALF, None] if half else [None, HALF]
    return [wanted, *(one for one in order if one != wanted)] if wanted else order


def weights_in(folder: Path, wanted: str | None = None, half: bool = False) -> Choice:
    """Return the weight files in a component's folder.

    Raises:
        InvalidInput: none, pickles alone, or shards that are missing, by name.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}
    choice = choose(names, variants(wanted, half))
    if choice is None:
        if pickled := sorted(name for name in names if name.endswith(PICKLES)):
            refuse_pickle(folder / pickled[0])
        others = sorted(name for name in names if name.endswith(SUFFIX))
        hint = f"; set variant to that of {others[0]}" if others else ""
        raise InvalidInput(f"{folder} has no weights: diffusion_pytorch_model.safetensors or model.safetensors{hint}")
    if choice.index:
        shards = sorted(set(json.loads((folder / choice.index).read_text(encoding="utf-8"))["weight_map"].values()))
        if missing := [name for name in shards if name not in names]:
            raise InvalidInput(
                f"{folder / choice.index} names {len(missing)} of {len(shards)} files that are not there "
                f"({missing[0]}): download them again"
            )
        return Choice(choice.variant, choice.index, shards)
    return choice


def refuse_pickle(path: Path) -> None:
    """Raise InvalidInput for a pickle, with the remedy."""
    if path.suffix in PICKLES:
        raise InvalidInput(
            f"{path} is a pickle, which can run code when it is read: convert it to safetensors (in diffusers: load it "
            "where you trust it, then `save_pretrained(FOLDER, safe_serialization=True)`) and name that"
        )
