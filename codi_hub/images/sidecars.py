"""Files that belong to an image by their names: masks, prompts, captions, the partner of a pair.

Two names are one whatever their Unicode normalisation (macOS stores NFD, most others NFC), the case of their extension
and the kind of their slashes.
"""

from __future__ import annotations

import functools
import os
import posixpath
import stat
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from codi_hub.errors import InvalidInput
from codi_hub.objects import exists, local_copies
from codi_hub.objects import names as names_in
from codi_hub.paths import display_path
from codi_hub.urls import UrlPath

METADATA = "metadata.jsonl"
TEXT = ".txt"
MAX_BYTES = 1 << 14  # of one prompt; text encoders read about seventy words
MAX_TEXT = 1 << 20  # bytes that are copied from a store to be told that they are too many
SETTLED_NS = 2 * 10**9  # a folder that changed less than this ago may change again within the resolution of its time


def name_key(name: str) -> str:
    """Return the form of a relative path that is equal for two spellings of one name."""
    stem, extension = posixpath.splitext(posixpath.normpath(name.replace("\\", "/")))
    return _nfc(stem) + extension.lower()


def beside(image: Path, endings: Sequence[str]) -> Path | None:
    """Return the file in the image's folder whose name is the image's stem and the first possible of the endings.

    Args:
        endings: in lower case, such as `.txt` or `_mask.png`; a file may write them in any case.
    """
    return _find(image.parent, image.stem, endings)


def named(folder: Path, name: str) -> Path | None:
    """Return the existing file of a relative name in a folder, by any spelling of the name."""
    exact = folder / name
    if exists(exact):
        return exact
    place = folder
    for part in posixpath.normpath(name.replace("\\", "/")).split("/"):
        stem, extension = posixpath.splitext(part)
        found = place.parent if part == ".." else _find(place, stem, (extension.lower(),))
        if found is None:
            return None
        place = found
    return place


def read_caption(image: Path) -> str | None:
    """Return the text of NAME.txt beside NAME.png; None if it does not exist or is empty.

    Raises:
        InvalidInput: the file cannot be read, is too long or is not UTF-8 text.
    """
    path = beside(image, (TEXT,))
    if path is None:
        return None
    with local_copies([path], MAX_TEXT) as local:
        return _read_caption(local(path))


def _read_caption(path: Path) -> str | None:
    where = f"the prompt beside it, {display_path(path.name)},"
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInput(f"{where} is not a regular file")
        _check_size(info.st_size, where)
        return clean_prompt(path.read_text("utf-8-sig"), where)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is not UTF-8 text") from error
    except OSError as error:
        raise InvalidInput(f"{where} cannot be read: {error.strerror}") from error


def clean_prompt(prompt: str, where: str) -> str | None:
    """Return the prompt without white space around it, None if it is empty. Raises InvalidInput if it is not text."""
    try:
        _check_size(len(prompt.encode("utf-8")), where)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{where} is not UTF-8 text") from error
    if "\0" in prompt:
        raise InvalidInput(f"{where} is not text: it contains zero bytes")
    return prompt.strip() or None


def _check_size(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise InvalidInput(f"{where} has {size} bytes, over the limit of {MAX_BYTES}: a prompt is a sentence or two")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _find(folder: Path, stem: str, endings: Sequence[str]) -> Path | None:
    if not stem:
        return None
    names, stem = _names(folder), _nfc(stem)
    for ending in endings:
        for name in names.get((stem + ending).casefold(), ()):
            if _nfc(name).startswith(stem):  # A.txt does not belong to a.png
                return folder / name
    return None


def _names(folder: Path) -> Mapping[str, Sequence[str]]:
    if isinstance(folder, UrlPath):
        return names_in(folder, _by_form)
    try:
        changed = os.stat(folder).st_mtime_ns
        if time.time_ns() - changed < SETTLED_NS:
            return _listed(str(folder))
        return _cached(str(folder), changed)
    except OSError:
        return {}


def _listed(folder: str) -> Mapping[str, Sequence[str]]:
    """Return the names in a folder by their form in NFC and one case, sorted."""
    return _by_form(os.listdir(folder))


def _by_form(names: Iterable[str]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(_nfc(name).casefold(), []).append(name)
    return found


@functools.lru_cache(64)
def _cached(folder: str, changed: int) -> Mapping[str, Sequence[str]]:
    return _listed(folder)
