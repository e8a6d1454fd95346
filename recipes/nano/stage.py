"""One resumable stage of training under a time budget: the loop that the autoencoder and the base share."""

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

Network = TypeVar("Network", bound=nn.Module)

WARM_UP = 0.02  # share of the budget in which the learning rate rises
FALL = 0.35  # share of the budget in which it falls to zero at the end


def schedule(progress: float, fall: float = FALL) -> float:
    """Learning-rate factor at a share of the budget, in [0, 1]: a short rise, a plateau, a linear fall."""
    return max(0.0, min(progress / WARM_UP, 1.0, (1 - progress) / fall))


def write_log(folder: Path, row: dict[str, float]) -> None:
    """Adds a row to the stage's log and prints it."""
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(row, flush=True)


@torch.no_grad()
def average(ema: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    """Moves the average a step towards the model's weights, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, 1 - decay)


def lanes(model: nn.Module, count: int) -> list[nn.Module]:
    """The model and `count` - 1 twins that hold the same weights, each with gradients of its own."""
    twins = [copy.deepcopy(model) for _ in range(count - 1)]
    for twin in twins:
        for mine, shared in zip(
            [*twin.parameters(), *twin.buffers()], [*model.parameters(), *model.buffers()], strict=True
        ):
            mine.data = shared.data
    return [model, *twins]


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
    """Trains `model` until the budget is spent, going on from `folder`'s checkpoint where there is one.

    On the CPU every core computes a batch of its own, and a step takes the mean of their gradients: small convolutions
    gain 1.45 times from two cores so, and next to nothing from being cut in two.

    Args:
        folder: where `checkpoint.pt` and `log.jsonl` go.
        loss_of: network, number of the batch -> named losses, whose sum is minimised. It draws from generators of
            its own, seeded by the number.
        minutes: the whole budget, all pieces of the stage together.
        fall: share of it in which the learning rate falls to zero at the end.

    Returns:
        the exponential moving average of the weights, a state dict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    networks = lanes(model, threads if device.type == "cpu" else 1)
    optimiser = optimizer(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    step, spent, path = 0, 0.0, folder / "checkpoint.pt"
    if path.exists():
        kept = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        ema, step, spent = kept["ema"], kept["step"], kept["spent"]
    began, saved, logged, rows = time.monotonic() - spent, time.monotonic(), step, list[dict[str, float]]()

    def save() -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema}
        torch.save({**state, "step": step, "spent": time.monotonic() - began}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    model.train()
    # (OpenMP's number of threads belongs to the thread that sets it)
    one = (1 if len(networks) > 1 else threads,)
    with ThreadPoolExecutor(len(networks), initializer=torch.set_num_threads, initargs=one) as executor:
        while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = lr * schedule(progress, fall)
            rows += optimised(networks, optimiser, executor, loss_of, step)
            average(ema, model, min(ema_decay, (1 + step) / (10 + step)))
            step += 1
            if step - logged >= 100:
                write_log(folder, {"step": step, "minutes": round((time.monotonic() - began) / 60, 2)} | means(rows))
                logged, rows = step, []
            if time.monotonic() - saved > save_every:
                save()
                saved = time.monotonic()
    if spent < 60 * minutes:
        save()
    return ema


def optimised(
    networks: Sequence[Network],
    optimiser: torch.optim.Optimizer,
    executor: ThreadPoolExecutor,
    loss_of: Callable[[Network, int], dict[str, torch.Tensor]],
    step: int,
) -> list[dict[str, float]]:
    """One step of the optimiser on the batches that are its; the losses of each."""
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
    """Adds the weighted gradients of a batch to the network's; its losses as numbers."""
    losses = loss_of(network, number)
    (weight * torch.stack(list(losses.values())).sum()).backward()
    return {name: float(value.detach()) for name, value in losses.items()}


def gather(networks: Sequence[nn.Module]) -> None:
    """Adds the gradients of the twins to the first one's, and leaves them none."""
    for shared in zip(*(network.parameters() for network in networks), strict=True):
        first, *others = shared
        for twin in others:
            if twin.grad is not None:
                first.grad = twin.grad if first.grad is None else first.grad.add_(twin.grad)
                twin.grad = None


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every loss over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(float(np.mean([row[name] for row in rows if name in row])), 5) for name in names}
