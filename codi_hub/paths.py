"""File paths as text: for reports and databases, and for messages."""

import os
from pathlib import Path

from codi_hub.errors import printable


def path_text(path: Path | str) -> str:
    """Return a path as text that can be printed, stored and sent as JSON: bytes that are not UTF-8 are escaped."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair: no file has such a name, but a JSON file may contain it
        return str(path).encode("utf-8", "backslashreplace").decode()


def display_path(path: Path | str) -> str:
    """Return a path on one line, for messages: line breaks and control characters are escaped."""
    return printable(path_text(path))
