"""Training of an adapter, and its registration as a new version."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from codi_hub.config.base import BaseOptions
from codi_hub.config.distill import DistillConfig
from codi_hub.errors import CodiError
from codi_hub.events import OnEvent, ignore
from codi_hub.operations.context import Context
from codi_hub.reports import DistillResult, TrainingPlan
from codi_hub.training.distributed import by_main, count, joined

if TYPE_CHECKING:
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Task
    from codi_hub.training.finish import Finished
    from codi_hub.training.job import Job, Parent


def distill(
    context: Context, name: str, config: DistillConfig | Mapping[str, Any] | None, on_event: OnEvent
) -> DistillResult:
    """Train an adapter for a task and register it; see `Hub.distill`."""
    began = time.monotonic()
    if not isinstance(config, DistillConfig):
        config = context.catalog.distill_config(name, config or {})
    with joined(config.training.device) as main:
        return _distill(context, name, config, on_event if main else ignore, began)


def plan(context: Context, name: str, config: DistillConfig | Mapping[str, Any] | None) -> TrainingPlan:
    """Decide a training and count its memory; see `Hub.plan`."""
    from codi_hub.training.dry_run import dry_run

    if not isinstance(config, DistillConfig):
        config = context.catalog.distill_config(name, config or {})
    work, size, memory = dry_run(_job(context, name, config))
    training = work.config.training
    return TrainingPlan(
        task=name,
        base=work.job.base_name,
        kind=work.kind,
        size=size,
        batch=training.batch,
        accumulate=training.accumulate,
        lr=training.lr,
        memory={part: value for part, value in vars(memory).items() if value},
        total=memory.total,
    )


def _distill(context: Context, name: str, config: DistillConfig, on_event: OnEvent, began: float) -> DistillResult:
    from codi_hub.training.run import distil

    job = replace(_job(context, name, config, on_event), began=began)
    if job.config.training.resume and (before := by_main(lambda: _finished_before(context, job))):
        return before
    context.catalog.registry.database.check_writable()  # or else the training could not be registered
    finished = distil(job, on_event)
    return by_main(lambda: _register(context, job, finished))


def _job(context: Context, name: str, config: DistillConfig, on_event: OnEvent = ignore) -> Job:
    from codi_hub.backbones import locate
    from codi_hub.training.folder import run_folder
    from codi_hub.training.job import Job

    catalog = context.catalog
    entry = catalog.task(name)
    task = catalog.load_task(name, config.task)
    task_options = {**entry["options"], **config.task}
    base = catalog.registry.bases.get(config.base or context.base)
    folder = by_main(lambda: run_folder(catalog.registry.home, name, config.training))
    parent = _parent(context, config, task, base.name, on_event) if config.adapter.parent else None
    options = BaseOptions.of(base)
    kind = locate(options).family.default_kind
    latest = _latest(context, name, base.name) if _is_own_data(config, task) else None
    return Job(name, task.name, task_options, base.name, options, config, folder, parent, latest, base, kind)


def _register(context: Context, job: Job, finished: Finished) -> DistillResult:
    adapters = context.catalog.registry.adapters
    row, _ = adapters.add(
        finished.folder,
        task=job.task_name,
        base=job.base_name,
        kind=finished.record.kind,
        steps=finished.record.steps,
        parameters=finished.parameters,
        metrics=finished.record.metrics,
        score=finished.score,
        parent=job.parent.ref if job.parent else None,
    )
    latest = adapters.resolve(job.task_name, base=job.base_name)
    return DistillResult(
        task=job.task_name,
        adapter=row.ref,
        base=job.base_name,
        kind=row.kind,
        steps=finished.steps,
        seconds=finished.seconds,
        metrics=finished.record.metrics,
        score=finished.score,
        latest=latest.ref,
        comparable=row.compares(latest),
        run_dir=job.folder,
    )


def _finished_before(context: Context, job: Job) -> DistillResult | None:
    """Return the version of a resumed run that has finished and is registered; None for any other run."""
    from codi_hub.adapters.format import WEIGHTS
    from codi_hub.registry.store import sha256
    from codi_hub.training import checkpoint
    from codi_hub.training.folder import compared
    from codi_hub.training.job import plan
    from codi_hub.training.trainer import Progress

    state = checkpoint.state_of(job.folder / checkpoint.NAME) or {}
    progress = Progress.of(state) if state else Progress()
    weights = job.folder / "adapter" / WEIGHTS
    if not progress.ends(job.config.training) or not weights.is_file():
        return None
    compared(plan(job), count())  # what a resumed run cannot change is refused all the same
    digest, adapters = sha256(weights), context.catalog.registry.adapters
    row = next((row for row in adapters.list(job.task_name, job.base_name) if row.sha256 == digest), None)
    if row is None:
        return None
    return DistillResult(
        task=job.task_name,
        adapter=row.ref,
        base=job.base_name,
        kind=row.kind,
        steps=progress.step,
        seconds=progress.seconds,
        metrics=row.metrics,
        score=row.score,
        latest=adapters.resolve(job.task_name, base=job.base_name).ref,
        run_dir=job.folder,
        resumed_finished=True,
    )


def _is_own_data(config: DistillConfig, task: Task) -> bool:
    """Return whether a training uses its task's own data; on a user's, a version that never saw them is worse off."""
    return config.data.source is None or config.data.source == (task.options.data or task.data)


def _latest(context: Context, task: str, base: str) -> Parent | None:
    """Return the latest version if it does not say on which pairs it was measured, as those that are bundled."""
    with suppress(CodiError):  # none, or one that cannot be read: there is nothing to compare with
        row = context.catalog.registry.adapters.resolve(task, base)
        if "held_out_pairs" not in row.metrics:
            return _version(context, row)
    return None


def _parent(context: Context, config: DistillConfig, task: Task, base: str, on_event: OnEvent) -> Parent:
    """Return the adapter that training starts from."""
    row = context.resolve(
        config.adapter.parent or "", base, allow_base_mismatch=config.adapter.allow_base_mismatch, on_event=on_event
    )
    context.models.check(row, task, allow_base_mismatch=config.adapter.allow_base_mismatch)
    return _version(context, row)


def _version(context: Context, row: AdapterRow) -> Parent:
    from codi_hub.adapters.format import RECORD, WEIGHTS, read_record
    from codi_hub.training.job import Parent

    files = context.catalog.registry.adapters
    return Parent(row.ref, files.file(row, WEIGHTS), read_record(files.file(row, RECORD)))
