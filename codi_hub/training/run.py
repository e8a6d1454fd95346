"""One distillation, from a job to a folder that can be registered."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache as kept
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones import load
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.fingerprint import check_unchanged
from codi_hub.data.sources import split
from codi_hub.errors import CodiError, UsageError, system_reason
from codi_hub.events import Message, OnEvent
from codi_hub.inference.devices import choose_device, choose_dtype
from codi_hub.seeds import torch_seed
from codi_hub.training import finish, folder
from codi_hub.training.distributed import by_main, count, main_first
from codi_hub.training.finish import Finished, Run
from codi_hub.training.job import Job, Plan, plan
from codi_hub.training.latents import PairFile
from codi_hub.training.memory import enough_memory
from codi_hub.training.pairs import PairsSpec, open_pairs, pair_at
from codi_hub.training.sizes import sized
from codi_hub.training.trainer import Trainer
from codi_hub.training.watch import Watcher

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # errors of a disk, whatever is written
PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def distil(job: Job, on_event: OnEvent) -> Finished:
    """Distil an adapter (docs/method.md) and measure it on held-out pairs.

    Args:
        job: what to distil.
        on_event: receives `Message` and `TrainingStep`.

    Raises:
        CodiError: a configuration that is not possible, unusable data, or a resumed run of another adapter.
    """
    work = plan(job)
    by_main(lambda: folder.check_writable(job.folder))
    with enough_memory(work), _enough_space(job.folder):
        return _distil(work, on_event)


@contextmanager
def _enough_space(run: Path) -> Iterator[None]:
    """Name the run's folder where its disk is full or fails. Raises CodiError."""
    try:
        yield
    except Exception as error:
        reason = system_reason(error)
        if isinstance(error, CodiError) or reason is None or reason not in map(os.strerror, DISK):
            raise
        raise CodiError(f"{reason}, while the run in {run} was written: make room, and resume it") from error


def _distil(work: Plan, on_event: OnEvent) -> Finished:
    job = work.job
    dtype, accelerator = machine(work)
    method = work.method(work.loss, accelerator.device)
    base = load(job.base, device=accelerator.device, dtype=dtype)
    if job.registered:
        check_unchanged(job.registered, base.fingerprint)
    work = sized(work, base)
    by_main(lambda: folder.claim(work, count()))
    spec = pairs_spec(work, base)
    source, task = open_pairs(spec)
    train, held = split(len(source))
    pairs = f"{len(train)} pairs of {spec.size} px from {spec.data}"
    on_event(Message(announcement(work, work.method_label(method.weights()), accelerator, pairs)))
    if work.warning:
        on_event(Message(work.warning))
    adapter = new_adapter(work, base)  # what is not possible is refused before pairs are encoded
    cache = main_first(
        lambda: PairFile(
            spec,
            train,
            base,
            work.config.data.cache_dir or job.folder / "pairs",
            workers=work.config.data.workers,
            with_targets=method.needs_targets,
            message=lambda text: on_event(Message(text)),
            opened=(source, task),
        )
    )
    settings = work.config.training
    evaluation = finish.evaluation_steps(work, len(held))
    trainer = Trainer(base, adapter, cache, method, settings, accelerator, job.folder, job.began, evaluation)
    pair = kept(partial(pair_at, source, task, spec.seed))
    run = Run(work, lambda count: [*map(pair, held[:count])], trainer, spec)
    with closing(cache):
        train_to_the_end(run, on_event)
    return by_main(lambda: finish.finish(run))


def machine(work: Plan) -> tuple[torch.dtype, Accelerator]:
    """Return the base's precision, and this process's accelerator. Raises UsageError."""
    training = work.config.training
    device = choose_device(training.device)
    if device.index is not None:
        if count() > 1:
            raise UsageError(f"training.device {device}: each process has its own device; use {device.type}")
        torch.cuda.set_device(device)  # accelerate computes on the current one
    dtype = choose_dtype(training.precision, device)
    if dtype == torch.float16 and device.type == "cpu":  # where accelerate has no mixed precision in it
        raise UsageError("training.precision fp16: a CPU trains in bf16 or fp32; choose one of them")
    # accelerate has one state per process, and refuses a second run in it on another device or in another precision
    AcceleratorState._reset_state(reset_partial_state=count() == 1)
    return dtype, Accelerator(cpu=device.type == "cpu", mixed_precision=PRECISIONS[dtype])


def pairs_spec(work: Plan, base: Backbone) -> PairsSpec:
    """Return source and size of the pairs; the size suits task and base unless the configuration has one.

    Raises:
        UsageError: a size that the base cannot encode, or has no positions for.
    """
    job, data, multiple = work.job, work.config.data, base.latents.multiple
    size = data.size or max(1, int(work.task.training_size * base.latents.native_size) // multiple) * multiple
    if size % multiple:
        raise UsageError(f"data.size {size}: a multiple of {multiple} px on this base")
    if base.latents.max_side is not None and size > base.latents.max_side:
        raise UsageError(f"data.size {size}: at most {base.latents.max_side} px on this base")
    assert data.source is not None  # the plan has decided it
    seed = work.config.training.seed
    return PairsSpec(job.like, job.task_options, data.source, data.count, size, seed, data.columns)


def announcement(work: Plan, method: str, accelerator: Accelerator, pairs: str) -> str:
    """Return what will be trained, on what and for how long, in one line."""
    training = work.config.training
    length = [f"{training.train_steps} steps"] if training.train_steps else []
    length += [f"{training.time_budget:g} s in all"] if training.time_budget else []
    batch = training.batch * training.accumulate * count()
    device = accelerator.device.type
    return (
        f"Distilling {work.job.task_name} on {work.job.base_name}: method {method}, kind {work.kind}, "
        f"{pairs}, {' or '.join(length)}, "
        f"batch {batch} on {f'{count()} x {device}' if count() > 1 else device} ({accelerator.mixed_precision}); "
        f"run folder {work.job.folder}"
    )


def new_adapter(work: Plan, base: Backbone) -> Adapter:
    """Return the adapter at initialisation: with a parent its weights, whatever it lacks at zero."""
    torch.manual_seed(torch_seed(work.config.training.seed))
    settings = {name: getattr(work.adapter, name) for name in type(work.adapter).model_fields}
    parent = work.job.parent
    if parent is None:
        return adapters.build(work.kind, base, **settings)
    kept = format.load(parent.weights, parent.record, base, allow_base_mismatch=work.config.adapter.allow_base_mismatch)
    adapter = adapters.build(work.kind, base, **settings)
    adapter.load_state_dict({name: value.float() for name, value in kept.state_dict().items()}, strict=False)
    return adapter


def train_to_the_end(run: Run, on_event: OnEvent) -> None:
    """Train, from the checkpoint where a run is resumed, while a watcher logs it. Raises CodiError."""
    trainer = run.trainer
    if run.work.config.training.resume and trainer.restore():
        progress = trainer.progress
        rest = "; nothing is left to train" if trainer.finished else ""
        on_event(Message(f"Continuing from step {progress.step}, after {progress.seconds:.0f} s of training{rest}"))
    with closing(Watcher(run, on_event)) as watcher:
        try:
            trainer.run(watcher.on_step, watcher.on_sample)
        except FloatingPointError as error:
            raise CodiError(f"{error}: try a lower training.lr, or training.precision fp32") from error
