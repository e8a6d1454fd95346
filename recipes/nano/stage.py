"""A resumable training loop with a time budget, for networks other than adapters."""

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from recipes.nano import pieces

Network = TypeVar("Network", bound=nn.Module)

WARM_UP = 0.02  # share of the budget in which the learning rate rises linearly
FALL = 0.35  # share of the budget in which it falls linearly to 0 at the end


def schedule(progress: float, fall: float = FALL) -> float:
    """Return the learning-rate factor at a share of the budget in [0, 1]: linear warm-up, plateau, linear decay."""
    return max(0.0, min(progress / WARM_UP, 1.0, (1 - progress) / fall))


def write_log(folder: Path, row: dict[str, float]) -> None:
    """Append a row to the stage's log and print it."""
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(row, flush=True)


@torch.no_grad()
def average(ema: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    """Update the moving average of the model's weights, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, 1 - decay)


def lanes(model: nn.Module, count: int) -> list[nn.Module]:
    """Return the model and `count` - 1 copies that share its weights and have their own gradients."""
    copies = [copy.deepcopy(model) for _ in range(count - 1)]
    for other in copies:
        for mine, shared in zip(
            [*other.parameters(), *other.buffers()], [*model.parameters(), *model.buffers()], strict=True
        ):
            mine.data = shared.data
    return [model, *copies]


def train(
    folder: Path,
    model: Network,
    loss_of: Callable[[Network, int], dict[str, torch.Tensor]],
    *,
    minutes: float,
    lr: float,
    optimizer: type[torch.optim.AdamW] = torch.optim.AdamW,
    ema_decay: float = 0.999,
    fall: float = FALL,
    save_every: float = 120.0,
) -> dict[str, torch.Tensor]:
    """Train `model` until the budget is spent, from the checkpoint in `folder` where there is one.

    On the CPU every core computes its own batch, and a step takes the mean of their gradients: with small convolutions
    two cores are then 1.45 times as fast as one, and hardly faster when they share a batch.

    Args:
        folder: where `checkpoint.pt` and `log.jsonl` go.
        model: trained in place.
        loss_of: (network, number of the batch) -> named losses, whose sum is minimised. Its random generators are
            seeded by the number.
        minutes: the whole budget, over all interruptions.
        lr: peak learning rate.
        optimizer: its class.
        ema_decay: decay of the moving average.
        fall: share of the budget in which the learning rate falls to 0 at the end.
        save_every: seconds between checkpoints.

    Returns:
        The exponential moving average of the weights, a state dict.

    Raises:
        PieceEnd: the time of this piece was over first; the checkpoint is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    networks = lanes(model, threads if device.type == "cpu" else 1)
    optimiser = optimizer(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    state = State(folder / "checkpoint.pt", model, optimiser)
    budget, saved, logged, rows = 60 * minutes, time.monotonic(), state.step, list[dict[str, float]]()
    complete = state.seconds >= budget
    model.train()
    # OpenMP's number of threads is a property of the thread that sets it
    one = (1 if len(networks) > 1 else threads,)
    with ThreadPoolExecutor(len(networks), initializer=torch.set_num_threads, initargs=one) as executor:
        while (progress := state.seconds / budget) < 1 and not pieces.STOP.is_set():
            for group in optimiser.param_groups:
                group["lr"] = lr * schedule(progress, fall)
            rows += optimised(networks, optimiser, executor, loss_of, state.step)
            average(state.ema, model, min(ema_decay, (1 + state.step) / (10 + state.step)))
            state.step += 1
            if state.step - logged >= 100:
                write_log(folder, {"step": state.step, "minutes": round(state.seconds / 60, 2)} | means(rows))
                logged, rows = state.step, []
            if time.monotonic() - saved > save_every:
                state.save()
                saved = time.monotonic()
    if not complete:
        state.save()
    if state.seconds < budget:
        raise pieces.PieceEnd
    return state.ema


class State:
    """What a checkpoint holds: weights, optimiser, moving average, steps and seconds; read from `path` if it exists."""

    def __init__(self, path: Path, model: nn.Module, optimiser: torch.optim.Optimizer):
        self.path, self.model, self.optimiser, self.step, spent = path, model, optimiser, 0, 0.0
        self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if path.exists():
            kept = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
            model.load_state_dict(kept["model"])
            optimiser.load_state_dict(kept["optimiser"])
            self.ema, self.step, spent = kept["ema"], kept["step"], kept["spent"]
        self.started = time.monotonic() - spent

    @property
    def seconds(self) -> float:
        """Seconds of training so far, without interruptions."""
        return time.monotonic() - self.started

    def save(self) -> None:
        """Write the checkpoint beside the old one and rename it."""
        content = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "ema": self.ema}
        torch.save({**content, "step": self.step, "spent": self.seconds}, self.path.with_suffix(".part"))
        os.replace(self.path.with_suffix(".part"), self.path)


def optimised(
    networks: Sequence[Network],
    optimiser: torch.optim.Optimizer,
    executor: ThreadPoolExecutor,
    loss_of: Callable[[Network, int], dict[str, torch.Tensor]],
    step: int,
) -> list[dict[str, float]]:
    """Take one optimiser step; return the losses of each of its batches."""
    numbers = range(step * len(networks), (step + 1) * len(networks))
    rows = list(executor.map(partial(descend, loss_of, 1 / len(networks)), networks, numbers))
    gather(networks)
    nn.utils.clip_grad_norm_(networks[0].parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return rows


def descend(
    loss_of: Callable[[Network, int], dict[str, torch.Tensor]], weight: float, network: Network, number: int
) -> dict[str, float]:
    """Add the weighted gradients of a batch to the network's; return its losses as numbers."""
    losses = loss_of(network, number)
    (weight * torch.stack(list(losses.values())).sum()).backward()
    return {name: float(value.detach()) for name, value in losses.items()}


def gather(networks: Sequence[nn.Module]) -> None:
    """Add the gradients of the other networks to the first one's, and clear theirs."""
    for shared in zip(*(network.parameters() for network in networks), strict=True):
        first, *others = shared
        for other in others:
            if other.grad is not None:
                first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
                other.grad = None


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every loss over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(float(np.mean([row[name] for row in rows if name in row])), 5) for name in names}
