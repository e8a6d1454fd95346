"""What a process of `accelerate launch` runs in tests: commands one after the other, and a note of what it saw.

    python launched.py FOLDER, where FOLDER/commands.json holds lists of arguments

It leaves FOLDER/RANK.pt: the exit codes, the pairs made, and x, eps and t of every evaluation of the loss.
FAIL=RANK:STEP makes that process fail in that step.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from codi_hub.cli import _run
from codi_hub.training import latents as cache
from codi_hub.training import step as methods
from codi_hub.training.trainer import Trainer

RANK = int(os.environ["RANK"])
seen: dict[str, list[Any]] = {"codes": [], "pairs": [], "drawn": []}


def watch() -> None:
    plain_loss, plain_pairs = methods.codi_loss, cache.make_pairs

    def loss(student: Any, target: Any, x: Any, eps: Any, t: Any, *rest: Any, **named: Any) -> Any:
        seen["drawn"].append((x, eps, t))
        return plain_loss(student, target, x, eps, t, *rest, **named)

    def pairs(spec: Any, indices: range, workers: int) -> Any:
        seen["pairs"].append(len(indices))
        return plain_pairs(spec, indices, workers)

    methods.codi_loss, cache.make_pairs = loss, pairs


def fail(rank: int, step: int) -> None:
    plain = Trainer.train_step

    def train_step(trainer: Trainer) -> dict[str, float]:
        if (rank, step) == (RANK, trainer.progress.step):
            raise OSError(28, "No space left on device", "x.png")
        return plain(trainer)

    Trainer.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    watch()
    if "FAIL" in os.environ:
        rank, step = os.environ["FAIL"].split(":")
        fail(int(rank), int(step))
    for command in json.loads((folder / "commands.json").read_text()):
        seen["codes"].append(_run(command))
    torch.save(seen, folder / f"{RANK}.pt")
    sys.exit(max(seen["codes"]))
