"""Objects in stores: listed, copied here to be read, and written whole.

A local file takes none of these ways.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from codi_hub.errors import CodiError, InvalidInput
from codi_hub.filesystems import opened
from codi_hub.urls import UrlPath, store_errors

Answer = TypeVar("Answer")

TAGS = ("ETag", "etag", "blob_id", "md5Hash", "generation")  # of an object's content, by the names that stores have
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
AT_ONCE = 64 << 20  # bytes that are written by one call; more is read from the file part by part
PROBE = ".codi-write-test"


class Listing:
    """The objects below a folder of a store, by folder and name; of each its version, see `version`.

    Args:
        recursive: whether those in subfolders are listed too.

    Attributes:
        is_file: whether the "folder" is an object.
        refused: relative names that no file can have: absolute ones, and those with an empty part, `.` or `..`.

    Raises:
        CodiError: it cannot be listed.
    """

    def __init__(self, root: UrlPath, recursive: bool = True) -> None:
        self.folders: dict[str, dict[str, int]] = {}
        self.formed: dict[str, Any] = {}  # of `names`
        self.recursive = recursive
        system, path = opened(str(root))
        self.is_file = False
        self.refused: list[str] = []
        with store_errors(root), suppress(FileNotFoundError):
            for full, info in _found(system, path, recursive):
                self._add(full[len(path) + 1 :], _version(info))

    def _add(self, relative: str, version: int) -> None:
        folder, _, name = relative.rpartition("/")
        if not relative:
            self.is_file = True
        elif not _is_file_name(relative):
            self.refused += [relative] if name else []  # "sub/" marks a folder
        else:
            self.folders.setdefault(folder, {})[name] = version

    def walk(self, skip: frozenset[str] = frozenset()) -> Iterator[str]:
        """Yield the names relative to the folder, in the order of `folders.walk`, without hidden ones.

        Args:
            skip: relative names of folders that are left out.
        """
        for folder in sorted(self.folders, key=lambda folder: folder.split("/") if folder else []):
            if not (f"/{folder}".count("/.") or _is_in(folder, skip)):
                for name in sorted(self.folders[folder]):
                    if not name.startswith("."):
                        yield f"{folder}/{name}" if folder else name


_listings: ContextVar[dict[str, Listing] | None] = ContextVar("listings", default=None)  # of this thread


@contextmanager
def listed_once() -> Iterator[None]:
    """List every folder once while the block runs in this thread; without, whenever it is asked for."""
    token = _listings.set({})
    try:
        yield
    finally:
        _listings.reset(token)


def listing(root: UrlPath, recursive: bool = True) -> Listing:
    """Return what is below a folder. Raises CodiError."""
    known = _listings.get()
    if known is None:
        return Listing(root, recursive)
    if (text := str(root)) not in known or (recursive and not known[text].recursive):
        known[text] = Listing(root, recursive)
    return known[text]


def names(folder: UrlPath, form: Callable[[Iterable[str]], Answer]) -> Answer:
    """Return the names of the objects in a folder in a form, which is computed once per listing. Raises CodiError.

    Args:
        form: always the same function.
    """
    found, inside = _known(str(folder)) or (listing(folder, recursive=False), "")
    if inside not in found.formed:
        found.formed[inside] = form(found.folders.get(inside, ()))
    answer: Answer = found.formed[inside]
    return answer


def _known(folder: str) -> tuple[Listing, str] | None:
    """Return the listing that a folder is in, and its name there."""
    for root, found in (_listings.get() or {}).items():
        if folder == root or (found.recursive and folder.startswith(f"{root}/")):
            return found, folder[len(root) + 1 :]
    return None


def version(path: UrlPath) -> int | None:
    """Return a number of an object that changes with its content, or else its time, and its size.

    It is made of the object's ETag where the store has such. None: there is no such object.

    Raises:
        CodiError: the store does not answer.
    """
    folder, _, name = str(path).rpartition("/")
    if (known := _known(folder)) is not None:
        found, inside = known
        return found.folders.get(inside, {}).get(name)
    system, inside = opened(str(path))
    with store_errors(path):
        try:
            return _version(system.info(inside))
        except FileNotFoundError:
            return None


def exists(path: Path) -> bool:
    """Return whether a file, link, folder or object is there."""
    return version(path) is not None if isinstance(path, UrlPath) else os.path.lexists(path)


def is_file(path: Path) -> bool:
    """Return whether a path is a file or an object."""
    return version(path) is not None if isinstance(path, UrlPath) else os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; in a store, whether objects are below it."""
    return bool(listing(path).folders) if isinstance(path, UrlPath) else os.path.isdir(path)


def stamp(paths: Iterable[Path]) -> int:
    """Return a number that changes if one of the files or objects does. Raises OSError, or CodiError."""
    found = []
    for path in paths:
        if isinstance(path, UrlPath):
            found.append(str(version(path)))
        else:
            info = os.stat(path)
            found.append(f"{info.st_size} {info.st_mtime_ns}")
    return _number_of("\n".join(found))


@contextmanager
def local_copies(paths: Iterable[Path], limit: int) -> Iterator[Callable[[Path], Path]]:
    """Copy objects into a temporary folder; yield a function from a path to its local file.

    Local files are not copied. The folder has the folders of the store, so that what lies beside a file lies there too.

    Args:
        limit: bytes of each object.

    Raises:
        InvalidInput: an object with more. NotFound: it is not there. CodiError: it cannot be read.
    """
    remote = [path for path in paths if isinstance(path, UrlPath)]
    if not remote:
        yield lambda path: path
        return
    with tempfile.TemporaryDirectory(prefix="codi-") as scratch:

        def local(path: Path) -> Path:
            return Path(scratch, *path.parts) if isinstance(path, UrlPath) else path

        for path in remote:
            local(path).parent.mkdir(parents=True, exist_ok=True)
            _copy(path, local(path), limit)
        try:
            yield local
        except CodiError as error:  # which names the copy
            text = re.sub(re.escape(f"{scratch}/") + r"([a-z0-9]+):/", r"\1://", str(error))
            raise type(error)(text) from error


@contextmanager
def uploaded(path: UrlPath) -> Iterator[Path]:
    """Yield a temporary file, and write it to the store, whole or not at all, unless the block fails.

    Raises:
        CodiError: it cannot be written; then what was there before still is.
    """
    with tempfile.TemporaryDirectory(prefix="codi-") as scratch:
        file = Path(scratch, "object" + path.suffix)  # the store may tell its type by the name
        yield file
        system, target = opened(str(path))
        with store_errors(path):
            if file.stat().st_size <= AT_ONCE:
                system.pipe_file(target, file.read_bytes())
            else:
                system.put_file(str(file), target)


def unwritable(folder: UrlPath) -> str | None:
    """Return why nothing can be written into a folder; None if it can: an empty object was, and was removed."""
    system, target = opened(f"{folder}/{PROBE}")
    try:
        with store_errors(folder):
            system.pipe_file(target, b"")
    except CodiError as error:
        return str(error).removeprefix(f"{folder}: ")
    with suppress(Exception):  # who may write need not be allowed to remove
        system.rm_file(target)
    return None


def _found(system: Any, path: str, recursive: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (path, what the store says of it) of the object itself, or of those below. Raises FileNotFoundError."""
    if "s3" not in system.protocol:
        yield from system.find(path, maxdepth=None if recursive else 1, detail=True).items()
        return
    system = _s3_lister(system)
    bucket, _, key = path.partition("/")  # page by page: `find` holds all that S3 says of every object
    request = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "" if recursive else "/"}
    page: Mapping[str, Any] = {"NextContinuationToken": None}
    while "NextContinuationToken" in page:
        token = page["NextContinuationToken"]
        page = system.call_s3("list_objects_v2", **request, **({"ContinuationToken": token} if token else {}))
        yield from ((f"{bucket}/{one['Key']}", one) for one in page.get("Contents", ()))
    if key and not page.get("KeyCount"):
        yield path, system.info(path)


def _s3_lister(system: Any) -> Any:
    """Return an S3 file system that reads the times in a listing faster: botocore's way takes most of its CPU."""
    from aiobotocore.session import AioSession
    from botocore.utils import parse_timestamp

    def time(text: Any) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except (TypeError, ValueError):
            parsed: datetime = parse_timestamp(text)
            return parsed

    session = AioSession()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=time)
    return type(system)(session=session, skip_instance_cache=True, **system.storage_options)


def _copy(path: UrlPath, target: Path, limit: int) -> None:
    from fsspec.callbacks import Callback

    class Limit(Callback):
        """Ends a copy that is larger than it may be, be it announced or not."""

        def call(self, *args: Any, **more: Any) -> None:
            if max(self.size or 0, self.value) > limit:
                raise InvalidInput(f"the file has over {limit} bytes, the limit: make it smaller")

    system, source = opened(str(path))
    with store_errors(path):
        system.get_file(source, str(target), callback=Limit())


def _version(info: Mapping[str, Any]) -> int:
    tag = next((info[key] for key in (*TAGS, *TIMES) if info.get(key)), None)
    tag = tag.timestamp() if isinstance(tag, datetime) else tag
    return _number_of(f"{tag} {info.get('size', info.get('Size'))}")


def _number_of(text: str) -> int:
    """Return a number of 63 bits, which every database holds."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1


def _is_in(folder: str, skip: frozenset[str]) -> bool:
    return any(folder == one or folder.startswith(f"{one}/") for one in skip)


def _is_file_name(relative: str) -> bool:
    return not {"", ".", ".."} & set(relative.split("/")) and "\0" not in relative
