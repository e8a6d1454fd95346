"""File paths as text: for reports and databases, and for messages."""

import os
from pathlib import Path

from codi_hub.errors import printable
from codi_hub.urls import UrlPath, is_url


def path_text(path: Path | str) -> str:
    """Return a path as text that can be printed, stored and sent as JSON: bytes that are not UTF-8 are escaped."""
    try:
        return os.fsencode(str(path) if isinstance(path, UrlPath) else path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair: no file has such a name, but a JSON file may contain it
        return str(path).encode("utf-8", "backslashreplace").decode()


def display_path(path: Path | str) -> str:
    """Return a path on one line, for messages: line breaks and control characters are escaped."""
    return printable(path_text(path))


def absolute_path(path: Path | str) -> str:
    """Return a path as the run log stores it, whatever the working directory is; an URL as it is."""
    text = path_text(path)
    return text if is_url(text) else os.path.abspath(text)


def unwritable(folder: Path) -> str | None:
    """Return why a folder cannot be created, or no file in it; None if both can probably be done."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        return "Not a directory"
    if os.access(existing, os.W_OK | os.X_OK):
        return None
    read_only = hasattr(os, "statvfs") and os.statvfs(existing).f_flag & os.ST_RDONLY
    return "Read-only file system" if read_only else "Permission denied"
