"""A folder of files that another tool reads: there whole or not at all.

A kill in the middle of `--overwrite` can leave the earlier one beside its place, as `.codi-*.old`.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codi_hub.errors import Conflict, one_line, printable

Known = Callable[[Path], bool]
"""Whether a folder, not empty, is an export and holds nothing else."""


def check_free(out: Path, known: Known, overwrite: bool) -> Path:
    """Where the folder will be, absolute. An earlier export gives way to `overwrite`; nothing else ever does.

    Raises:
        Conflict: something else is there, or an earlier export without `overwrite`, or nothing can be.
    """
    try:
        out = out.expanduser().resolve()
        if not out.exists():
            return out
        if not out.is_dir():
            raise Conflict(f"{_shown(out)} is a file: name a folder with -o")
        taken = any(out.iterdir())
        if taken and not known(out):
            raise Conflict(f"{_shown(out)} holds what is no export of an adapter: choose another folder")
    except (RuntimeError, OSError) as error:  # a loop of links, a name too long, a folder that cannot be read
        raise Conflict(f"{_shown(out)} leads nowhere: name another folder with -o ({one_line(error, 80)})") from error
    if taken and not overwrite:
        raise Conflict(f"{_shown(out)} is there already: add --overwrite, or choose another folder")
    return out


@contextmanager
def new_folder(out: Path, known: Known, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that takes the place of `out` when it is full, and never is there if that fails.

    Raises:
        Conflict: see `check_free`.
    """
    out = check_free(out, known, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".codi-{uuid.uuid4().hex}.part"
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _put(temporary, check_free(out, known, overwrite))
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
    shutil.rmtree(old, ignore_errors=True)  # the new one is there; that it is hidden beside it harms nobody


def _shown(path: Path) -> str:
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))
