"""Configuration of a distillation: the data, the adapter, the loss, and the training around them.

`adapter` and `loss` also hold the fields of the adapter kind's and the method's own `Config`, which a package may have
added; `codi_hub.training.job` checks those, because they need the kind and the method to be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from codi_hub.config.model import Options, option
from codi_hub.config.values import KIND_ALIASES, MAX_SEED, Device, Duration, EmaDevice, Optimizer, Precision


def _current_kind(kind: Any) -> Any:
    return KIND_ALIASES.get(kind, kind) if isinstance(kind, str) else kind


class DataConfig(Options):
    """The training data."""

    section = "data"

    source: str | None = option(None, "--data", panel="Data")
    """Generator, folder, file or hub id (default: the task's).

    A folder holds images, or pairs in condition/ and target/ or in metadata.jsonl; files are .tar or .parquet, one or a
    pattern such as 'shards/*.tar'. Generators are leaves, scenes, edits (scenes with their edited versions) and
    removals (an object is removed from all of them), or several of them such as edits+removals."""
    columns: str = option("", "--columns", panel="Data", metavar="KEY=NAME")
    """Columns by field, as image=jpg.

    Of .tar, .parquet or a hub id, as image=jpg,text=txt; fields are image, condition, depth, edited, text and
    instruction. Those that are not named are found by their usual names."""
    count: int | None = option(None, "--count", panel="Data", ge=1, le=10**8)
    """Number of training pairs (default: the task's)."""
    size: int | None = option(None, "--size", panel="Data", ge=8, le=4096)
    """Side of the images, px (default: the task's)."""
    workers: int = option(0, "--workers", panel="Data", resumable=True, ge=0, le=1024)
    """Processes that create pairs (default: one per core).

    At most 8 by default."""
    cache_dir: Path | None = option(None, "--cache-dir", panel="Data", resumable=True)
    """Folder for encoded pairs (default: in the run folder).

    Runs on the same data and base share the pairs there."""


class _Extended(Options):
    """Options with further fields that are checked later, by the plug-in that reads them."""

    model_config = ConfigDict(extra="allow")

    @property
    def extras(self) -> dict[str, Any]:
        """Return the further fields by name."""
        return dict(self.model_extra or {})


class AdapterConfig(_Extended):
    """The trained network and its initial weights. Further fields are those of the kind's own `Config`."""

    section = "adapter"

    kind: Annotated[str, BeforeValidator(_current_kind)] = option("", "--kind", panel="Adapter")
    """control, lora, concat, static, residual or full.

    By default the parent's, else the task's, else the base family's, else the method's. control is an encoder beside
    the frozen base; lora the same, built from the base's weights and low-rank deltas; concat the base itself with
    further input channels and low-rank deltas; static an encoder of the condition alone, evaluated once
    per image; residual a feed-forward network, evaluated once per image; full trains everything."""
    parent: str | None = option(None, "--from", panel="Adapter", metavar="REF", resumable=True)
    """Adapter to continue from, as TASK:VERSION.

    Of a method with a teacher (cm, gd) it is the teacher."""
    allow_base_mismatch: bool = option(False, resumable=True)
    """Whether the parent may belong to another base of the family."""
    start: float | None = option(None, "--start", panel="Adapter", ge=0.02, le=1.0)
    """Where sampling starts, from 0.02 to 1 (default: 1).

    A share of the schedule. Below 1 sampling starts from the condition instead of noise. A parent's is kept."""
    start_noise: float | None = option(None, ge=0.0, le=1.0)
    """Share of the starting time's noise that is added to the condition (default: the parent's, or 0).

    Where sampling starts from the condition; with 0 the result does not depend on the seed."""


class LossConfig(_Extended):
    """The loss of a training step. Further fields are those of the method's own `Config`."""

    section = "loss"

    method: str = option("pe-codi", "--method", panel="Loss")
    """pe-codi, codi, conditional, cm or gd (default: pe-codi).

    pe-codi trains an adapter beside the frozen base, codi everything; for comparison there is plain conditional
    training, and its consistency (cm) or progressive (gd) distillation."""
    guidance: str | None = option(None, "--guidance", panel="Loss")
    """latent, relative, roundtrip, pixel, lpips or off.

    The distance between prediction and ground truth; by default the task's, or latent. relative divides each pair's
    latent error by the distance between target and condition, for edits large and small; roundtrip compares E(D(x)),
    pixel and lpips decoded images."""


class TrainingConfig(Options):
    """The optimiser, the budget, the machine and the run folder."""

    section = "training"

    train_steps: int | None = option(None, "--train-steps", panel="Training", resumable=True, ge=1, le=10**9)
    """Optimiser steps (default: 2000, or the time budget)."""
    time_budget: Duration | None = option(None, "--time-budget", panel="Training", metavar="TIME", resumable=True)
    """Time of the whole command, such as 90s, 10m or 1h30m: loading, pairs, training and evaluation.

    At least one step is taken. Of a resumed run the times of all its commands count."""
    batch: int = option(16, "--batch", panel="Training", resumable=True, ge=1)
    """Pairs per batch (default: by the base).

    On each device. By default 16, 4 from 100 million parameters of the base's network on, and 1 from 1.5 billion."""
    accumulate: int = option(1, "--accumulate", panel="Training", resumable=True, ge=1)
    """Batches per step (default: by the base).

    1, or 4 from 1.5 billion parameters of the base's network on."""
    lr: float = option(2e-4, "--lr", panel="Training", ge=0.0)
    """Learning rate (default: by the base).

    The task's, or 2e-4, is for bases of less than 100 million parameters. On others 1e-4 where the adapter has less
    than a tenth of the parameters of the base's network, and 1e-5 where it has more, as a copy of it."""
    optimizer: Optimizer = option("adamw")
    """adamw, or adamw8bit (bitsandbytes), whose moments take a quarter of the memory."""
    checkpointing: bool = option(False, "--gradient-checkpointing", panel="Training", resumable=True)
    """Save memory; a third slower.

    Activations are computed again in the backward pass instead of being kept."""
    ema: float = option(0.99, ge=0.0, le=1.0)
    """Decay of the moving average that is the target network, and the adapter in the end.

    With 0 the student itself is both, and no second copy of the adapter is kept."""
    ema_device: EmaDevice = option("device", resumable=True)
    """Where the moving average is kept: on the device, or in the CPU's memory.

    On the CPU it costs a copy of the adapter across the bus per step, and another wherever the loss evaluates it."""
    prompt_dropout: float | None = option(None, ge=0.0, le=1.0)
    """Share of the pairs that are trained without their prompt (default: the method's).

    It is what a guidance scale needs: 0.1 for conditional, 0 for all others, whose adapters take none."""
    precision: Precision = option("auto", "--precision", panel="Training", metavar="NAME", resumable=True)
    """auto, fp32, fp16 or bf16."""
    device: Device = option("auto", "--device", panel="Training", metavar="NAME", resumable=True)
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = option(0, "--seed", panel="Training", ge=0, le=MAX_SEED)
    """Seed of data, noise and initial weights."""
    sample_every: int = option(250, "--sample-every", panel="Run folder", resumable=True, ge=0)
    """Steps between sample sheets; 0 for none."""
    checkpoint_every: int = option(100, "--checkpoint-every", panel="Run folder", resumable=True, ge=1)
    """Steps between checkpoints."""
    run_dir: Path | None = option(None, "--run-dir", panel="Run folder", resumable=True, recorded=False)
    """Folder of the run (default: a new one in the home).

    It holds config.yaml, the checkpoint, the log, sample sheets and the finished adapter."""
    resume: bool = option(False, "--resume", panel="Run folder", resumable=True, recorded=False)
    """Continue the run in the folder, or the latest one.

    The run's configuration is kept: another value is refused for every field that changes the adapter."""


class RunState(Options):
    """Identity of a run: written by it, compared when it is resumed, ignored by a new run."""

    section = "run"

    task: str
    """The task's name."""
    like: str
    """The built-in task it is a variant of."""
    pairs_per_step: int
    """batch x accumulate x processes."""
    teacher: str | None = None
    """The adapter that a method with a teacher distils."""


class DistillConfig(Options):
    """The whole configuration of a distillation; `config.yaml` in a run folder has every field of it."""

    data: DataConfig = DataConfig()
    base: str | None = option(None, "--base", panel="Adapter")
    """Frozen base (default: the one in use)."""
    adapter: AdapterConfig = AdapterConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    task: dict[str, Any] = option({}, "--set", panel="Data", metavar="KEY=VALUE")
    """Task option; repeat for more."""
    run: RunState | None = None
    """Identity of the run in a run folder; absent from the configuration of a new run."""

    def values(self) -> dict[str, Any]:
        """Return the fields as nested mappings of Python values."""
        return {
            name: dict(value) | (value.model_extra or {}) if isinstance(value, Options) else value
            for name, value in self
        }
