"""The end of a run: scores on held-out pairs, a sheet of them, and the adapter's folder with its record and card."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.config.write import plain
from codi_hub.data.sources import MAX_HELD_OUT
from codi_hub.errors import CodiError
from codi_hub.evaluation.pairs import held_out_scores, pairs_id
from codi_hub.images.metrics import psnr
from codi_hub.images.sheets import contact_sheet
from codi_hub.inference.engine import generate_function
from codi_hub.record import TrainingRecord
from codi_hub.tasks.base import Pair
from codi_hub.training.distributed import count
from codi_hub.training.job import Plan
from codi_hub.training.model_card import write_card
from codi_hub.training.pairs import PairsSpec
from codi_hub.training.trainer import Trainer

SAMPLING_STEPS = (1, 2, 4, 8)
DEFAULT_SAMPLING = 4  # steps at which versions are compared, whatever their method
SHOWN = 8  # pairs on the sheet
LEAST = 4  # pairs that are measured, however short the time
PASSES = 4  # forward passes of the networks that take as long as a training step of as many pairs, about


@dataclass(frozen=True)
class Run:
    """A run whose trainer is ready.

    Attributes:
        work: the plan that is carried out.
        held_out: returns the first held-out pairs, which are never trained on, as many as are asked for; None: all.
        trainer: the trainer.
        spec: the training pairs.
    """

    work: Plan
    held_out: Callable[[int | None], list[Pair]]
    trainer: Trainer
    spec: PairsSpec

    @cached_property
    def pairs(self) -> list[Pair]:
        """The held-out pairs that the adapter is measured on: all, or what the rest of a time budget is enough for."""
        left, full = self.trainer.left(), self.trainer.evaluation_seconds()
        return self.held_out(None if left is None or full <= left else max(LEAST, int(MAX_HELD_OUT * left / full)))


def evaluation_steps(work: Plan, pairs: int) -> float:
    """Return how many training steps take as long as the evaluation, about.

    A training step computes a pair in about `PASSES` of the time of one evaluation of the networks.
    """
    training = work.config.training
    evaluations = sum({*SAMPLING_STEPS, work.sampling_steps}) + (DEFAULT_SAMPLING if work.job.latest else 0)
    return pairs * evaluations / (PASSES * training.batch * training.accumulate)


@dataclass(frozen=True)
class Finished:
    """A finished distillation; its three files are in `folder`."""

    folder: Path
    record: format.AdapterRecord
    parameters: int
    steps: int
    seconds: float
    score: float | None


def inference_copy(base: Backbone, adapter: Adapter) -> Adapter:
    """Return the trained adapter as it will run: in the base's dtype, without gradients."""
    copy = adapters.build(adapter.kind, base, **adapter.config)
    copy.load_state_dict(adapter.state_dict())
    return copy.to(base.dtype).requires_grad_(False).eval()


def finish(run: Run) -> Finished:
    """Measure the moving average on the held-out pairs and write the adapter's folder."""
    work, trainer, folder = run.work, run.trainer, run.work.job.folder / "adapter"
    metrics, images = _scores(run)
    _held_out_sheet(run, images).save(work.job.folder / "held-out.png")
    fingerprint = run.trainer.base.fingerprint
    loss = trainer.method.weights()
    method = work.method_label(loss)
    parent = work.job.parent
    record = format.AdapterRecord(
        task=work.job.task_name,
        kind=work.kind,
        base=format.BaseRecord(name=work.job.base_name, family=fingerprint.family, sketch=fingerprint.sketch),
        prediction_type=run.trainer.base.schedule.prediction_type,  # type: ignore[arg-type]
        steps=work.sampling_steps,
        shift=_shift(run),
        guidance=trainer.base.guidance,
        config=trainer.ema.config,
        method=method,
        loss=loss,
        training=_settings(run),
        lineage=[*(parent.record.lineage if parent else ()), _training(run, method)],
        metrics=metrics,
    )
    parameters = sum(parameter.numel() for parameter in trainer.ema.parameters())
    format.write(folder, trainer.ema, record, write_card(record, parameters))
    progress = trainer.progress
    return Finished(folder, record, parameters, progress.step, progress.seconds, work.task.latest_score(metrics))


def _scores(run: Run) -> tuple[dict[str, Any], dict[int, Sequence[np.ndarray]]]:
    """Return the record's metrics, and the outputs by numbers of steps."""
    generate = generate_function(run.trainer.base, inference_copy(run.trainer.base, run.trainer.ema))
    counts = [*dict.fromkeys((*SAMPLING_STEPS, run.work.sampling_steps))]
    scores, images = held_out_scores(run.work.task, run.pairs, generate, steps=counts)
    metrics: dict[str, Any] = {k: v for k, v in scores[DEFAULT_SAMPLING].items() if v is not None and k != "seconds"}
    metrics |= {"held_out": len(run.pairs), "held_out_pairs": pairs_id(run.pairs)}
    metrics |= {"by_steps": {str(steps): row for steps, row in scores.items()}}
    if (before := _latest_score(run)) is not None:
        assert run.work.job.latest is not None
        metrics["latest_before"] = {"adapter": run.work.job.latest.ref, "score": before}
    if run.pairs[0].condition.shape[2] == 3:
        metrics["condition_psnr"] = float(np.mean([psnr(pair.condition, pair.target) for pair in run.pairs]))
    return metrics, images


def _latest_score(run: Run) -> float | None:
    """Return the score of the version that was the latest on the held-out pairs of this run; None if it has none."""
    latest, base = run.work.job.latest, run.trainer.base
    if latest is None:
        return None
    try:
        channels = run.pairs[0].condition.shape[2]
        format.check_condition(latest.record, latest.ref, run.work.task.name, channels)
        generate = generate_function(base, format.load(latest.weights, latest.record, base))
        scores, _ = held_out_scores(run.work.task, run.pairs, generate, steps=[DEFAULT_SAMPLING])
    except (CodiError, MemoryError):  # it is left as it is, and the training is not lost
        return None
    return run.work.task.latest_score(scores[DEFAULT_SAMPLING])


def _held_out_sheet(run: Run, images: dict[int, Sequence[np.ndarray]]) -> Any:
    rows = [
        [pair.condition, *(images[steps][k] for steps in SAMPLING_STEPS), pair.target]
        for k, pair in enumerate(run.pairs[:SHOWN])
    ]
    columns = ["condition", *(f"{steps} step{'s' * (steps > 1)}" for steps in SAMPLING_STEPS), "target"]
    return contact_sheet(rows, columns=columns, width=160)


def _shift(run: Run) -> float | None:
    """Return the shift of a flow base's time grid, for images of the training's size."""
    shift = getattr(run.trainer.base.schedule_for(run.spec.size, run.spec.size), "shift", None)
    return float(shift) if isinstance(shift, int | float) else None


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings of this training that decide what the adapter is."""
    config = run.work.config
    loss = {name: value for name, value in config.values()["loss"].items() if name not in ("method", "consistency")}
    training = config.training
    batch = training.batch * training.accumulate * count()
    settings = loss | {"batch": batch, "lr": training.lr, "ema": training.ema, "seed": training.seed}
    settings |= {"prompt_dropout": training.prompt_dropout} if training.prompt_dropout else {}
    return dict(plain(settings)) | {"task_options": run.work.job.task_options}


def _training(run: Run, method: str) -> TrainingRecord:
    """Return the record of this training, the last of the adapter's lineage."""
    work, trainer, spec = run.work, run.trainer, run.spec
    init = getattr(work.adapter, "init", "random")  # a kind without it has no weights of the base
    start = f"from {work.job.parent.ref}" if work.job.parent else f"{init} initialisation"
    return TrainingRecord(
        method=method,
        data=f"{len(trainer.cache)} pairs of {spec.size} px from {_name(spec.data)}",
        minutes=round(trainer.progress.seconds / 60, 1),
        steps=trainer.progress.step,
        start=start,
        task=work.job.task_name,
        kind=work.kind,
        hardware=_hardware(trainer),
    )


def _name(data: str) -> str:
    """Return a source as the record names it: of a folder its name, since its place means nothing elsewhere."""
    return Path(data).name if Path(data).is_absolute() else data


def _hardware(trainer: Trainer) -> str:
    device = f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
    if trainer.accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    processes = f"{count()} x {device}" if count() > 1 else device
    return f"{processes}, {trainer.accelerator.mixed_precision} mixed precision"
