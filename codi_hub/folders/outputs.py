"""What lies where a run would write: a finished output, one to replace, or a file that codi did not write."""

from __future__ import annotations

import enum
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from codi_hub.errors import InvalidInput
from codi_hub.folders.plan import Item
from codi_hub.folders.rows import RegistryLog
from codi_hub.images.io import MAX_BYTES, decode_image, open_image
from codi_hub.images.metadata import read_origin
from codi_hub.objects import local_copies, version
from codi_hub.partial import clean
from codi_hub.registry.rows import OutputRow
from codi_hub.registry.store import sha256
from codi_hub.urls import UrlPath

FOREIGN = (
    "the output exists, and codi did not write it or it was changed since: move it, choose another output folder or a "
    "suffix, or allow overwrite"
)
DAMAGED = "damaged"


class Content(enum.Enum):
    """The content of a file at the path of an output."""

    LAST = enum.auto()  # as the last run wrote it
    EARLIER = enum.auto()  # as any other run wrote it, perhaps to another path
    DAMAGED = enum.auto()  # the rest of what the last run wrote
    FOREIGN = enum.auto()


@dataclass(frozen=True)
class Existing:
    """What a run does with an existing output.

    Attributes:
        finished: nothing is to be done.
        error: it must not be replaced.
        replaces: how the output that is replaced differs from the one that is made; None where nothing is known.
    """

    finished: bool = False
    error: str | None = None
    replaces: str | None = None


def clean_outputs(items: Iterable[Item]) -> None:
    """Remove what killed processes have left half written where outputs go; a store has no such files."""
    for folder in {item.output.parent for item in items}:
        if not isinstance(folder, UrlPath):
            clean(folder)


def examine(item: Item, input_hash: str | None, log: RegistryLog, *, verify: bool) -> Existing:
    """Decide about an existing output.

    Args:
        input_hash: sha256 of the input as it is now; None if it cannot be read.
        verify: read the output even if its size and time are as they were written.
    """
    last = log.last(item)
    content = content_of(item.output, last, log, input_hash, verify=verify)
    if content is Content.FOREIGN:
        return Existing(error=FOREIGN)
    if content is Content.DAMAGED:
        return Existing(replaces=DAMAGED)
    if input_hash is None:
        return Existing()
    changes = _changes(item, input_hash, last) if last else "made by another run"
    return Existing(finished=changes is None and content is Content.LAST, replaces=changes or "made by another run")


def _changes(item: Item, input_hash: str, last: OutputRow) -> str | None:
    """Return what differs between the last record of an output and what is asked for; None if nothing does."""
    if last.prompt != item.prompt:
        return "made with another prompt"
    if not last.same:
        return "made with another adapter or other options"
    if last.input_hash != input_hash:
        return "made from another input"
    return "made with another seed" if last.seed != item.seed else None


def content_of(
    path: Path, last: OutputRow | None, log: RegistryLog, input_hash: str | None, *, verify: bool = True
) -> Content:
    """Compare a file with the records of the run log. One that was written before hashes were logged cannot change.

    A file of which the log knows nothing, as after its loss, is codi's if its own metadata name codi and the input.

    Args:
        last: the last record of the path.
        input_hash: sha256 of the input as it is now; None if it cannot be read.
        verify: read the file even if its size and time are as they were written.
    """
    if isinstance(path, UrlPath):
        if last and not verify and last.mtime_ns is not None and version(path) == last.mtime_ns:
            return Content.LAST
        with local_copies([path], MAX_BYTES) as local:
            return content_of(local(path), last, log, input_hash)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            return Content.FOREIGN
        if last and last.hash is None:
            return Content.LAST if info.st_size else Content.DAMAGED
        if last and not verify and (info.st_size, info.st_mtime_ns) == (last.bytes, last.mtime_ns):
            return Content.LAST
        digest = sha256(path)
    except OSError:
        return Content.FOREIGN
    if last and digest == last.hash:
        return Content.LAST
    if log.wrote(digest):
        return Content.EARLIER
    # An edited image is its editor's; what is no image any more, and not longer than it was, is what is left of ours.
    if last and info.st_size <= (last.bytes or 0) and not _is_image(path):
        return Content.DAMAGED
    return Content.EARLIER if last is None and input_hash and _names(path, input_hash) else Content.FOREIGN


def _names(path: Path, input_hash: str) -> bool:
    """Return whether an image says that codi made it from an input with this sha256."""
    try:
        origin = read_origin(path)
    except InvalidInput:
        return False
    return origin is not None and origin.get("input_sha256") == input_hash


def _is_image(path: Path) -> bool:
    try:
        decode_image(open_image(path))
    except InvalidInput:
        return False
    return True


def replacing(reasons: Iterable[str]) -> str | None:
    """Return a sentence about the outputs that will be replaced; None if there are none."""
    counts = Counter(reasons)
    if not counts:
        return None
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    keep = "" if set(counts) == {DAMAGED} else "; another output folder or a suffix keeps both"
    return f"Outputs to replace: {listed}{keep}"
