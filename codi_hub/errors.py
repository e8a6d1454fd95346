"""The errors a user can cause. Each message is one line: what is wrong, with the value, and what to do about it."""


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


class Told(CodiError):
    """What another process of the same run has said already: nothing is printed."""


class Mismatch(CodiError):
    """Two things that do not belong together, such as an adapter and a base it was not distilled for."""
