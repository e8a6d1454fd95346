"""The memory of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from codi_hub.errors import CodiError
from codi_hub.training.job import Plan


@contextmanager
def enough_memory(work: Plan) -> Iterator[None]:
    """Turn running out of memory into one line that says what to lower. Raises CodiError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        training, size = work.config.training, work.config.data.size
        lower = [f"training.batch ({training.batch})"] if training.batch > 1 else []
        lower += [f"data.size ({size or 'that of the base'})"]
        more = [] if training.checkpointing else ["set training.checkpointing"]
        more += [] if work.kind == "lora" else ["train adapter.kind lora"]
        more += ["training.ema 0"] if training.ema else []
        more += ["training.optimizer adamw8bit"] if training.optimizer == "adamw" else []
        raise CodiError(f"not enough memory: lower {' or '.join(lower)}, or {', '.join(more)}") from error
