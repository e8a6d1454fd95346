"""JSON Lines files: one object per line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codi_hub.errors import InvalidInput, one_line


def objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every line that is not empty.

    Bytes that are not UTF-8 are read as surrogates, as in file names.

    Raises:
        InvalidInput: a line is not a JSON object, or the file cannot be read.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(line, f"{file} line {number}")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_without_duplicates)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is not a JSON object: {one_line(line, 60)}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises InvalidInput for a key with two values, of which one would be ignored."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"{one_line(twice, 40)!r} is there twice: remove one of them")
    return value
