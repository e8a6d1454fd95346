"""Folders and lists of jobs through adapters: planned whole, then made, resumed and recorded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from codi_hub.config.options import RunOptions
from codi_hub.errors import CodiError, UsageError
from codi_hub.networks import Generate, Networks
from codi_hub.reports import JobsReport, RunReport

if TYPE_CHECKING:
    from codi_hub.folders import Item
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Task

DEFAULT_BATCH = 8

OnEvent = Callable[[dict[str, Any]], object]
Report = TypeVar("Report", RunReport, JobsReport)


def silent(event: dict[str, Any]) -> None:
    """Takes an event and does nothing with it."""


@dataclass(frozen=True)
class Work:
    """Items that one adapter makes in one way."""

    row: AdapterRow
    task: Task
    items: list[Item]
    steps: int
    options: RunOptions

    @property
    def made_with(self) -> dict[str, Any]:
        """What decides how every output looks, beside its input, prompt and seed: a resumed run compares it.

        Not what only says how it is computed: tiles, batches, the device.
        """
        names = ("sampler", "temperature", "dtype")
        chosen = {name: getattr(self.options, name) for name in names}
        settings = self.task.recorded_options()
        return chosen | {"adapter_sha256": self.row.sha256, "steps": self.steps, "task_options": settings}

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Equal for works that can be made together; it begins with the base."""
        return self.row.base, self.row.id, self.options.tile, json.dumps(self.made_with, sort_keys=True)


class Runs(Networks):
    """Runs adapters over files."""

    def run(
        self, ref: str, inputs: Sequence[Path], options: RunOptions | None = None, on_event: OnEvent = silent
    ) -> RunReport:
        """Runs an adapter over files and folders (DESIGN, "Two ways through it").

        Raises:
            CodiError: nothing could begin. What goes wrong with one file is a row of the report.
            Interrupted, Stopped: with the report so far.
        """
        options = options or RunOptions()
        work = self._planned(ref, inputs, options)
        with _paged(options, work.items, work.made_with, on_event) as page:
            return page(self._run(work, on_event, _counted(on_event, len(work.items))))

    def run_jobs(self, file: Path, options: RunOptions | None = None, on_event: OnEvent = silent) -> JobsReport:
        """Runs a list of jobs (`codi_hub.folders.jobs`), those of one adapter together, whatever their order.

        Args:
            options: for all jobs; what a line says itself counts for that line.

        Raises:
            CodiError: a line that cannot be run, naming it; nothing was begun then.
            Interrupted, Stopped: with the report so far.
        """
        from codi_hub.folders import check_outputs, read_jobs

        options = options or RunOptions()
        together: dict[tuple[str, int, str, str], Work] = {}
        planned: list[Item] = []
        for job in read_jobs(file, options):
            with _naming(job.where):
                work = self._planned(job.ref, job.inputs, job.options)
                planned += work.items
                if (before := together.setdefault(work.key, work)) is work:
                    self._check(work.row, work.task, options.allow_base_mismatch)
                else:
                    before.items.extend(work.items)
        check_outputs(planned)
        works = [work for _, work in sorted(together.items(), key=lambda entry: entry[0][0])]
        items = [item for work in works for item in work.items]
        with _paged(options, items, {}, on_event) as page:
            return page(self._run_all(file, works, on_event, _counted(on_event, len(items))))

    def _run_all(self, file: Path, works: Sequence[Work], on_event: OnEvent, on_item: OnEvent) -> JobsReport:
        from codi_hub.folders import Interrupted, Stopped

        reports: list[RunReport] = []
        for work in works:
            for key in [key for key in self._loaded if key[0] != work.row.base]:
                del self._loaded[key]  # two may be too many for the memory
            try:
                reports.append(self._run(work, on_event, on_item))
            except Interrupted as stopped:
                planned = sum(len(work.items) for work in works)
                raise Interrupted(JobsReport.of(file, [*reports, stopped.report]), planned) from None
            except CodiError as error:
                raise Stopped(f"{work.row.ref}: {error}", JobsReport.of(file, reports)) from error
        return JobsReport.of(file, reports)

    def _planned(self, ref: str, inputs: Sequence[Path], options: RunOptions) -> Work:
        from codi_hub.folders import Tiling, plan

        Tiling.parse(options.tile)  # what is wrong with it is said before anything is looked for
        row = self.registry.resolve(ref, base=options.base or self._base)
        task = self.load_task(row.task, options.set)
        items = plan(
            list(inputs),
            options.out,
            task,
            suffix=options.suffix,
            ext=options.ext,
            seed=options.seed,
            name=row.task,
            recursive=options.recursive,
            prompt=options.prompt,
        )
        steps = options.steps or row.steps
        check_steps(steps, row)
        return Work(row, task, items, steps, options)

    def _run(self, work: Work, on_event: OnEvent, on_item: OnEvent) -> RunReport:
        from codi_hub.folders import Interrupted, Tiling, run_folder

        row, options = work.row, work.options
        ready: list[Generate] = []

        @cache
        def finished() -> dict[str, tuple[str | None, str | None, int]]:
            outputs = [_recorded(item.output) for item in work.items]
            return self.registry.finished_outputs(row.ref, work.made_with, outputs)

        run_id: Any = None if options.dry_run else self.registry.start_run(row.task, row.ref, work.made_with)
        status = "failed"
        try:
            report = run_folder(
                work.items,
                work.task,
                lambda conditions, prompts, seeds, *windows: ready[0](conditions, prompts, seeds, work.steps, *windows),
                name=row.task,
                adapter=row.ref,
                steps=work.steps,
                batch=options.batch or DEFAULT_BATCH,
                tiling=Tiling.parse(options.tile),
                overwrite=options.overwrite,
                resume=options.resume,
                dry_run=options.dry_run,
                begin=lambda: ready.append(self._ready(work, on_event)),
                done=lambda item, digest: _is_done(item, digest, finished()),
                record=lambda made: self.registry.add_item(run_id, **made | {"output": _recorded(made["output"])}),
                on_item=on_item,
            )
            status = "failed" if report.failed else "ok"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            if run_id is not None:
                with suppress(CodiError):  # the rows are there; the log of the run's end is not worth its report
                    self.registry.finish_run(run_id, status)
        return report

    def _ready(self, work: Work, on_event: OnEvent) -> Generate:
        """The generator of a run, its networks loaded; an adapter that does not fit is refused before they are."""
        options = work.options
        self._check(work.row, work.task, options.allow_base_mismatch)
        base, adapter, _ = self._resident(
            work.row, options.device, options.dtype, options.allow_base_mismatch, options.adapter_memory
        )
        return self.generator(
            base,
            adapter,
            sampler=options.sampler,
            temperature=options.temperature,
            compile=options.compile,
            say=lambda text: on_event({"kind": "message", "text": text}),
        )


def check_steps(steps: int, row: AdapterRow) -> None:
    """Raises UsageError for what no schedule has."""
    if not 1 <= steps <= 1000:
        raise UsageError(f"--steps {steps}: between 1 and 1000 ({row.ref} is made for {row.steps})")


def _counted(on_event: OnEvent, total: int) -> OnEvent:
    """Rows of a report as events that say how many have come."""
    seen = count(1)
    return lambda row: on_event({"kind": "item", **row, "done": next(seen), "total": total})


@contextmanager
def _paged(
    options: RunOptions, items: Sequence[Item], settings: Mapping[str, Any], on_event: OnEvent
) -> Iterator[Callable[[Report], Report]]:
    """Checks --report; gives what writes the page about a report, that of an interrupted run too."""
    if options.report is None:
        yield lambda report: report
        return
    from codi_hub.folders import Interrupted, Stopped
    from codi_hub.folders.report import Page

    if options.dry_run:
        raise UsageError("--dry-run makes nothing that --report could show: leave one of them out")
    page = Page(options.report, items, settings)

    def written(report: Report) -> Report:
        try:
            page.write(report)
        except CodiError as error:
            raise Stopped(str(error), report) from error
        on_event({"kind": "message", "text": f"report: {page}"})
        return report

    try:
        yield written
    except Interrupted as stopped:
        written(stopped.report)
        raise


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Says in every CodiError where it comes from."""
    try:
        yield
    except CodiError as error:
        raise type(error)(f"{where}: {error}") from error


def _recorded(output: Any) -> str:
    """An output's path as the run log knows it, whatever the working directory was."""
    from codi_hub.images.io import text

    return os.path.abspath(text(output))


def _is_done(item: Item, digest: str, finished: Mapping[str, tuple[str | None, str | None, int]]) -> bool:
    """Whether a finished output was made of this very input with this very prompt and seed."""
    return item.error is None and finished.get(_recorded(item.output)) == (digest, item.prompt, item.seed)
