"""Standard streams that never raise: closed ones, full ones, any encoding; and a working directory that is gone."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile


def prepare() -> None:
    """Make the process's standard streams and working directory usable, whatever the caller left of them."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:  # closed: a file that is opened later would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError:
        folder = tempfile.mkdtemp(prefix="codi-")
        os.chdir(folder)  # libraries fail without one
        message(f"The working directory was deleted: relative paths begin at {folder}")


def message(text: str) -> None:
    """Print a line on stderr; it is lost where nobody can read it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def flush() -> OSError | None:
    """Write what is buffered for stdout; where that is not possible, drop it and return the error."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop()
        return error
    return None


def drop() -> None:
    """Send stdout to nowhere from now on, what is buffered included."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_unicode() -> bool:
    """Whether stdout can encode every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")
