"""What a process of `accelerate launch` runs in tests: commands one after the other, and a note of what it saw.

    python launched.py FOLDER, where FOLDER/commands.json holds lists of arguments

It leaves FOLDER/RANK.pt: the exit codes, the pairs that it created, and x, eps and t of every evaluation of the
loss. FAIL=RANK:STEP lets that process fail in that step.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from codi_hub import cli
from codi_hub.losses import codi
from codi_hub.training import pairs
from codi_hub.training.trainer import Trainer

RANK = int(os.environ["RANK"])
seen: dict[str, list[Any]] = {"codes": [], "pairs": [], "drawn": []}


def watch() -> None:
    """Record what the loss is evaluated on, and how many pairs are created."""
    plain_loss, plain_pair = codi.codi_loss, pairs.PairMaker.pair

    def loss(student: Any, target: Any, x: Any, eps: Any, times: Any, *rest: Any, **named: Any) -> Any:
        seen["drawn"].append((x, eps, times[0]))
        return plain_loss(student, target, x, eps, times, *rest, **named)

    def pair(maker: pairs.PairMaker, index: int) -> Any:
        seen["pairs"].append(index)
        return plain_pair(maker, index)

    codi.codi_loss = loss
    pairs.PairMaker.pair = pair  # type: ignore[method-assign]


def fail(rank: int, step: int) -> None:
    """Let one process fail in one step."""
    plain = Trainer.train_step

    def train_step(trainer: Trainer) -> dict[str, float]:
        if (rank, step) == (RANK, trainer.progress.step):
            raise OSError(28, "No space left on device", "x.png")
        return plain(trainer)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def exit_code(command: list[str]) -> int:
    """Run a command in this process."""
    try:
        cli.main(command)
    except SystemExit as stopped:
        return int(stopped.code or 0)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    watch()
    if "FAIL" in os.environ:
        rank, step = os.environ["FAIL"].split(":")
        fail(int(rank), int(step))
    for command in json.loads((folder / "commands.json").read_text()):
        seen["codes"].append(exit_code(command))
    torch.save(seen, folder / f"{RANK}.pt")
    sys.exit(max(seen["codes"]))
