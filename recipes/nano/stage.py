"""One resumable stage of training under a time budget: the loop that the autoencoder and the base share."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

WARM_UP = 0.02  # share of the budget in which the learning rate rises
FALL = 0.35  # share of the budget in which it falls to zero at the end


def schedule(progress: float) -> float:
    """Learning-rate factor at a share of the budget, in [0, 1]: a short rise, a plateau, a linear fall."""
    return max(0.0, min(progress / WARM_UP, 1.0, (1 - progress) / FALL))


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


def train(
    folder: Path,
    model: nn.Module,
    loss_of: Callable[[int], dict[str, torch.Tensor]],
    *,
    minutes: float,
    lr: float,
    ema_decay: float = 0.999,
    save_every: float = 120.0,
) -> dict[str, torch.Tensor]:
    """Trains `model` until the budget is spent, going on from `folder`'s checkpoint where there is one.

    Args:
        folder: where `checkpoint.pt` and `log.jsonl` go.
        loss_of: step -> named losses, whose sum is minimised. Randomness is seeded by the step.
        minutes: the whole budget, all pieces of the stage together.

    Returns:
        the exponential moving average of the weights, a state dict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    step, spent, path = 0, 0.0, folder / "checkpoint.pt"
    if path.exists():
        kept = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        ema, step, spent = kept["ema"], kept["step"], kept["spent"]
    began, saved, logged, sums = time.monotonic() - spent, time.monotonic(), step, {}

    def save() -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema}
        torch.save({**state, "step": step, "spent": time.monotonic() - began}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    model.train()
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(progress)
        torch.manual_seed(step)
        losses = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average(ema, model, min(ema_decay, (1 + step) / (10 + step)))
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step - logged >= 100:
            means = {name: round(value / (step - logged), 5) for name, value in sums.items()}
            write_log(folder, {"step": step, "minutes": round((time.monotonic() - began) / 60, 2)} | means)
            logged, sums = step, {}
        if time.monotonic() - saved > save_every:
            save()
            saved = time.monotonic()
    if spent < 60 * minutes:
        save()
    return ema
