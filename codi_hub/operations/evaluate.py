"""Evaluation of an adapter beside baselines and other adapters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from codi_hub.config.options import EvalOptions
from codi_hub.diffusion import SAMPLERS
from codi_hub.errors import UsageError
from codi_hub.events import OnEvent
from codi_hub.images.sidecars import clean_prompt
from codi_hub.operations.context import Context, check_guidance, check_steps
from codi_hub.paths import display_path, unwritable
from codi_hub.record import DISTILLED_METHODS
from codi_hub.reports import EvalReport

if TYPE_CHECKING:
    from codi_hub.backbones.backbone import Backbone
    from codi_hub.evaluation.measured import Contestant
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Task


def evaluate(context: Context, ref: str, options: EvalOptions, on_event: OnEvent) -> EvalReport:
    """Measure an adapter; see `Hub.evaluate`."""
    from codi_hub.evaluation.run import evaluate_task
    from codi_hub.evaluation.tools import tool

    SAMPLERS.check(options.sampler, "sampler")
    if options.out is not None and (reason := unwritable(options.out)):
        raise UsageError(f"out {display_path(options.out)}: cannot be written ({reason}): choose another folder")
    mismatch = options.allow_base_mismatch
    row = context.resolve(ref, options.base, allow_base_mismatch=mismatch, on_event=on_event)
    task = context.catalog.load_task(row.task, options.set)
    tools = [found for text in options.against if (found := tool(text))]
    if tools and not task.compares_tools:
        raise UsageError(f"against {tools[0].name}: {task.name} is not compared with other tools")
    start = time.perf_counter()
    base, contestants = _contestants(context, row, task, options)
    measured = evaluate_task(task, base, contestants, options, on_event, tools)
    return EvalReport(
        task=row.task,
        adapter=row.ref,
        base=row.base,
        images=measured.images,
        columns=measured.table.columns,
        rows=measured.table.rows,
        seconds=time.perf_counter() - start,
        out=options.out,
        notes=list(measured.notes),
    )


def _contestants(
    context: Context, row: AdapterRow, task: Task, options: EvalOptions
) -> tuple[Backbone, list[Contestant]]:
    """Load the adapter and what it is compared with; everything is checked before anything is loaded."""
    from codi_hub.adapters.base_only import BaseOnly
    from codi_hub.evaluation.against import entrants
    from codi_hub.evaluation.measured import Contestant
    from codi_hub.inference.engine import Sampling, generate_function
    from codi_hub.inference.models import Placement

    entries = entrants(
        [text for text in options.against if "=" not in text],
        row,
        task.baselines,
        options.steps,
        resolve=lambda name: context.resolve(name, row.base, allow_base_mismatch=options.allow_base_mismatch),
        available=lambda: context.catalog.registry.adapters.list(row.task, row.base),
    )
    for steps in dict.fromkeys(count for entry in entries for count in entry.steps):
        check_steps(steps, row)
    for entry in entries:
        if entry.row:
            context.models.check(entry.row, task, allow_base_mismatch=options.allow_base_mismatch)
    negative = clean_prompt(options.negative_prompt or "", "negative_prompt")
    check_guidance(options.guidance_scale, negative, row)
    names = ("device", "dtype", "allow_base_mismatch")
    placement = Placement(**{name: getattr(options, name) for name in names})
    base = context.models.base(row.base, placement)
    contestants = []
    for entry in entries:
        adapter = context.models.load(entry.row, placement).adapter if entry.row else BaseOnly(base)
        distilled = entry.row is not None and entry.row.method in DISTILLED_METHODS  # measured as it is used
        sampling = Sampling(
            sampler=options.sampler,
            temperature=options.temperature,
            guidance_scale=1.0 if distilled else options.guidance_scale,
        )
        generate = generate_function(base, adapter, sampling, negative_prompt=negative)
        contestants.append(Contestant(entry.name, generate, entry.steps))
    return base, contestants
