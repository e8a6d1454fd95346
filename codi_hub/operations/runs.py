"""Runs over folders and over files of jobs: planned as a whole, then computed, recorded and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from codi_hub.config.options import RunOptions
from codi_hub.diffusion import SAMPLERS
from codi_hub.errors import CodiError, UsageError, prefixed
from codi_hub.events import Event, ItemDone, Message, OnEvent
from codi_hub.folders.conditions import FurtherCondition, with_conditions, with_objects
from codi_hub.folders.interrupts import Interrupted, Stopped
from codi_hub.folders.jobs import Job, read_jobs
from codi_hub.folders.making import RunSettings
from codi_hub.folders.plan import Item, plan, with_own_outputs
from codi_hub.folders.rows import RegistryLog
from codi_hub.folders.runner import FolderRun, Workers
from codi_hub.folders.shards import of_shard
from codi_hub.images.sidecars import clean_prompt
from codi_hub.inference.tiling import Tiling
from codi_hub.objects import listed_once
from codi_hub.operations.context import (
    Context,
    check_guidance,
    check_size,
    check_steps,
    check_strength,
    check_together,
    check_variants,
)
from codi_hub.operations.workers import WorkerSetup
from codi_hub.paths import absolute_path, path_text
from codi_hub.reports import JobsReport, RunReport
from codi_hub.urls import place

if TYPE_CHECKING:
    from codi_hub.inference.engine import AdapterGenerator
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Task

Report = TypeVar("Report", RunReport, JobsReport)


@dataclass(frozen=True)
class PlannedRun:
    """Items that one adapter processes with one set of options; `left_out` are other files with the reason."""

    row: AdapterRow
    task: Task
    items: list[Item]
    steps: int
    options: RunOptions
    left_out: list[tuple[Path, str]]
    also: Sequence[FurtherCondition] = ()

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Return what decides the outputs beside input, prompt and seed: a resumed run compares it.

        Tiles, batch size and device are left out: they change how outputs are computed, not what they are.
        """
        chosen = {name: getattr(self.options, name) for name in ("sampler", "temperature", "dtype")}
        if self.options.strength != 1:  # absent from the recipes of runs before there was a choice, as is guidance
            chosen["strength"] = self.options.strength
        if self.also:
            chosen["also"] = {f"{place} {one.row.ref}": one.recipe for place, one in enumerate(self.also, 2)}
        if self.options.guidance_scale != 1:
            chosen |= {name: getattr(self.options, name) for name in ("guidance_scale", "negative_prompt")}
        if self.options.bits != 8:
            chosen["bits"] = self.options.bits
        if self.options.size:
            chosen["size"] = list(self.options.size)
        return chosen | {
            "adapter_sha256": self.row.sha256,
            "steps": self.steps,
            "task_options": self.task.recorded_options(),
        }

    @property
    def plan_key(self) -> str:
        """Return a key that is equal for all shards of the run: of the adapter, the recipe, the output folders.

        The files themselves are not part of it, as a machine may begin its shard when more of them are there.
        """
        options = {name: getattr(self.options, name) for name in ("seed", "prompt", "suffix", "ext", "variants")}
        outs = sorted({absolute_path(item.out or item.output) for item in self.items})
        text = json.dumps([self.row.ref, self.row.base, self.recipe, options, outs], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Return a key that is equal for runs that can be merged; its first part is the base."""
        return self.row.base, self.row.id, self.options.tile, json.dumps(self.recipe, sort_keys=True)


def run(context: Context, ref: str, inputs: Sequence[Path | str], options: RunOptions, on_event: OnEvent) -> RunReport:
    """Run an adapter over files and folders; see `Hub.run`."""
    with listed_once():
        planned = _plan(context, ref, inputs, options, on_event)
    if options.shard is not None:
        planned = replace(planned, items=of_shard(planned.items, options.shard))
    with _report_page(options, planned.items, planned.recipe, on_event) as write:
        return write(_run(context, planned, on_event))


def run_jobs(context: Context, file: Path, options: RunOptions, on_event: OnEvent) -> JobsReport:
    """Run a file of jobs, those of one adapter together; see `Hub.run_jobs`."""
    merged: dict[tuple[str, int, str, str], PlannedRun] = {}
    for job in read_jobs(file, options):
        with prefixed(job.where), listed_once():
            planned = _with_also(context, _plan(context, job.ref, job.inputs, job.options, on_event), job)
            if (known := merged.setdefault(planned.key, planned)) is not planned:
                known.items.extend(planned.items)
                known.left_out.extend(planned.left_out)
            else:
                _check(context, planned)
    runs = [run for _, run in sorted(merged.items(), key=lambda entry: entry[0][0])]
    items = with_own_outputs([item for run in runs for item in run.items], on_event)
    numbered = iter(items)
    for run in runs:
        own = list(islice(numbered, len(run.items)))
        run.items[:] = own if options.shard is None else of_shard(own, options.shard)
    items = [item for run in runs for item in run.items]
    with _report_page(options, items, {}, on_event) as write:
        return write(_run_all(context, file, runs, _counting(on_event, len(items))))


def _run_all(context: Context, file: Path, runs: Sequence[PlannedRun], on_event: OnEvent) -> JobsReport:
    reports: list[RunReport] = []
    for run in runs:
        context.models.release_others(run.row.base)
        try:
            reports.append(_run(context, run, on_event))
        except Interrupted as stopped:
            total = sum(len(run.items) for run in runs)
            raise Interrupted(JobsReport.of(file, [*reports, stopped.report]), total) from None
        except Stopped as stopped:
            raise Stopped(f"{run.row.ref}: {stopped}", JobsReport.of(file, [*reports, stopped.report])) from stopped
        except CodiError as error:
            raise Stopped(f"{run.row.ref}: {error}", JobsReport.of(file, reports)) from error
    return JobsReport.of(file, reports)


def _plan(
    context: Context, ref: str, inputs: Sequence[Path | str], options: RunOptions, on_event: OnEvent
) -> PlannedRun:
    Tiling.parse(options.tile)  # refused before any input is looked at
    SAMPLERS.check(options.sampler, "sampler")
    row = context.resolve(ref, options.base, allow_base_mismatch=options.allow_base_mismatch, on_event=on_event)
    task = context.catalog.load_task(row.task, options.set)
    check_size(options.size, task)
    origins = context.catalog.registry.runs.origins
    places, options = [place(path) for path in inputs], _with_place(options)
    left_out: list[tuple[Path, str]] = []

    def on_left_out(path: Path, why: str) -> None:
        left_out.append((path, why))

    items = plan(places, task, options, task_name=row.task, origins=origins, on_event=on_event, on_left_out=on_left_out)
    steps = options.steps or row.steps
    check_steps(steps, row)
    check_strength(options.strength, row)
    negative = clean_prompt(options.negative_prompt or "", "negative_prompt")
    check_guidance(options.guidance_scale, negative, row)
    check_variants(options.variants, options.sampler, options.temperature, row)
    items = with_objects(items, [task])
    return PlannedRun(row, task, items, steps, options.replace(negative_prompt=negative), left_out)


def _with_place(options: RunOptions) -> RunOptions:
    if options.out is None:
        return options
    with prefixed("out"):
        return options.replace(out=place(options.out))


def _with_also(context: Context, planned: PlannedRun, job: Job) -> PlannedRun:
    """Return a planned run with the further conditions of its job."""
    if not job.also:
        return planned
    options, further = job.options, []
    for one in job.also:
        row = context.resolve(one.ref, options.base, allow_base_mismatch=options.allow_base_mismatch)
        check_strength(one.strength, row)
        check_guidance(options.guidance_scale, planned.options.negative_prompt, row)
        task = context.catalog.load_task(row.task, one.set)
        check_size(options.size, task)
        further.append(FurtherCondition(row, task, one.strength))
    check_together(context, [planned.row, *(one.row for one in further)])
    tasks = [one.task for one in further]
    items = with_objects(with_conditions(planned.items, job.also, tasks), [planned.task, *tasks])
    return replace(planned, items=items, also=further)


def _run(context: Context, planned: PlannedRun, on_event: OnEvent) -> RunReport:
    settings = RunSettings(
        task=planned.row.task,
        adapter=planned.row.ref,
        steps=planned.steps,
        options=planned.options,
        left_out=[{"path": path_text(path), "why": why} for path, why in dict.fromkeys(planned.left_out)],
        also=planned.also,
    )
    options = planned.options
    part = (None, None) if options.shard is None else (planned.plan_key, str(options.shard))
    log = RegistryLog(context.catalog.registry.runs, planned.row, planned.recipe, planned.items, part)
    load = partial(load_generator, context, planned, on_event, options.device)
    workers = _workers(context, planned, settings, log, on_event) if options.devices or options.ray else None
    return FolderRun(planned.items, planned.task, load, settings, log=log, on_event=on_event, workers=workers).run()


def _workers(
    context: Context, planned: PlannedRun, settings: RunSettings, log: RegistryLog, on_event: OnEvent
) -> Workers:
    """Return the processes of a run. Raises CodiError for a device that is missing, or an adapter that does not fit."""
    from codi_hub.folders.devices import DeviceWorkers
    from codi_hub.inference.devices import choose_device

    options = planned.options
    for item in planned.items[:1]:
        if any(name.startswith("memory://") for name in (item.input_file, item.output_file)):
            raise UsageError("memory:// is the memory of one process: leave out devices and ray, or name another store")
    for device in () if options.ray else dict.fromkeys(options.devices):
        choose_device(device)
    if not options.dry_run:
        _check(context, planned)
    small = replace(planned, items=[], left_out=[])
    setup = WorkerSetup(context.catalog.registry.home, small, replace(settings, left_out=[]), log)
    if options.ray:
        from codi_hub.cluster.ray import RayWorkers

        return RayWorkers(options.ray, options.devices, setup, options.batch, on_event)
    return DeviceWorkers(options.devices, setup, options.batch, on_event)


def _check(context: Context, planned: PlannedRun) -> None:
    mismatch = planned.options.allow_base_mismatch
    for row, task in [(planned.row, planned.task), *((one.row, one.task) for one in planned.also)]:
        context.models.check(row, task, allow_base_mismatch=mismatch)


def load_generator(context: Context, planned: PlannedRun, on_event: OnEvent, device: str) -> AdapterGenerator:
    """Load the networks of a run; an adapter that does not fit is refused before."""
    from codi_hub.inference.engine import AdapterGenerator, Engine, Sampling
    from codi_hub.inference.models import Placement

    options = planned.options
    _check(context, planned)
    names = ("dtype", "adapter_memory", "allow_base_mismatch")
    placement = Placement(device=device, **{name: getattr(options, name) for name in names})
    loaded = context.models.load(planned.row, placement)
    also = tuple((context.models.load(one.row, placement).adapter, one.strength) for one in planned.also)
    engine = Engine(loaded.base, compile=options.compile, on_message=lambda text: on_event(Message(text)))
    sampling = Sampling(planned.steps, options.sampler, options.temperature, options.guidance_scale)
    return AdapterGenerator(engine, loaded.adapter, sampling, options.strength, options.negative_prompt, also)


def _counting(on_event: OnEvent, total: int) -> OnEvent:
    """Return an `OnEvent` that numbers the items of several runs in one sequence."""
    numbers = count(1)

    def renumbered(event: Event) -> object:
        return on_event(ItemDone(event.row, next(numbers), total) if isinstance(event, ItemDone) else event)

    return renumbered


@contextmanager
def _report_page(
    options: RunOptions, items: Sequence[Item], settings: Mapping[str, Any], on_event: OnEvent
) -> Iterator[Callable[[Report], Report]]:
    """Check the path of the report page; yield a function that writes it. An interrupted run has its page too."""
    if options.report is None:
        yield lambda report: report
        return
    from codi_hub.folders.report import ReportPage

    if options.dry_run:
        raise UsageError("dry_run computes nothing that a report could show: leave one of them out")
    page = ReportPage(options.report, items, settings)

    def write(report: Report) -> Report:
        try:
            page.write(report)
        except CodiError as error:
            raise Stopped(str(error), report) from error
        on_event(Message(f"report: {page}"))
        return report

    try:
        yield write
    except Interrupted as stopped:
        write(stopped.report)
        raise
