"""A folder of files for another tool, written completely or not at all.

A kill while an earlier one is replaced can leave that beside its place, as `.codi-*.old`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codi_hub.errors import Conflict, one_line
from codi_hub.partial import clean, temporary
from codi_hub.paths import display_path, unwritable

IsExport = Callable[[Path], bool]
"""Whether a folder that is not empty is an export and nothing else."""


def check_free(out: Path, is_export: IsExport, overwrite: bool) -> Path:
    """Return the absolute path of the folder to write; with `overwrite` an earlier export may be there.

    Raises:
        Conflict: another file or folder is there, an earlier export without `overwrite`, or a path that cannot be.
    """
    try:
        out = out.expanduser().resolve()
        if reason := unwritable(out.parent):
            raise Conflict(f"{display_path(out)} cannot be written ({reason}): choose another folder")
        if not out.exists():
            return out
        if not out.is_dir():
            raise Conflict(f"{display_path(out)} is a file: choose another folder")
        taken = any(out.iterdir())
        if taken and not is_export(out):
            raise Conflict(f"{display_path(out)} has files that are not an export's: choose another folder")
    except (RuntimeError, OSError) as error:  # a loop of links, a name too long, a folder that cannot be read
        raise Conflict(f"{display_path(out)} cannot be used: choose another folder ({one_line(error, 80)})") from error
    if taken and not overwrite:
        raise Conflict(f"{display_path(out)} exists: choose another folder, or overwrite it")
    return out


@contextmanager
def new_folder(out: Path, is_export: IsExport, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill, which takes the place of `out` when the block ends, and is removed if it fails.

    Raises:
        Conflict: see `check_free`.
    """
    out = check_free(out, is_export, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    clean(out.parent)
    with temporary(out.parent, Path.mkdir) as folder:
        yield folder
        for path in folder.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _replace(check_free(out, is_export, overwrite), folder)


def _replace(out: Path, new: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the new one is in place; a hidden rest beside it does no harm
