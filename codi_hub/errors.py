"""The errors that a user can correct. Each message is one line: what is wrong, with the value, and the remedy."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """Return the text on one line: line breaks and everything else that could control a terminal are escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_line(message: object, limit: int | None = None) -> str:
    """Return a message on one line: white space collapsed, the rest `printable`, cut off at `limit` characters."""
    line = printable(" ".join(str(message).split()))
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


class CodiError(Exception):
    """An error that the user can correct. The command line prints it as `Error: ...` and exits with `exit_code`."""

    exit_code = 1


class UsageError(CodiError):
    """An option or argument with an impossible value (exit code 2)."""

    exit_code = 2


class NotFound(CodiError):
    """A task, base, adapter or file that does not exist."""


class Conflict(CodiError):
    """A name that is taken by something else."""


class InvalidInput(CodiError):
    """A file whose content cannot be used: truncated, of another type, too large, altered."""


class AlreadyReported(CodiError):
    """A failure that another process of the same run has reported: nothing more is printed."""


class Mismatch(CodiError):
    """Two things that do not fit together, such as an adapter and a base that it was not trained for."""


@contextmanager
def prefixed(where: str) -> Iterator[None]:
    """Prefix every CodiError with the place that it comes from."""
    try:
        yield
    except CodiError as error:
        raise type(error)(f"{where}: {error}") from error


def system_reason(error: BaseException) -> str | None:
    """Return why the operating system refused, such as "No space left on device"; None for any other error.

    Libraries in Rust, such as safetensors, have its number in the text of errors of their own.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else None


def describe(error: BaseException) -> str:
    """Return any exception as one line of a report, at most 300 characters."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if not isinstance(error, CodiError) and (reason := system_reason(error)):
        return one_line(reason, 300)
    return one_line(error if isinstance(error, CodiError) else f"{type(error).__name__}: {error}", 300)
