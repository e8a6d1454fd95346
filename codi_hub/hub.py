"""The Hub: the front door. What exists comes from the catalogue; what computes is loaded when it is first asked for."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.config.options import DistillOptions, EvalOptions
from codi_hub.errors import UsageError
from codi_hub.reports import DistillResult, EvalReport
from codi_hub.runs import OnEvent, Runs, check_steps, silent
from codi_hub.training.distributed import by_main, together

if TYPE_CHECKING:
    from codi_hub.backbones.unet import FrozenBase
    from codi_hub.evaluation.measured import Contestant
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Task
    from codi_hub.training.run import Job, Made


class Hub(Runs):
    """Runs, distils and measures adapters."""

    # ---- distil

    def distill(self, name: str, options: DistillOptions, on_event: OnEvent = silent) -> DistillResult:
        """Distils an adapter for a task and registers it as a new version.

        Raises:
            CodiError: options or data that cannot be used; nothing is registered then.
        """
        with together(options.device) as main:
            return self._distilled(name, options, on_event if main else silent)

    def _distilled(self, name: str, options: DistillOptions, on_event: OnEvent) -> DistillResult:
        from codi_hub.training.run import Job, distil

        entry = self.task(name)
        task = self.load_task(name, options.options)
        task_options = {**entry["options"], **options.options}
        base = self.registry.base(options.base or self._base)
        folder = by_main(lambda: self._run_folder(name, options))
        parent = self._parent(options.parent, task, options, base.name) if options.parent else None
        job = Job(name, task.name, task_options, base.name, base.source, options, folder, parent)
        made = distil(job, on_event)
        return by_main(lambda: self._registered(job, made))

    def _registered(self, job: Job, made: Made) -> DistillResult:
        row, _ = self.registry.add_adapter(
            made.folder,
            task=job.task_name,
            base=job.base_name,
            kind=made.record.kind,
            steps=made.record.steps,
            parameters=made.parameters,
            metrics=made.record.metrics,
            score=made.score,
            parent=job.parent[0] if job.parent else None,
        )
        return DistillResult(
            task=job.task_name,
            adapter=row.ref,
            base=job.base_name,
            kind=row.kind,
            steps=made.steps,
            seconds=made.seconds,
            metrics=made.record.metrics,
            score=made.score,
            latest=self.registry.resolve(job.task_name, base=job.base_name).ref,
            run_dir=job.folder,
        )

    def _run_folder(self, name: str, options: DistillOptions) -> Path:
        """The folder of checkpoints: the one given, the task's latest with --resume, or a new one.

        Raises:
            UsageError: nothing to resume, or a new run where one lies already.
        """
        given = options.resume if isinstance(options.resume, Path) else options.run_dir
        if given is None and not options.resume:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            return self.registry.home / "distill" / f"{name}-{stamp}-{secrets.token_hex(3)}"
        if given is None:
            begun = sorted((self.registry.home / "distill").glob(f"{name}-*-*/run.json"))
            begun = [path for path in begun if path.parent.name.rsplit("-", 3)[0] == name]
            if not begun:
                raise UsageError(f"--resume: no distillation of {name!r} has been begun in {self.registry.home}")
            given = begun[-1].parent
        if not options.resume and (given / "run.json").exists():
            raise UsageError(f"--run-dir {given}: a run lies there already; add --resume to go on with it")
        return given.absolute()

    def _parent(self, ref: str, task: Task, options: DistillOptions, base: str) -> tuple[str, Path, Path]:
        row = self.registry.resolve(ref, base=base)
        self._check(row, task, options.allow_base_mismatch)
        return row.ref, self.registry.file(row, "adapter.safetensors"), self.registry.file(row, "adapter.json")

    # ---- evaluate

    def evaluate(self, ref: str, options: EvalOptions | None = None, on_event: OnEvent = silent) -> EvalReport:
        """Measures an adapter at several numbers of steps, on pictures it was not trained on, beside others.

        Raises:
            CodiError: no adapter, data or feature network that cannot be used, or nothing to hold it against.
        """
        from codi_hub.evaluation.run import evaluate_task

        options = options or EvalOptions()
        row = self.registry.resolve(ref, base=options.base or self._base)
        task = self.load_task(row.task, options.set)
        began = time.perf_counter()

        def progress(done: int, total: int) -> None:
            on_event({"kind": "message", "text": f"measured {done} of {total}"})

        base, contestants = self._contestants(row, task, options)
        made = evaluate_task(task, base, contestants, options, progress)
        return EvalReport(
            task=row.task,
            adapter=row.ref,
            base=row.base,
            images=made.images,
            columns=made.table.columns,
            rows=made.table.rows,
            seconds=time.perf_counter() - began,
            out=options.out,
            notes=list(made.notes),
        )

    def _contestants(self, row: AdapterRow, task: Task, options: EvalOptions) -> tuple[FrozenBase, list[Contestant]]:
        """The adapter and what it is held against, loaded; what cannot be is refused before anything is."""
        from codi_hub.evaluation.against import entrants
        from codi_hub.evaluation.measured import Contestant
        from codi_hub.evaluation.prompt_only import PromptOnly

        found = entrants(
            options.against,
            row,
            task.baselines,
            options.steps,
            resolve=lambda name: self.registry.resolve(name, base=row.base),
            available=lambda: self.registry.adapters(row.task, row.base),
        )
        for steps in dict.fromkeys(count for one in found for count in one.steps):
            check_steps(steps, row)
        for one in found:
            if one.row:
                self._check(one.row, task)
        base, _ = self._loaded_base(row.base, options.device, options.dtype)
        contestants = []
        for one in found:
            adapter: Any = self._resident(one.row, options.device, options.dtype)[1] if one.row else PromptOnly()
            generate = self.generator(base, adapter, sampler=options.sampler, temperature=options.temperature)
            contestants.append(Contestant(one.name, generate, one.steps))
        return base, contestants
