"""Standard input as an input file: `-`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from codi_hub.errors import InvalidInput, UsageError

STDIN = Path("-")


@contextmanager
def stored_stdin(name: str) -> Iterator[Path]:
    """Store standard input in a temporary file of this name, because an input is hashed, checked and then read.

    Raises:
        UsageError: standard input is a terminal or closed.
        InvalidInput: it is empty.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError("- is standard input, and nothing is piped into it: pipe a file, or name one")
    with TemporaryDirectory(prefix="codi-") as folder:
        path = Path(folder, name)
        with path.open("xb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        if not path.stat().st_size:
            raise InvalidInput("standard input is empty: pipe a file into it")
        yield path
