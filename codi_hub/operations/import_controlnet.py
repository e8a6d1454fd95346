"""Import of another tool's ControlNet: it becomes a version of a task, of kind control and method conditional."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.config.base import BaseOptions
from codi_hub.config.options import ImportOptions
from codi_hub.errors import Mismatch, NotFound
from codi_hub.operations.context import Context
from codi_hub.reports import ImportResult

if TYPE_CHECKING:
    from torch import Tensor

    from codi_hub.backbones.backbone import Backbone
    from codi_hub.interop.controlnet import Foreign
    from codi_hub.record import AdapterRecord

KIND, METHOD = "control", "conditional"
TEMPLATE = "pairs"  # of the tasks that are registered on the way


def import_controlnet(context: Context, path: Path, options: ImportOptions) -> ImportResult:
    """Register a ControlNet that another tool trained; see `Hub.import_controlnet`."""
    from codi_hub.backbones import locate
    from codi_hub.backbones.fingerprint import check_unchanged
    from codi_hub.interop import controlnet
    from codi_hub.partial import clean, temporary
    from codi_hub.registry.references import check_tag, check_task

    catalog, registry = context.catalog, context.catalog.registry
    check_task(options.task)
    if options.name is not None:
        check_tag(options.name)
    base_row = registry.bases.get(options.base or context.base)
    channels, new_task = _condition_channels(context, options.task)
    registry.database.check_writable()
    source = controlnet.read(path.expanduser())
    base = locate(BaseOptions.of(base_row)).load_as_stored()
    check_unchanged(base_row, base.fingerprint)
    network, tensors = controlnet.fitted(source, base, bgr=options.bgr)
    _check_condition(network.get("conditioning_channels", 3), channels, options.task)
    record = _record(options.task, base, base_row.name, source, {"condition_channels": channels, "network": network})
    clean(registry.home)
    with temporary(registry.home, Path.mkdir) as folder:
        _write(folder, record, tensors)
        if new_task:
            catalog.add_task(options.task, TEMPLATE)
        try:
            row, _ = registry.adapters.add(
                folder,
                task=options.task,
                base=base_row.name,
                kind=KIND,
                steps=record.steps,
                parameters=sum(value.numel() for value in tensors.values()),
                metrics={},
            )
        except BaseException:
            if new_task:
                catalog.remove_task(options.task)
            raise
    if options.name is not None:
        row = registry.adapters.tag(row.ref, options.name, base_row.name)
    return ImportResult(
        task=options.task,
        adapter=row.ref,
        base=row.base,
        kind=row.kind,
        method=METHOD,
        format=source.format,
        file=source.file,
        sha256=source.sha256,
        tags=tuple(row.tags),
        latest=registry.adapters.resolve(options.task, base=base_row.name).ref,
        registered_task=new_task,
    )


def _condition_channels(context: Context, task: str) -> tuple[int, bool]:
    """Return the channels of a task's conditions, and whether the task has to be registered first."""
    from codi_hub import tasks

    try:
        return context.catalog.load_task(task).condition_channels, False
    except NotFound:
        return tasks.load(TEMPLATE).condition_channels, True


def _check_condition(stem: int, task_channels: int, task: str) -> None:
    """Raise Mismatch where a stem takes neither the task's conditions nor, of one channel, these repeated."""
    if task_channels not in (1, stem):
        raise Mismatch(
            f"task {task} makes conditions of {task_channels} channels, and this ControlNet takes {stem}: choose a "
            "task whose condition is an image, or a new name, which is registered like pairs"
        )


def _record(task: str, base: Backbone, base_name: str, source: Foreign, config: dict[str, Any]) -> AdapterRecord:
    """Return the record of an imported ControlNet; its `training` is what another tool did, which is not known."""
    from codi_hub.adapters import KINDS
    from codi_hub.losses import METHODS
    from codi_hub.record import AdapterRecord, BaseRecord, OriginRecord, TrainingRecord
    from codi_hub.validation import validated

    settings = validated(KINDS.load(KIND).Config, config, "adapter")
    mark = base.fingerprint
    return AdapterRecord(
        task=task,
        kind=KIND,
        base=BaseRecord(name=base_name, family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,  # type: ignore[arg-type]
        steps=METHODS.load(METHOD).steps,
        guidance=base.guidance,
        config=settings.model_dump(mode="json"),
        method=METHOD,
        lineage=[TrainingRecord(method=METHOD, start=f"imported from {source.file}"[:400], task=task, kind=KIND)],
        origin=OriginRecord(file=source.file[:400], sha256=source.sha256, format=source.format),
    )


def _write(folder: Path, record: AdapterRecord, tensors: dict[str, Tensor]) -> None:
    """Write the adapter's files."""
    from codi_hub.adapters import format
    from codi_hub.training.model_card import write_card

    named = {f"encoder.{name}": value.contiguous() for name, value in tensors.items()}
    card = write_card(record, sum(value.numel() for value in tensors.values()))
    format.write_tensors(folder, named, record, card)
