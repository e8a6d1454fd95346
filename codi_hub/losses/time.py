"""Times that few-step losses train at."""

from __future__ import annotations

import torch
from torch import Tensor

from codi_hub.losses.method import StepContext


def neighbours(
    context: StepContext, points: int, dt: int, shared: bool, clean: float | None = None
) -> tuple[Tensor, Tensor]:
    """Draw t and s = t - dt on the learning grid, float32 (B,).

    Args:
        context: the micro-batch.
        points: points of the grid.
        dt: grid points between the two.
        shared: one t for the whole optimiser step, or one per sample.
        clean: the time before the first grid point; None where sigma_s must not be 0: then the schedule's least time
            takes its place, and on a flow the first grid point itself.
    """
    schedule = context.schedule
    grid = schedule.learning_grid(points, context.start)
    first = clean if clean is not None else schedule.least or float(grid[0])
    times = torch.cat([torch.full((dt,), first, dtype=grid.dtype), grid]).float()
    k = context.draw(dt, points + 1, shared)
    return times[k - 1 + dt].to(context.x.device), times[k - 1].to(context.x.device)
