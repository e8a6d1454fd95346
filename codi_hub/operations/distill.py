"""Training of an adapter, and its registration as a new version."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from codi_hub.config.options import DistillOptions
from codi_hub.errors import UsageError
from codi_hub.events import OnEvent, ignore
from codi_hub.operations.context import Context
from codi_hub.reports import DistillResult
from codi_hub.training.distributed import by_main, together

if TYPE_CHECKING:
    from codi_hub.tasks import Task
    from codi_hub.training.run import Job, Made


def distill(context: Context, name: str, options: DistillOptions, on_event: OnEvent) -> DistillResult:
    """Train an adapter for a task and register it; see `Hub.distill`."""
    with together(options.device) as main:
        return _distill(context, name, options, on_event if main else ignore)


def _distill(context: Context, name: str, options: DistillOptions, on_event: OnEvent) -> DistillResult:
    from codi_hub.training.run import Job, distil

    entry = context.catalog.task(name)
    task = context.catalog.load_task(name, options.options)
    task_options = {**entry["options"], **options.options}
    base = context.catalog.registry.bases.get(options.base or context.base)
    folder = by_main(lambda: _run_folder(context.catalog.registry.home, name, options))
    parent = _parent(context, options.parent, task, options, base.name) if options.parent else None
    job = Job(name, task.name, task_options, base.name, base.source, options, folder, parent)
    result = distil(job, on_event)
    return by_main(lambda: _register(context, job, result))


def _register(context: Context, job: Job, result: Made) -> DistillResult:
    adapters = context.catalog.registry.adapters
    row, _ = adapters.add(
        result.folder,
        task=job.task_name,
        base=job.base_name,
        kind=result.record.kind,
        steps=result.record.steps,
        parameters=result.parameters,
        metrics=result.record.metrics,
        score=result.score,
        parent=job.parent[0] if job.parent else None,
    )
    return DistillResult(
        task=job.task_name,
        adapter=row.ref,
        base=job.base_name,
        kind=row.kind,
        steps=result.steps,
        seconds=result.seconds,
        metrics=result.record.metrics,
        score=result.score,
        latest=adapters.resolve(job.task_name, base=job.base_name).ref,
        run_dir=job.folder,
    )


def _run_folder(home: Path, name: str, options: DistillOptions) -> Path:
    """Return the run folder: the one that is set, the latest of the task if it is resumed, or a new one.

    Raises:
        UsageError: nothing to resume, or a new run in the folder of another.
    """
    folder = options.resume if isinstance(options.resume, Path) else options.run_dir
    if folder is None and not options.resume:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return home / "distill" / f"{name}-{stamp}-{secrets.token_hex(3)}"
    if folder is None:
        earlier = sorted((home / "distill").glob(f"{name}-*-*/run.json"))
        earlier = [path for path in earlier if path.parent.name.rsplit("-", 3)[0] == name]
        if not earlier:
            raise UsageError(f"resume: there is no earlier training run of {name!r} in {home}")
        folder = earlier[-1].parent
    if not options.resume and (folder / "run.json").exists():
        raise UsageError(f"run_dir {folder}: it has a training run already; resume it, or choose another folder")
    return folder.absolute()


def _parent(context: Context, ref: str, task: Task, options: DistillOptions, base: str) -> tuple[str, Path, Path]:
    """Return the reference, weights and record of the adapter that training starts from."""
    row = context.resolve(ref, base)
    context.models.check(row, task, allow_base_mismatch=options.allow_base_mismatch)
    files = context.catalog.registry.adapters
    return row.ref, files.file(row, "adapter.safetensors"), files.file(row, "adapter.json")
