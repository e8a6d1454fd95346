"""A folder of files for another tool, written completely or not at all.

A kill while an earlier one is replaced can leave that beside its place, as `.codi-*.old`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from codi_hub.errors import CodiError, Conflict, one_line
from codi_hub.partial import clean, temporary
from codi_hub.paths import display_path, unwritable
from codi_hub.record import RECORD, read_record

CONFIG, WEIGHTS, CARD = "config.json", "diffusion_pytorch_model.safetensors", "README.md"  # diffusers' names
WORKFLOW = "workflow.json"  # of ComfyUI
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
FILES = (CONFIG, WEIGHTS, CARD, RECORD, WORKFLOW, PEFT_CONFIG, PEFT_WEIGHTS)
SINGLE = "codi-{name}.safetensors"  # a file that is copied among others

Contents = dict[str, str | dict[str, Tensor]]
"""Files of an export by name: text, or tensors."""

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


def is_export(folder: Path) -> bool:
    """Whether a folder is an export and nothing else: others' folders have files of most of these names."""
    try:
        read_record(folder / RECORD)
        names = {path.name for path in folder.iterdir() if path.is_file()}
        return all(path.name in names for path in folder.iterdir()) and all(map(_is_exports, names))
    except (CodiError, OSError):
        return False


def _is_exports(name: str) -> bool:
    return name in FILES or bool(re.fullmatch(SINGLE.format(name=r"[\w-]+"), name))


def write_files(
    out: Path, contents: Mapping[str, str | Mapping[str, Tensor]], dtype: torch.dtype, *, overwrite: bool
) -> None:
    """Write a folder, completely or not at all; tensors in a dtype.

    Raises:
        Conflict: see `check_free`. CodiError: it could not be written.
    """
    try:
        with new_folder(out, is_export, overwrite) as folder:
            texts = {name: text for name, text in contents.items() if isinstance(text, str)}
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            mode = (folder / next(iter(texts))).stat().st_mode
            for name, tensors in contents.items():
                if not isinstance(tensors, str):
                    plain = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
                    save_file(plain, folder / name, metadata={"format": "pt"})
                    (folder / name).chmod(mode)  # safetensors makes it readable by the owner only
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, 160)
        raise CodiError(f"the export could not be written to {out}: {reason}") from error


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
