"""One distillation from options to a folder that can be registered."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from codi_hub import adapters, tasks
from codi_hub.adapters import Adapter, format
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import READS, TAUGHT, DistillOptions
from codi_hub.data.sources import split
from codi_hub.errors import CodiError, UsageError
from codi_hub.evaluation.pairs import held_out_scores, outputs
from codi_hub.images.metrics import psnr
from codi_hub.images.sheets import contact_sheet as sheet
from codi_hub.inference.engine import Engine, choose_device, choose_dtype
from codi_hub.tasks.base import Pair, Task
from codi_hub.training.distributed import by_main, count, main_first
from codi_hub.training.job import Job, settled
from codi_hub.training.latents import PairsSpec, build, open_pairs, pair_at
from codi_hub.training.model_card import write_card
from codi_hub.training.trainer import OnEvent, Trainer

DEFAULT_STEPS = 2000  # of training, where neither steps nor a time are given
SAMPLING_STEPS = (1, 2, 4, 8)
DEFAULT_SAMPLING = 4  # steps at which versions are compared, whatever their method
SHOWN = 4  # pairs on a sample sheet
FREE = {  # options that a resumed run may change; the others make another adapter
    *("time_budget", "train_steps", "device", "precision", "workers", "pairs", "resume", "run_dir"),
    *("sample_every", "checkpoint_every", "batch", "accumulate", "base", "allow_base_mismatch", "parent"),
}
# options that runs begun before there was such an option had all the same
ADDED = {
    "gain": True,
    "start": 1.0,
    "attend": "base",
    "top_down": False,
    "start_noise": None,
    "mirror": False,
    "blocks": None,
    "levels": None,
    "read": False,
    "optimizer": "adamw",
}
PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Made:
    """A finished distillation: its three files lie in `folder`."""

    folder: Path
    record: format.AdapterRecord
    parameters: int
    steps: int
    seconds: float
    score: float | None


def distil(job: Job, on_event: OnEvent) -> Made:
    """Distils an adapter (PAPER.md, "Training") and measures it on held-out pairs.

    Raises:
        CodiError: options that cannot be, data that cannot be used, a resumed run of another adapter.
    """
    job = settled(job)
    options = job.options
    by_main(lambda: _check_resumed(job))
    accelerator, base = _machine(job)
    spec = _spec(job, base, tasks.load(job.like, job.task_options))
    source, task = open_pairs(spec)
    if options.guidance == "relative" and task.condition_channels < 3:
        raise UsageError(f"--guidance relative: the condition of {job.task_name} is no picture to be changed")
    train, held = split(len(source))
    total = options.train_steps or (None if options.time_budget else DEFAULT_STEPS)
    _announce(job, spec, len(train), total, accelerator, on_event)
    say = _speaker(on_event)
    pixels = options.guidance in ("pixel", "lpips")
    folder = options.pairs or job.folder / "pairs"
    adapter = _new_adapter(job, base, task)  # what it cannot be is said before the pairs are made
    cache = main_first(
        lambda: build(
            spec,
            train,
            base,
            folder,
            workers=options.workers,
            mirror=options.mirror,
            with_targets=pixels,
            message=say,
        )
    )
    trainer = Trainer(base, adapter, cache, options, accelerator, total=total, folder=job.folder)
    if options.resume and trainer.restore():
        say(f"Going on from step {trainer.progress.step}, after {trainer.progress.seconds:.0f} s of training")
    pairs = [pair_at(source, task, spec.seed, k) for k in held]
    watcher = _Watcher(job, base, task, pairs, trainer, on_event)
    try:
        trainer.run(watcher.on_step, watcher.on_sample)
    except FloatingPointError as error:
        raise CodiError(f"{error}: try a lower --lr, or --precision fp32") from error
    finally:
        watcher.close()
    return by_main(lambda: _finish(job, base, task, pairs, trainer, spec))


def _speaker(on_event: OnEvent) -> Any:
    return lambda text: on_event({"kind": "message", "text": text})


def _machine(job: Job) -> tuple[Accelerator, FrozenBase]:
    device = choose_device(job.options.device)
    dtype = choose_dtype(job.options.precision, device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=PRECISIONS[dtype])
    return accelerator, FrozenBase.load(job.base_source, device=accelerator.device, dtype=dtype)


def _spec(job: Job, base: FrozenBase, task: Task) -> PairsSpec:
    options = job.options
    native = base.unet.config.sample_size * base.factor
    size = options.size or max(1, int(task.training_size * native) // base.multiple) * base.multiple
    if size % base.multiple:
        raise UsageError(f"--size {size}: a multiple of {base.multiple} px on this base")
    data = options.data or task.training_data
    return PairsSpec(job.like, job.task_options, data, options.count, size, options.seed)


def _told(count: int, spec: PairsSpec, options: DistillOptions) -> str:
    """What is trained on, in words."""
    return f"{count} pairs of {spec.size} px from {spec.data}{' and their mirror images' * options.mirror}"


def _announce(
    job: Job, spec: PairsSpec, count: int, total: int | None, accelerator: Accelerator, on_event: OnEvent
) -> None:
    """Says, before anything is computed, what will be trained, on what and for how long."""
    options = job.options
    length = [f"{total} steps"] if total else []
    if options.time_budget:
        length.append(f"{options.time_budget:g} s")
    _speaker(on_event)(
        f"Distilling {job.task_name} on {job.base_name}: {options.method}, {options.kind}/{options.fusion}, "
        f"{_told(count, spec, options)}, {' or '.join(length)} of training, "
        f"batch {_pairs_per_step(options)} on {_times(accelerator.device.type)} ({accelerator.mixed_precision}); "
        f"run folder {job.folder}"
    )


def _pairs_per_step(options: DistillOptions) -> int:
    return options.batch * options.accumulate * count()


def _times(device: str) -> str:
    return f"{count()} x {device}" if count() > 1 else device


def _check_resumed(job: Job) -> None:
    """Keeps the run's options beside its checkpoint, and refuses to resume with others.

    Raises:
        UsageError: nothing to resume, or an option that differs.
    """
    fixed = {k: v for k, v in asdict(job.options).items() if k not in FREE}
    mine = {"task": job.task_name, "like": job.like, "task_options": job.task_options, "base": job.base_name, **fixed}
    mine["rollout"] = job.options.rollout or 0.0  # none, to methods that know no such thing
    mine["pairs_per_step"] = _pairs_per_step(job.options)  # however they are shared out
    if job.parent and job.options.method in TAUGHT:
        mine["from"] = job.parent[0]
    mine = json.loads(json.dumps(mine, default=str))
    path = job.folder / "run.json"
    if job.options.resume:
        if not path.exists():
            raise UsageError(f"--resume: {job.folder} holds no run to go on with")
        kept = json.loads(path.read_text())
        for key, value in mine.items():
            before = kept.get(key, ADDED.get(key))
            if before != value:
                raise UsageError(f"--resume: the run was begun with {key} = {before!r}, not {value!r}")
    else:
        job.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine, indent=1))


def _new_adapter(job: Job, base: FrozenBase, task: Task) -> Adapter:
    torch.manual_seed(job.options.seed)
    if job.parent:
        _, weights, record_file = job.parent
        record = format.read_record(record_file)
        kept = format.load(weights, record, base, allow_base_mismatch=job.options.allow_base_mismatch)
        new = _extras(job.options)
        adapter = adapters.build(record.kind, base, pretrained=False, **record.config | new)
        # what is new in it adds nothing yet
        adapter.load_state_dict({name: value.float() for name, value in kept.state_dict().items()}, strict=False)
        return adapter
    return adapters.build(
        job.options.kind,
        base,
        condition_channels=task.condition_channels,
        pretrained=job.options.init == "pretrained",
        start=job.options.start,
        fusion=job.options.fusion,
        **{"start_noise": 0.0} | _extras(job.options),
    )


def _extras(options: DistillOptions) -> dict[str, Any]:
    """What an adapter can be told beyond its kind and start, where it is told: not every kind knows every switch."""
    told = {
        "attend": options.attend != "base" and options.attend,
        "top_down": options.top_down,
        "rank": options.rank,
        "blocks": options.blocks,
        "levels": options.levels,
        "read": options.read,
    }
    switches = {name: value for name, value in told.items() if value} | ({} if options.gain else {"gain": False})
    return switches | ({} if options.start_noise is None else {"start_noise": options.start_noise})


class _Watcher:
    """Looks on while an adapter trains: progress events, TensorBoard scalars, and sample sheets as PNG."""

    def __init__(self, job: Job, base: FrozenBase, task: Task, pairs: list[Pair], trainer: Trainer, on_event: OnEvent):
        self.job, self.base, self.task, self.trainer, self.on_event = job, base, task, trainer, on_event
        self.pairs = pairs[:SHOWN]
        self.main = trainer.accelerator.is_main_process
        self.board: Any = None
        if self.main:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(job.folder / "tensorboard"))

    def on_step(self, event: dict[str, Any]) -> None:
        if self.main:
            for name, value in event["losses"].items():
                self.board.add_scalar(f"loss/{name}", value, event["step"])
            self.on_event(event)

    def on_sample(self, step: int) -> None:
        if self.main:
            picture = sample_sheet(self.base, self.trainer.target, self.task, self.pairs)
            path = self.job.folder / "samples" / f"{step:06}.png"
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
            self.board.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        if self.board:
            self.board.close()


def _generator(base: FrozenBase, adapter: Adapter) -> Any:
    engine = Engine(base)

    def generate(conditions: Any, prompts: Any, seeds: Any, steps: int) -> list[np.ndarray]:
        return engine.generate(adapter, conditions, prompts, seeds, steps=steps)

    return generate


def inference_copy(base: FrozenBase, adapter: Adapter) -> Adapter:
    """The trained adapter as it will run: in the base's dtype, without gradients."""
    copy = adapters.build(adapter.kind, base, pretrained=False, **adapter.config)
    copy.load_state_dict(adapter.state_dict())
    return copy.to(base.dtype).requires_grad_(False).eval()


def sample_sheet(base: FrozenBase, adapter: Any, task: Task, pairs: list[Pair]) -> Any:
    """A contact sheet: condition, 1 step, 4 steps, target, one row per pair."""
    generate = _generator(base, inference_copy(base, adapter))
    one, four = (outputs(task, pairs, generate, steps, 0)[0] for steps in (1, DEFAULT_SAMPLING))
    rows = [[p.condition, a, b, p.target] for p, a, b in zip(pairs, one, four, strict=True)]
    return sheet(rows, columns=("condition", "1 step", "4 steps", "target"), width=192)


def _finish(job: Job, base: FrozenBase, task: Task, pairs: list[Pair], trainer: Trainer, spec: PairsSpec) -> Made:
    """Measures the moving average and writes the adapter's folder."""
    adapter = inference_copy(base, trainer.target)
    steps = trainer.method.steps
    counts = dict.fromkeys((*SAMPLING_STEPS, steps))
    scores, pictures = held_out_scores(task, pairs, _generator(base, adapter), steps=[*counts])
    rows = [[p.condition, *(pictures[n][k] for n in SAMPLING_STEPS), p.target] for k, p in enumerate(pairs[:8])]
    heads = ["condition", *(f"{n} step{'s' * (n > 1)}" for n in SAMPLING_STEPS), "target"]
    sheet(rows, columns=heads, width=160).save(job.folder / "held-out.png")
    metrics: dict[str, Any] = {k: v for k, v in scores[DEFAULT_SAMPLING].items() if v is not None and k != "seconds"}
    metrics |= {"held_out": len(pairs), "by_steps": {str(n): row for n, row in scores.items()}}
    if pairs[0].condition.shape[2] == 3:
        metrics["condition_psnr"] = float(np.mean([psnr(p.condition, p.target) for p in pairs]))
    mark = base.fingerprint
    record = format.AdapterRecord(
        task=job.task_name,
        kind=adapter.kind,
        base=format.BaseRecord(name=job.base_name, family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,  # type: ignore[arg-type]
        steps=steps,
        config=trainer.target.config,
        training=_training(job, base, trainer, spec),
        metrics=metrics,
    )
    folder = job.folder / "adapter"
    parameters = sum(p.numel() for p in adapter.parameters())
    format.write(folder, trainer.target, record, write_card(record, parameters))
    progress = trainer.progress
    return Made(folder, record, parameters, progress.step, progress.seconds, task.latest_score(metrics))


def _switches(options: DistillOptions) -> dict[str, Any]:
    """The switches of the loss that the method reads."""
    read = READS.get(options.method, ("grid", "dt", "shared_t", "loss"))
    said: dict[str, Any] = {}
    if "loss" in read:
        losses = {"guidance": options.guidance, "ode": options.ode, "consistency": options.consistency}
        said["loss"] = json.dumps(losses | {"weight": options.consistency_weight, "cap": options.consistency_cap})
    if options.rollout:
        said["rollout"] = options.rollout
    grid = [f"grid of {options.grid}, dt {options.dt}"] if "grid" in read else []
    said["times"] = ", ".join([*grid, "shared t" if "shared_t" in read and options.shared_t else "mixed t"])
    return said


def _training(job: Job, base: FrozenBase, trainer: Trainer, spec: PairsSpec) -> dict[str, Any]:
    """What the card says of the training."""
    options = job.options
    device = f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
    if base.device.type == "cuda":
        device = torch.cuda.get_device_name()
    init = "random" if options.kind == "side" else options.init  # there is nothing of the base in it
    start = f"from {job.parent[0]}" if job.parent else f"{init} initialisation"
    return {
        "data": _told(len(trainer.cache) // (1 + options.mirror), spec, options),
        "task_options": json.dumps(job.task_options),
        "method": f"{options.method}, {options.kind}/{options.fusion}, {start}",
        **_switches(options),
        "optimiser_steps": trainer.progress.step,
        "batch": _pairs_per_step(options),
        "optimizer": options.optimizer,
        "learning_rate": options.lr,
        "ema": options.ema,
        "minutes": round(trainer.progress.seconds / 60, 1),
        "hardware": f"{_times(device)}, {trainer.accelerator.mixed_precision} mixed precision",
        "parent": job.parent[0] if job.parent else "none",
        "seed": options.seed,
    }
