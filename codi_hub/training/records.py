"""Tensors under keys in an append-only file, which runs and processes share and a kill at any moment leaves usable."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a record lies in the data file, its checksum, and the text kept with it."""

    offset: int
    size: int
    crc: int
    text: str


class Records:
    """Named tensors by key: `PATH.bin` has the bytes, `PATH.jsonl` one line per record with its place and checksum.

    A record exists once its line is whole and its bytes have the checksum. What a kill, a full disk or a lost page left
    half written is absent, and may be written again. Nothing is held in memory but the places.

    Args:
        path: of both files, without suffix; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._data, self._log, self._lock = (path.with_name(path.name + end) for end in (".bin", ".jsonl", ".lock"))
        self._places: dict[str, Place] = {}
        self._read = 0  # bytes of the log that were read
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def text(self, key: str) -> str:
        """Return the text kept with a record that exists."""
        return self._places[key].text

    def refresh(self) -> None:
        """Read the lines that this and other processes have appended since the last time."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._read)
            lines, newline, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(newline)
        for line in lines.splitlines():
            try:
                key, *place = json.loads(line)
                self._places[key] = Place(*place)
            except (ValueError, TypeError):  # cut off by a kill
                continue

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return a record's tensors; None where there is none, or its bytes are damaged."""
        place, data = self._places.get(key), b""
        if place is None:
            return None
        if self._data.exists():
            with self._data.open("rb") as file:
                file.seek(place.offset)
                data = file.read(place.size)
        if zlib.crc32(data) == place.crc:
            return load(data)
        del self._places[key]
        return None

    def write(self, records: Iterable[tuple[str, Mapping[str, Tensor], str]]) -> None:
        """Append records, each (key, tensors, text); a key that exists is replaced."""
        from filelock import FileLock  # not at the top: a folder that is only read needs no lock

        with FileLock(self._lock), self._data.open("ab") as data, self._log.open("ab+") as log:
            if log.seek(0, 2) and log.seek(-1, 2) is not None and log.read(1) != b"\n":
                log.write(b"\n")  # after a line that a kill cut off
            for key, tensors, text in records:
                encoded = save({name: value.contiguous() for name, value in tensors.items()})
                offset = data.seek(0, 2)
                data.write(encoded)
                data.flush()  # before the line that announces it
                log.write(json.dumps([key, offset, len(encoded), zlib.crc32(encoded), text]).encode() + b"\n")
        self.refresh()
