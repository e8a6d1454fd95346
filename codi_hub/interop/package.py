"""A CoDi adapter on its own, as a folder or a zip of three files: written for others, and checked when it arrives."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from codi_hub.backbones.weights import PICKLES
from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound, one_line, system_reason
from codi_hub.interop.folders import check_free, new_folder
from codi_hub.partial import clean, temporary
from codi_hub.paths import display_path
from codi_hub.record import MAX_RECORD, RECORD
from codi_hub.registry.adapters import WEIGHTS
from codi_hub.registry.store import sha256

CARD = "README.md"
FILES = (WEIGHTS, RECORD, CARD)
MAX_CARD = 1 << 20  # bytes; a usual card has some three thousand
LIMITS = {RECORD: MAX_RECORD, CARD: MAX_CARD}  # bytes; weights have no limit of their own
ZIP = ".zip"
MAX_ENTRIES = 100  # of a zip, folders and what a system adds included
MAX_RATIO = 100  # of a zipped file's bytes to its compressed ones: trained weights hardly shrink
IGNORED = ("__MACOSX", ".DS_Store")  # what macOS puts into folders and zips
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
REMEDY = "get it again, as `codi export REF --format codi` writes it"


class Source(Protocol):
    """Where the files of an adapter come from: a folder, a zip, a hub repository, an URL.

    Attributes:
        name: as messages name it.
    """

    name: str

    def fetch(self, name: str) -> Path:
        """Return a local copy of one of `FILES`. Raises CodiError."""
        ...


class Folder:
    """A folder with the three files and nothing else. Raises InvalidInput for any other."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = display_path(path), path
        entries = [entry for entry in path.iterdir() if entry.name not in IGNORED]
        check_names((entry.name for entry in entries), self.name)
        if odd := next((entry for entry in entries if entry.is_symlink() or not entry.is_file()), None):
            raise InvalidInput(f"{self.name}: {odd.name} is a link or a folder, and not a file: {REMEDY}")

    def fetch(self, name: str) -> Path:
        return check_size(self._path / name)


class Zip:
    """A zip with the three files and nothing else, at its root or in one folder. Raises InvalidInput for any other.

    Args:
        path: the zip.
        scratch: an empty folder for the files.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.name, self._path, self._scratch = display_path(path), path, scratch
        try:
            with zipfile.ZipFile(path) as file:
                entries = file.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InvalidInput(f"{self.name}: neither a folder nor a zip that can be read: {REMEDY}") from error
        if len(entries) > MAX_ENTRIES:
            raise InvalidInput(f"{self.name}: {len(entries)} entries, and an adapter is {len(FILES)} files: {REMEDY}")
        for entry in entries:
            self._check(entry)
        files = [(PurePosixPath(entry.filename), entry) for entry in entries if not entry.is_dir()]
        files = [(where, entry) for where, entry in files if not {*IGNORED} & {*where.parts}]
        tops = {where.parts[0] if len(where.parts) > 1 else "" for where, _ in files}
        inner = [(where.relative_to(*tops) if len(tops) == 1 and "" not in tops else where, e) for where, e in files]
        check_names((str(where) for where, _ in inner), self.name)
        self._entries = {str(where): entry for where, entry in inner}

    def _check(self, entry: zipfile.ZipInfo) -> None:
        """Refuse what leads out of the folder, is no file, cannot be read, or expands to many times its size."""
        name, parts, reason = one_line(entry.filename, 80), entry.filename.split("/"), ""
        if not parts[0] or {"..", "."} & {*parts} or "\\" in entry.filename:
            reason = "is a path out of the zip"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = "is a link, and not a file"
        elif entry.flag_bits & 1 or entry.compress_type not in METHODS:
            reason = "is encrypted or compressed in a way that zips of adapters are not"
        elif entry.file_size > LIMITS.get(parts[-1], MAX_RATIO * entry.compress_size + MAX_CARD):
            reason = f"expands to {entry.file_size} bytes, which no such file of an adapter has"
        if reason:
            raise InvalidInput(f"{self.name}: {name} {reason}: {REMEDY}")

    def fetch(self, name: str) -> Path:
        target, entry = self._scratch / name, self._entries[name]
        if entry.file_size > (free := shutil.disk_usage(self._scratch).free):
            raise CodiError(f"{self.name}: {name} takes {entry.file_size} bytes, and {free} are free: make room")
        try:
            with zipfile.ZipFile(self._path) as file, file.open(entry) as reading, target.open("wb") as writing:
                shutil.copyfileobj(reading, writing, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise InvalidInput(f"{self.name}: {name} is damaged ({one_line(error, 80)}): {REMEDY}") from error
        return check_size(target)


def open_source(path: Path, scratch: Path) -> Folder | Zip:
    """Return the source of a local folder or zip.

    Raises:
        NotFound: nothing is there. InvalidInput: it is not an adapter on its own.
    """
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            check_names([path.name], display_path(path), pickles_alone=True)
            return Zip(path, scratch)
    except OSError as error:
        raise InvalidInput(f"{display_path(path)} cannot be read: {system_reason(error)}") from error
    raise NotFound(f"no folder or zip {display_path(path)}")


def check_names(names: Iterable[str], where: str, *, pickles_alone: bool = False) -> None:
    """Check that names are those of an adapter's files, each once.

    Args:
        pickles_alone: refuse pickles and nothing else.

    Raises:
        InvalidInput: a pickle, a missing file, or another one, by name.
    """
    names = sorted(names)
    if pickle := next((name for name in names if name.endswith((*PICKLES, ".pkl", ".pickle"))), None):
        raise InvalidInput(f"{where}: {one_line(pickle, 80)} is a pickle, which can run code when it is read: {REMEDY}")
    if pickles_alone:
        return
    if missing := next((name for name in FILES if name not in names), None):
        raise InvalidInput(f"{where} has no {missing}: an adapter is {', '.join(FILES)}; {REMEDY}")
    if names != sorted(FILES):
        other = next((name for name in names if name not in FILES), None) or "a file twice"
        raise InvalidInput(f"{where} has {one_line(other, 80)} beside {', '.join(FILES)}: take it out, or {REMEDY}")


def check_size(path: Path) -> Path:
    """Return the path of a small file that is not too large. Raises InvalidInput."""
    if (size := path.stat().st_size) > (limit := LIMITS.get(path.name, size)):
        raise InvalidInput(f"{path.name}: {size} bytes, over the limit of {limit}: {REMEDY}")
    return path


def check_content(files: Mapping[str, Path], weights: str | None) -> None:
    """Check the weights against the SHA-256 that the record has of them, and that the card is text.

    Raises:
        InvalidInput: they differ, there is none, or the card is not text.
    """
    if weights is None:
        raise InvalidInput(f"{RECORD}: it does not have the SHA-256 of {WEIGHTS}: {REMEDY}")
    if (found := sha256(files[WEIGHTS])) != weights:
        raise InvalidInput(
            f"{WEIGHTS}: damaged or altered, its SHA-256 is {found[:12]}..., and {RECORD} has {weights[:12]}...: "
            f"{REMEDY}"
        )
    try:
        files[CARD].read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{CARD}: not text in UTF-8: {REMEDY}") from error


# ---- writing


def check_out(out: Path, overwrite: bool) -> Path:
    """Return the absolute path of the folder or zip to write.

    Raises:
        Conflict: see `folders.check_free`; or a zip that is there, without `overwrite`, or of something else.
    """
    if out.suffix != ZIP or not out.is_file():
        return check_free(out, is_package, overwrite)
    where = display_path(out)
    if not is_package(out):
        raise Conflict(f"{where} is not an exported adapter: choose another name")
    if not overwrite:
        raise Conflict(f"{where} exists: choose another name, or overwrite it")
    return out.expanduser().resolve()


def is_package(path: Path) -> bool:
    """Return whether a folder or zip has the three files and nothing else."""
    try:
        open_source(path, path)
    except CodiError:
        return False
    return True


def write(out: Path, files: Mapping[str, Path | str], *, overwrite: bool = False) -> None:
    """Write a folder, or a zip where `out` ends in .zip, completely or not at all.

    Args:
        files: content of each of `FILES`: a file to copy, or text.

    Raises:
        Conflict: see `check_out`. CodiError: it could not be written.
    """
    out = check_out(out, overwrite)
    try:
        if out.suffix == ZIP and not out.is_dir():
            _write_zip(out, files)
            return
        with new_folder(out, is_package, overwrite) as folder:
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                else:
                    (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise CodiError(f"the export could not be written to {display_path(out)}: {system_reason(error)}") from error


def _write_zip(out: Path, files: Mapping[str, Path | str]) -> None:
    """Write a zip whose bytes depend on its files alone; weights are stored, since they would not shrink."""
    out.parent.mkdir(parents=True, exist_ok=True)
    clean(out.parent)
    with temporary(out.parent) as part:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            for name, content in files.items():
                entry = zipfile.ZipInfo(name)  # of 1980, so that the same adapter is the same zip
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                with file.open(entry, "w", force_zip64=True) as writing:
                    if isinstance(content, Path):
                        with content.open("rb") as reading:
                            shutil.copyfileobj(reading, writing, 1 << 20)
                    else:
                        writing.write(content.encode())
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, out)
