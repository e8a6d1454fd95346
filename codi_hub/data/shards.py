"""Shards of a data set: tar files as WebDataset writes them, read by place, and patterns that name several files.

Nothing is unpacked and no file is read whole: the index has 18 bytes a member and 16 a row, and a row is read when it
is asked for.
"""

from __future__ import annotations

import glob
import json
import logging
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, overload

from codi_hub.errors import InvalidInput, NotFound, UsageError, one_line
from codi_hub.images.formats import EXTENSIONS

TAR, PARQUET = ".tar", ".parquet"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TEXTS = (".txt", ".text")
JSON = ".json"
MAX_MEMBER = 256 << 20  # bytes of an image: a member is read into the memory
MAX_TEXT = 1 << 20
MAX_NAMES = 200  # different endings of members; a data set has a handful
MAX_NAME = 80  # characters of an ending
NAMED = 4  # members that a warning lists
_log = logging.getLogger("codi_hub.data")


def matching(spec: str) -> list[Path]:
    """Return the shards that a path or a pattern names, sorted; nothing for another kind of source.

    Raises:
        NotFound: a pattern that matches no file.
        UsageError: compressed tars, which cannot be read by place.
    """
    if spec.lower().endswith(COMPRESSED):
        raise UsageError(f"{spec}: a compressed tar cannot be read by place: unpack it to .tar (gunzip, zstd -d)")
    path = Path(spec).expanduser()
    if path.suffix.lower() not in (TAR, PARQUET) or path.is_dir():
        return []
    if path.is_file():
        return [path]
    if not is_pattern(spec):
        return []
    files = sorted(found for name in glob.iglob(str(path), recursive=True) if (found := Path(name)).is_file())
    if not files:
        raise NotFound(f"no file matches {spec!r}: check the folder and the pattern")
    return files


def is_pattern(spec: str) -> bool:
    """Whether a source names shards by a pattern, as `shards/*.tar` does."""
    return glob.has_magic(spec) and Path(spec).suffix.lower() in (TAR, PARQUET)


class Tars(Sequence[dict[str, Any]]):
    """Rows of tar files: members beside each other whose names are the same up to the first dot are one row.

    The rest of a member's name is its column: `0001.condition.png` is in `condition.png` and in `condition`, `0001.jpg`
    in `jpg` and in `image`, `0001.txt` in `txt` and in `caption`. The fields of `0001.json` that are texts are columns
    too, where no image has that name: a text in place of an image would name a file of this machine.

    Attributes:
        images: names of the columns that hold images, as bytes.

    Args:
        spec: what the files are called in messages.
        files: tar files, not compressed.

    Raises:
        InvalidInput: no row with an image in any of them.
    """

    def __init__(self, spec: str, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._names: dict[str, int] = {}
        self._offsets, self._sizes, self._ending = array("Q"), array("Q"), array("H")
        self._starts, self._file = array("Q"), array("L")  # of a row: its first member, its file
        self._bad: list[str] = []
        self._left_out = 0
        for number, path in enumerate(self._files):
            self._index(number, path)
        self._starts.append(len(self._offsets))
        self.images = {column for name in self._names if _is_image(name) for column in _columns(name)}
        if self._left_out:
            more = f" and {self._left_out - NAMED} more" if self._left_out > NAMED else ""
            _log.warning("%s: left out %d members: %s", spec, self._left_out, "; ".join(self._bad) + more)
        if not len(self):
            raise InvalidInput(f"no image in {spec}" + (f": {self._bad[0]}" if self._bad else ""))

    @property
    def column_names(self) -> list[str]:
        """Names of the columns: those of all members, and the fields of the first JSON that can be read."""
        columns = [column for name in self._names if not f".{name}".endswith(JSON) for column in _columns(name)]
        for row in range(min(len(self), NAMED)):
            with suppress(InvalidInput):
                columns += self[row]
                break
        return list(dict.fromkeys(columns))

    def __len__(self) -> int:
        return len(self._file)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Read a row. Raises InvalidInput where the file changed or a text cannot be read."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        names = list(self._names)
        row: dict[str, Any] = {}
        texts: dict[str, str] = {}
        path = self._files[self._file[index]]
        try:
            with path.open("rb") as file:
                for member in range(self._starts[index], self._starts[index + 1]):
                    name, value = names[self._ending[member]], self._read(file, member)
                    if _is_image(name):
                        for column in _columns(name):
                            row.setdefault(column, value)
                    else:
                        texts |= _texts(name, value, path) | texts
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror or error}") from error
        return row | {column: text for column, text in texts.items() if column not in self.images}

    def _read(self, file: BinaryIO, member: int) -> bytes:
        file.seek(self._offsets[member])
        value = file.read(self._sizes[member])
        if len(value) != self._sizes[member]:
            raise InvalidInput(f"{file.name} is shorter than it was")
        return value

    def _index(self, number: int, path: Path) -> None:
        """Add the rows of a file to the index. What cannot be read is left out, the rest of a damaged file too."""
        group, first, images = None, len(self._offsets), 0

        def end_row() -> None:
            if images:
                self._starts.append(first)
                self._file.append(number)
            else:  # texts alone are no row
                del self._offsets[first:], self._sizes[first:], self._ending[first:]

        for member, ending in self._members(path):
            folder, _, base = member.name.rpartition("/")
            key = folder, base.split(".", 1)[0]
            if key != group:
                end_row()
                group, first, images = key, len(self._offsets), 0
            self._offsets.append(member.offset_data)
            self._sizes.append(member.size)
            self._ending.append(self._names.setdefault(ending, len(self._names)))
            images += _is_image(ending)
        end_row()

    def _members(self, path: Path) -> Iterator[tuple[tarfile.TarInfo, str]]:
        """Return the members of a file that may be read, and what follows the first dot of each name."""
        try:
            length = path.stat().st_size
            with tarfile.open(path, "r:") as tar:
                place = -1
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them in memory
                    if tar.offset <= place:
                        raise tarfile.ReadError("a member of negative size")
                    place = tar.offset
                    ending = member.name.rpartition("/")[2].partition(".")[2].lower()
                    if member.isdir() or member.name.rpartition("/")[2].startswith("."):
                        continue
                    if reason := self._refused(member, ending, length):
                        self._leave_out(f"{path.name}: {one_line(member.name, 60)} {reason}")
                    elif _is_image(ending) or f".{ending}".endswith((*TEXTS, JSON)):
                        yield member, ending
                _check_end(path, tar.offset)
        except Exception as error:  # noqa: BLE001 - a damaged header raises anything
            self._leave_out(f"{path.name}: damaged ({one_line(error, 80) or type(error).__name__})")

    def _refused(self, member: tarfile.TarInfo, ending: str, length: int) -> str | None:
        """Return why a member is left out, if it is."""
        if not member.isreg() or member.sparse is not None:
            return "is not a regular file"
        limit = MAX_MEMBER if _is_image(ending) else MAX_TEXT
        if _is_image(ending) or f".{ending}".endswith((*TEXTS, JSON)):
            if member.size > limit:
                return f"has {member.size} bytes, over the limit of {limit}"
            if member.offset_data + member.size > length:
                return "is cut off"
            if len(ending) > MAX_NAME or (ending not in self._names and len(self._names) >= MAX_NAMES):
                return f"has a name unlike the others (over {MAX_NAMES} endings, or one of over {MAX_NAME} characters)"
        return None

    def _leave_out(self, reason: str) -> None:
        self._left_out += 1
        if len(self._bad) < NAMED:
            self._bad.append(reason)


def _check_end(path: Path, offset: int) -> None:
    """Raise ReadError where a file goes on behind its last member: tarfile takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"bad header at byte {offset}; what follows is not read")


def _is_image(ending: str) -> bool:
    return f".{ending}".endswith(tuple(EXTENSIONS))


def _columns(ending: str) -> tuple[str, ...]:
    """Return the columns of a member: its ending, and what it is without a file type, or the type's usual content."""
    stem, _, kind = ending.rpartition(".")
    return ending, stem or ("image" if _is_image(kind) else "caption")


def _texts(ending: str, value: bytes, path: Path) -> dict[str, str]:
    """Return the columns of a text, or of the texts in an object. Raises InvalidInput."""
    try:
        text = value.decode("utf-8-sig")
        if not f".{ending}".endswith(JSON):
            return dict.fromkeys(_columns(ending), text.strip())
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name}: a .{ending} that cannot be read ({one_line(error, 60)})") from error
    return {name: field for name, field in fields.items() if isinstance(field, str)} if isinstance(fields, dict) else {}
