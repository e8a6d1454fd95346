"""Prompts of a run's images: from the metadata.jsonl of a folder, or from the text file beside the image."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterator
from pathlib import Path

from codi_hub import jsonl
from codi_hub.errors import InvalidInput
from codi_hub.images.io import MAX_BYTES
from codi_hub.images.sidecars import METADATA, clean_prompt, name_key, named, read_caption
from codi_hub.objects import exists, local_copies
from codi_hub.paths import display_path
from codi_hub.urls import UrlPath

KEYS = ("prompt", "edit_prompt", "instruction", "text", "caption")  # in this order of precedence


def read_metadata(folder: Path) -> dict[str, str]:
    """Return the prompts by name relative to the folder, from the `file_name` and one of `KEYS` in metadata.jsonl.

    The names are in the form of `name_key`.

    Raises:
        InvalidInput: a wrong line, by its number.
    """
    file = folder / METADATA
    if not (exists(file) if isinstance(file, UrlPath) else file.is_file()):
        return {}
    with local_copies([file], MAX_BYTES) as local:
        return _read(local(file), file)


def _read(copy: Path, file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, row in jsonl.objects(copy):
        where = f"{display_path(file)} line {number}"
        name = row.get("file_name")
        if not isinstance(name, str):
            raise InvalidInput(f'{where} has no file_name: write {{"file_name": "a.png", "prompt": "..."}}')
        key = next((key for key in KEYS if row.get(key) is not None), None)
        if key is None:
            continue
        if not isinstance(row[key], str):
            raise InvalidInput(f"{where}: {key} is {row[key]!r:.60}, not text")
        prompt = clean_prompt(row[key], f"{where}: {key}")
        name = name_key(name)
        if prompt and found.setdefault(name, prompt) != prompt:
            raise InvalidInput(f"{where} gives {display_path(name)} a second prompt: keep one line for it")
    return found


class Prompts:
    """The prompts of images that have none in common; each metadata.jsonl is read once."""

    def __init__(self) -> None:
        self._read = functools.cache(read_metadata)
        self._folders: dict[Path, set[str]] = {}  # below an input folder -> names that were looked up

    def of(self, image: Path, folder: Path, name: str) -> str | None:
        """Return the prompt of an image.

        A line of the nearest metadata.jsonl counts, from the image's folder up to the input folder; else NAME.txt.

        Args:
            folder: the input folder, or the folder of an input file.
            name: the image's path relative to it, with slashes.

        Raises:
            InvalidInput: a metadata.jsonl or text file that cannot be used.
        """
        parts = name.split("/")
        for depth in range(len(parts) - 1, -1, -1):
            place = folder.joinpath(*parts[:depth])
            key = name_key("/".join(parts[depth:]))
            self._folders.setdefault(place, set()).add(key)
            if prompt := self._read(place).get(key):
                return prompt
        return read_caption(image)

    def unmatched(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Yield (metadata.jsonl, name) of each line in or below an input folder whose file does not exist."""
        for place, used in self._folders.items():
            if place.is_relative_to(folder):
                for name in self._read(place).keys() - used:
                    if named(place, name) is None:
                        yield place / METADATA, posixpath.normpath(name)
