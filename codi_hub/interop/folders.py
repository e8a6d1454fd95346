"""A folder of files that another tool reads: there whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from codi_hub.errors import Conflict, printable


def check_free(out: Path, ours: Collection[str], overwrite: bool) -> Path:
    """Where the folder will be, absolute. An earlier export gives way to `overwrite`; nothing else ever does.

    Args:
        ours: names of the files that an export has.

    Raises:
        Conflict: something else is there, or an earlier export without `overwrite`, or nothing can be.
    """
    try:
        out = out.expanduser().resolve()
    except RuntimeError as error:  # a loop of links
        raise Conflict(f"{_shown(out)} leads nowhere: name another folder with -o") from error
    if not out.exists():
        return out
    if not out.is_dir():
        raise Conflict(f"{_shown(out)} is a file: name a folder with -o")
    there = sorted(path.name for path in out.iterdir())
    if others := [name for name in there if name not in ours]:
        raise Conflict(f"{_shown(out)} holds {printable(others[0])}, which no export made: choose another folder")
    if there and not overwrite:
        raise Conflict(f"{_shown(out)} is there already: add --overwrite, or choose another folder")
    return out


@contextmanager
def new_folder(out: Path, ours: Collection[str], overwrite: bool) -> Iterator[Path]:
    """A folder to fill that takes the place of `out` when it is full, and never is there if that fails.

    Raises:
        Conflict: see `check_free`.
    """
    out = check_free(out, ours, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".codi-{uuid.uuid4().hex}.part"
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _put(temporary, check_free(out, ours, overwrite))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put(made: Path, out: Path) -> None:
    if not out.exists():
        made.rename(out)
        return
    old = made.with_suffix(".old")
    out.rename(old)
    try:
        made.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _shown(path: Path) -> str:
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))
