"""What is logged while an adapter trains: progress events, TensorBoard scalars, and sample sheets as PNG."""

from __future__ import annotations

from typing import Any

import numpy as np

from codi_hub.evaluation.pairs import outputs
from codi_hub.events import Event, OnEvent, TrainingStep
from codi_hub.images.sheets import contact_sheet
from codi_hub.inference.engine import generate_function
from codi_hub.training.finish import Run, inference_copy

SHOWN = 4  # pairs on a sample sheet


class Watcher:
    """Logs a run; in the main process only."""

    def __init__(self, run: Run, on_event: OnEvent) -> None:
        self.run, self.on_event = run, on_event
        self.board: Any = None
        if run.trainer.accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.work.job.folder / "tensorboard"))

    def on_step(self, event: Event) -> None:
        """Log the losses of a step and pass it on."""
        if self.board is not None and isinstance(event, TrainingStep):
            for name, value in event.losses.items():
                self.board.add_scalar(f"loss/{name}", value, event.step)
            self.on_event(event)

    def on_sample(self, step: int) -> None:
        """Write and log a sample sheet."""
        if self.board is not None:
            image = self.sample_sheet()
            path = self.run.work.job.folder / "samples" / f"{step:06}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            self.board.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def sample_sheet(self) -> Any:
        """Return a contact sheet: condition, 1 step, 4 steps, ground truth, one row per pair."""
        run, pairs = self.run, self.run.held_out(SHOWN)
        generate = generate_function(run.trainer.base, inference_copy(run.trainer.base, run.trainer.ema))
        one, four = (outputs(run.work.task, pairs, generate, steps, 0)[0] for steps in (1, 4))
        rows = [[p.condition, a, b, p.target] for p, a, b in zip(pairs, one, four, strict=True)]
        return contact_sheet(rows, columns=("condition", "1 step", "4 steps", "target"), width=192)

    def close(self) -> None:
        """Close the TensorBoard log."""
        if self.board is not None:
            self.board.close()
