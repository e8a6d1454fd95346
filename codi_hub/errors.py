"""The errors a user can cause. Each message is one line: what is wrong, with the value, and what to do about it."""


def printable(text: str) -> str:
    """The text on one line, with line breaks and whatever else could steer a terminal escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_line(said: object, most: int | None = None) -> str:
    """As one line of a message: white space run together, the rest `printable`, cut at `most` characters."""
    line = printable(" ".join(str(said).split()))
    return line if most is None or len(line) <= most else f"{line[: most - 3]}..."


class CodiError(Exception):
    """Something the user can put right. The command line prints it as `Error: ...` and exits with `exit_code`."""

    exit_code = 1


class UsageError(CodiError):
    """An option or argument that cannot mean anything (exit code 2)."""

    exit_code = 2


class NotFound(CodiError):
    """A task, base, adapter or file that does not exist."""


class Conflict(CodiError):
    """Something of that name exists already, and is different."""


class InvalidInput(CodiError):
    """A file whose content cannot be used: truncated, of another type, too large, tampered with."""


class AlreadyReported(CodiError):
    """A failure that another process of the same run has reported: nothing more is printed."""


class Mismatch(CodiError):
    """Two things that do not belong together, such as an adapter and a base it was not distilled for."""
