"""How long the shortest command takes, from the shell's prompt to the next."""

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
OURS, AGAINST = "`codi list`", "`diffusers-cli --help`"


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """The registry is there, with what is bundled; each command is a process of its own, its output thrown away."""
    theirs = Path(sys.executable).with_name("diffusers-cli")
    commands = {OURS: ["-m", "codi_hub.cli", "list"], AGAINST: [str(theirs), "--help"]}
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"CODI_HOME": home}

        def started(command: list[str]) -> None:
            subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, check=True)

        seconds = in_turn({name: partial(started, command) for name, command in commands.items()}, rounds)
    note = f"{AGAINST} takes {median(seconds[AGAINST]):.2f} s"
    yield Row("start", "", OURS, AGAINST, tuple(seconds[OURS]), "s", GOAL, at_most=True, note=note)
    yield Row("start, how often faster", "", OURS, AGAINST, ratios(seconds[AGAINST], seconds[OURS]))
