"""The Hub: the front door. What exists comes from the catalogue; what computes is loaded when it is first asked for."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.catalog import Catalog
from codi_hub.errors import Mismatch, UsageError
from codi_hub.options import DistillOptions, DistillResult, EvalOptions, EvalReport, RunOptions, RunReport

if TYPE_CHECKING:
    import numpy as np

    from codi_hub.adapters import ControlAdapter
    from codi_hub.base import Fingerprint, FrozenBase
    from codi_hub.batch import Item
    from codi_hub.evaluate.measured import Contestant
    from codi_hub.registry import AdapterRow, BaseRow
    from codi_hub.tasks import Task

PIXELS_TOGETHER = 1 << 20  # output pixels computed in one batch, unless --batch says otherwise
DEFAULT_BATCH = 8

OnEvent = Callable[[dict[str, Any]], object]
Generate = Callable[..., "list[np.ndarray]"]


def _silent(event: dict[str, Any]) -> None:
    """Takes an event and does nothing with it."""


class Hub(Catalog):
    """Runs, distils and measures adapters: one loaded base per (name, device, dtype), adapters kept resident."""

    def __init__(self, home: Path | None = None, base: str | None = None) -> None:
        super().__init__(home, base)
        self._loaded: dict[tuple[str, str, str], Any] = {}

    # ---- use

    def _loaded_base(self, name: str, device: str, dtype: str) -> Any:
        """(base, its resident adapters), loaded once.

        Raises:
            NotFound, InvalidInput, Mismatch: the base is not there or is not what was registered.
        """
        from codi_hub.adapters.swap import Resident
        from codi_hub.base import FrozenBase
        from codi_hub.engine import choose_device, choose_dtype

        row = self.registry.base(name)
        where = choose_device(device)
        precision = choose_dtype(dtype, where)
        key = (row.name, str(where), str(precision))
        if key not in self._loaded:
            base = FrozenBase.load(row.source, device=where, dtype=precision)
            _check_unchanged(row, base.fingerprint)
            self._loaded[key] = base, Resident()
        return self._loaded[key]

    def use(
        self, ref: str, *, device: str = "auto", dtype: str = "auto", allow_base_mismatch: bool = False
    ) -> tuple[FrozenBase, ControlAdapter, AdapterRow]:
        """An adapter on its loaded base; one that is resident already costs a dictionary lookup.

        Raises:
            NotFound, InvalidInput, Mismatch: see `Registry.resolve`, `Registry.file` and `adapters.format.load`.
        """
        row = self.registry.resolve(ref, base=self._base)
        return self._resident(row, device, dtype, allow_base_mismatch)

    def _resident(
        self, row: AdapterRow, device: str, dtype: str, allow_base_mismatch: bool = False
    ) -> tuple[FrozenBase, ControlAdapter, AdapterRow]:
        from codi_hub.adapters import format

        base, resident = self._loaded_base(row.base, device, dtype)

        def load() -> ControlAdapter:
            record = format.read_record(self.registry.file(row, format.RECORD))
            weights = self.registry.file(row, format.WEIGHTS)
            return format.load(weights, record, base, allow_base_mismatch=allow_base_mismatch)

        return base, resident.get(row.sha256, load), row

    def generator(
        self, base: FrozenBase, adapter: ControlAdapter, *, sampler: str = "ddim", temperature: float = 1.0
    ) -> Generate:
        """(conditions, prompts, seeds, steps) -> pictures, split so that one batch stays within `PIXELS_TOGETHER`."""
        from codi_hub.engine import Engine

        engine = Engine(base)

        def generate(conditions: Any, prompts: Any, seeds: Any, steps: int) -> list[np.ndarray]:
            height, width = conditions[0].shape[:2]
            together = max(1, PIXELS_TOGETHER // (height * width))
            made: list[np.ndarray] = []
            for start in range(0, len(conditions), together):
                part = slice(start, start + together)
                made += engine.generate(
                    adapter,
                    conditions[part],
                    prompts[part],
                    seeds[part],
                    steps=steps,
                    sampler=sampler,
                    temperature=temperature,
                )
            return made

        return generate

    # ---- run

    def run(
        self, ref: str, inputs: Sequence[Path], options: RunOptions | None = None, on_event: OnEvent = _silent
    ) -> RunReport:
        """Runs an adapter over files and folders (DESIGN, "Two ways through it").

        Raises:
            CodiError: nothing could begin. What goes wrong with one file is a row of the report.
            Interrupted: after Ctrl-C, with the report so far.
        """
        from codi_hub.batch import Interrupted, plan, run_folder

        options = options or RunOptions()
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
        self._check_steps(steps, row)
        ready: list[Generate] = []
        made_with = _what_matters(row, task, options, steps)
        finished = self.registry.finished_outputs(row.ref, made_with)
        run_id = self.registry.start_run(row.task, row.ref, made_with)
        count = len(items)
        seen = iter(range(1, count + 1))
        status = "failed"
        try:
            report = run_folder(
                items,
                task,
                lambda conditions, prompts, seeds: ready[0](conditions, prompts, seeds, steps),
                name=row.task,
                adapter=row.ref,
                steps=steps,
                batch=options.batch or DEFAULT_BATCH,
                overwrite=options.overwrite,
                resume=options.resume,
                begin=lambda: ready.append(self._ready(row, task, options)),
                done=lambda item, digest: _is_done(item, digest, finished),
                record=lambda made: self.registry.add_item(run_id, **made | {"output": _recorded(made["output"])}),
                on_item=lambda made: on_event({"kind": "item", **made, "done": next(seen), "total": count}),
            )
            status = "failed" if report.failed else "ok"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            self.registry.finish_run(run_id, status)
        return report

    def _ready(self, row: AdapterRow, task: Task, options: RunOptions) -> Generate:
        """The generator of a run, its networks loaded; an adapter that does not fit is refused before they are."""
        self._check(row, task, options.allow_base_mismatch)
        base, adapter, _ = self._resident(row, options.device, options.dtype, options.allow_base_mismatch)
        return self.generator(base, adapter, sampler=options.sampler, temperature=options.temperature)

    def _check(self, row: AdapterRow, task: Task, allow_base_mismatch: bool = False) -> None:
        """Raises Mismatch or InvalidInput for an adapter that its base or the task cannot use."""
        from codi_hub.adapters import format
        from codi_hub.base import Fingerprint

        base = self.registry.base(row.base)
        record = format.read_record(self.registry.file(row, format.RECORD))
        format.check_condition(record, row.ref, task.name, task.condition_channels)
        mark = Fingerprint(base.family, base.sketch or {})
        format.check(record, self.registry.file(row, format.WEIGHTS), mark, allow_base_mismatch=allow_base_mismatch)

    def _check_steps(self, steps: int, row: AdapterRow) -> None:
        if not 1 <= steps <= 1000:
            raise UsageError(f"--steps {steps}: between 1 and 1000 ({row.ref} is made for {row.steps})")

    # ---- distil

    def distill(self, name: str, options: DistillOptions, on_event: OnEvent = _silent) -> DistillResult:
        """Distils an adapter for a task and registers it as a new version.

        Raises:
            CodiError: options or data that cannot be used; nothing is registered then.
        """
        from codi_hub.distill.run import Job, distil

        entry = self.task(name)
        task = self.load_task(name, options.options)
        task_options = {**entry["options"], **options.options}
        base = self.registry.base(options.base or self._base)
        folder = self._run_folder(name, options)
        parent = self._parent(options.parent, task, options, base.name) if options.parent else None
        job = Job(name, task.name, task_options, base.name, base.source, options, folder, parent)
        made = distil(job, on_event)
        row, _ = self.registry.add_adapter(
            made.folder,
            task=name,
            base=base.name,
            kind=made.record.kind,
            steps=made.record.steps,
            parameters=made.parameters,
            metrics=made.record.metrics,
            score=made.score,
            parent=parent[0] if parent else None,
        )
        return DistillResult(
            task=name,
            adapter=row.ref,
            base=base.name,
            kind=row.kind,
            steps=made.steps,
            seconds=made.seconds,
            metrics=made.record.metrics,
            score=made.score,
            latest=self.registry.resolve(name, base=base.name).ref,
            run_dir=folder,
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

    def evaluate(self, ref: str, options: EvalOptions | None = None, on_event: OnEvent = _silent) -> EvalReport:
        """Measures an adapter at several numbers of steps, on pictures it was not trained on, beside others.

        Raises:
            CodiError: no adapter, data or feature network that cannot be used, or nothing to hold it against.
        """
        from codi_hub.evaluate.run import evaluate_task

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
        from codi_hub.evaluate.against import PromptOnly, entrants
        from codi_hub.evaluate.measured import Contestant

        found = entrants(
            options.against,
            row,
            task.name,
            options.steps,
            resolve=lambda name: self.registry.resolve(name, base=row.base),
            there=lambda: self.registry.adapters(row.task, row.base),
        )
        for steps in dict.fromkeys(count for one in found for count in one.steps):
            self._check_steps(steps, row)
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


def _check_unchanged(row: BaseRow, mark: Fingerprint) -> None:
    """Raises Mismatch where a base is no longer what was registered."""
    try:
        mark.check(row.family, row.sketch)
    except Mismatch as error:
        changed = f"family {mark.family}, then {row.family}" if mark.family != row.family else "its weights differ"
        raise Mismatch(
            f"base {row.name} is not what was registered, at {row.source} ({changed}): "
            "restore it, or register it under another name with `codi base add NAME FOLDER`"
        ) from error


def _recorded(output: Any) -> str:
    """An output's path as the run log knows it, whatever the working directory was."""
    from codi_hub.batch.files import text

    return os.path.abspath(text(output))


def _is_done(item: Item, digest: str, finished: Mapping[str, tuple[str | None, str | None]]) -> bool:
    """Whether a finished output was made of this very input with this very prompt."""
    return item.error is None and finished.get(_recorded(item.output)) == (digest, item.prompt)


def _what_matters(row: AdapterRow, task: Task, options: RunOptions, steps: int) -> dict[str, Any]:
    """What decides how every output looks, beside its input and its prompt: a resumed run compares it."""
    names = ("seed", "sampler", "temperature", "dtype", "ext", "suffix")
    chosen = {name: getattr(options, name) for name in names}
    settings = task.options.model_dump(mode="json", exclude={"data"})  # that is for training
    return chosen | {"adapter_sha256": row.sha256, "steps": steps, "task_options": settings}
