"""Duration of the shortest command, from the shell's point of view."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.table import Row, in_turn, ratios

GOAL = 0.4  # seconds
LIST = ("-m", "codi_hub.cli", "list")
OURS, AGAINST = "`codi list`", "`diffusers-cli --help`"


def python(home: Path, *arguments: str) -> None:
    """Run Python in a new process and discard its output."""
    environment = os.environ | {"CODI_HOME": str(home)}
    subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield the seconds, in a registry of the bundled adapters."""
    theirs = Path(sys.executable).with_name("diffusers-cli")
    commands = {OURS: LIST, AGAINST: (str(theirs), "--help")}
    with tempfile.TemporaryDirectory() as home:
        seconds = in_turn({name: partial(python, Path(home), *command) for name, command in commands.items()}, rounds)
    note = f"{AGAINST} takes {median(seconds[AGAINST]):.2f} s"
    yield Row("start", "", OURS, AGAINST, tuple(seconds[OURS]), "s", GOAL, at_most=True, note=note)
    yield Row("start, how often faster", "", OURS, AGAINST, ratios(seconds[AGAINST], seconds[OURS]))
