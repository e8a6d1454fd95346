"""Train the rows, each for the same time, and evaluate the adapters."""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator

from codi_hub import adapters
from codi_hub.backbones.backbone import Backbone
from codi_hub.config.distill import DistillConfig, TrainingConfig
from codi_hub.config.first_edition import layer_of
from codi_hub.errors import NotFound
from codi_hub.evaluation.features import Features
from codi_hub.hub import Hub
from codi_hub.inference.engine import Sampling, generate_function
from codi_hub.losses import METHODS
from codi_hub.training.folder import holds_run
from codi_hub.training.latents import PairFile
from codi_hub.training.pairs import PairsSpec, open_pairs
from codi_hub.training.run import PRECISIONS
from codi_hub.training.trainer import Trainer
from recipes.paper.held_out import HeldOut
from recipes.paper.results import Results, at_key
from recipes.paper.rows import COMMON, DATA, ONE_AND_FOUR, SIZE, TABLES, Row

ROUNDS, IN_A_ROUND = 12, 3  # timed steps; the first of each round is not counted
REFERENCE = "superres", "pe-codi"  # the row whose training time all others get
Say = Callable[[str], object]


def costs(base: Backbone, rows: Iterable[Row], folder: Path) -> dict[str, float]:
    """Return the mean seconds per training step by `Row.work`, timed in turn."""
    trainers: dict[str, Trainer] = {}
    for row in rows:
        if row.work not in trainers:
            trainers[row.work] = _trainer(base, row, folder)
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(ROUNDS):
        for name, trainer in trainers.items():
            for k in range(IN_A_ROUND):
                began = time.perf_counter()
                trainer.train_step()
                taken[name] += [time.perf_counter() - began] if k else []
    return {name: fmean(seconds) for name, seconds in taken.items()}


def all_costs(base: Backbone, results: Results, folder: Path) -> None:
    """Time what was not timed yet, together with the reference, and store it at the reference's scale."""
    reference = by_key(*REFERENCE)
    with results.lock("timing"):
        results.put("costs", {})  # read what another process timed
        missing = [row for rows in TABLES.values() for row in rows if row.work not in results.costs]
        if missing:
            now = costs(base, [reference, *missing], folder)
            scale = results.costs.get(reference.work, now[reference.work]) / now[reference.work]
            results.put("costs", {name: seconds * scale for name, seconds in now.items()})


def train_steps(row: Row, results: Results) -> int:
    """Return the steps that fit into the row's share of the reference's training time."""
    ratio = results.costs[by_key(*REFERENCE).work] / results.costs[row.work]
    return max(1, round(row.share * results.about["steps"] * ratio))


def made_with(row: Row, seed: int, results: Results) -> dict[str, Any]:
    """Return everything that a row's adapter depends on, in addition to `Results.about`."""
    told = {name: value for name, value in {**COMMON, **row.told}.items() if name != "sample_every"}
    made: dict[str, Any] = {"data": DATA[row.task], **told, "seed": seed, "train_steps": train_steps(row, results)}
    if row.teacher:
        made["from"] = made_with(by_key(row.task, row.teacher), seed, results)
    return made


def _trainer(base: Backbone, row: Row, folder: Path) -> Trainer:
    """Return a trainer of the row on a few pairs, for timing."""
    config = DistillConfig(**layer_of({**COMMON, **row.told}))
    form, loss = METHODS.load(config.loss.method), config.loss.extras
    if config.loss.guidance:
        loss["guidance"] = config.loss.guidance
    method = form(form.Config(**loss), base.device)
    spec = PairsSpec(row.task, {}, DATA[row.task], 48, SIZE, 0)
    cache = PairFile(spec, range(48), base, folder / "pairs", with_targets=method.needs_targets)
    _, task = open_pairs(spec)
    kind = config.adapter.kind or ("full" if form.needs_teacher else form.default_kind)
    adapter = adapters.build(kind, base, condition_channels=task.condition_channels, **config.adapter.extras)
    accelerator = Accelerator(cpu=base.device.type == "cpu", mixed_precision=PRECISIONS[base.dtype])
    settings = TrainingConfig(train_steps=1000, batch=config.training.batch, lr=config.training.lr)
    trainer = Trainer(base, adapter, cache, method, settings, accelerator, folder)
    trainer.prompts.prepare(cache.prepare(range(48)))  # not in a step that is timed
    return trainer


class Bench:
    """A workspace: a home with the bundled base, the adapters trained so far, and their shared pairs.

    Args:
        workspace: folder of `home`, `pairs` and, during training, `runs`.
        results: the results so far; added to.
        features: network of the distances.
        say: called with a line when a row starts and ends.
        device: "cpu" or "cuda".
    """

    def __init__(self, workspace: Path, results: Results, features: Features, say: Say, device: str):
        self.workspace, self.results, self.features, self.say = workspace, results, features, say
        self.device = device
        self.hub = Hub.open(workspace / "home")
        self._held_out: dict[str, HeldOut] = {}

    def held_out(self, task: str) -> HeldOut:
        """Return the task's held-out pairs, created once."""
        if task not in self._held_out:
            self._held_out[task] = HeldOut.of(task)
        return self._held_out[task]

    def refer(self, task: str, base: Backbone) -> None:
        """Evaluate the baselines without an adapter and the bundled adapter, where that is missing."""
        kept = self.results.references.get(task, {})
        if not kept:
            made = self.held_out(task).references(base)
            kept = {name: self.held_out(task).figures(images, self.features) for name, images in made.items()}
        there = self.hub.catalog.registry.adapters.list(task, self.hub.catalog.registry.bases.get().name)
        bundled = [row.ref for row in there if row.bundled]
        for ref, at in product(bundled, ONE_AND_FOUR):
            name = f"the bundled adapter, {at_key(at)}"
            kept = kept if name in kept else kept | {name: self._measured(by_key(task, "pe-codi"), ref, at)}
        self.results.put("references", {task: kept})

    def do(self, row: Row, seed: int) -> None:
        """Train the row with the seed and evaluate it, where that is missing."""
        name = f"{row.task}/{row.key}/{seed}"
        wanted = made_with(row, seed, self.results)
        kept = self.results.rows.get(name, {})
        if kept.get("made_with") != wanted:
            kept = {}
        missing = [at for at in row.at if at_key(at) not in kept.get("figures", {})]
        if kept and not missing:
            return
        if not kept or not self._is_there(kept):
            kept = {"made_with": wanted, "figures": {}} | self._distilled(row, seed)
            missing = list(row.at)
        self.results.put("rows", {name: kept})
        for at in missing:
            kept["figures"][at_key(at)] = self._measured(row, kept["adapter"], at)
            self.results.put("rows", {name: kept})
        self.say(f"{name}: {kept['figures']}")

    def teacher(self, row: Row, seed: int) -> str | None:
        """Return the reference of the row's teacher of the same seed, trained if it is missing."""
        if row.teacher is None:
            return None
        teacher = by_key(row.task, row.teacher)
        name = f"{row.task}/{row.teacher}/{seed}"
        self.do(teacher, seed)
        if not self._is_there(self.results.rows[name]):  # trained in another workspace
            del self.results.rows[name]
            self.do(teacher, seed)
        return str(self.results.rows[name]["adapter"])

    def _is_there(self, kept: dict[str, Any]) -> bool:
        """Return whether this home has the adapter, not another one under its name."""
        try:
            return self.hub.catalog.registry.adapters.resolve(kept["adapter"], base=None).sha256 == kept["sha256"]
        except NotFound:
            return False

    def _distilled(self, row: Row, seed: int) -> dict[str, Any]:
        told = json.dumps([self.results.about, made_with(row, seed, self.results)], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]  # a run with other options is not resumed
        folder = self.workspace / "runs" / f"{row.task}-{row.key}-{seed}-{digest}"
        parent = self.teacher(row, seed)
        steps = train_steps(row, self.results)
        options = {**COMMON, **row.told, "data": DATA[row.task], "seed": seed, "train_steps": steps, "from": parent}
        options |= {"cache_dir": self.workspace / "pairs", "run_dir": folder, "resume": holds_run(folder)}
        config = DistillConfig(**layer_of(options | {"device": self.device}))
        self.say(f"{row.task}/{row.key}/{seed}: {steps} steps")
        made = self.hub.distill(row.task, config)
        shutil.rmtree(folder)
        sha256 = self.hub.catalog.registry.adapters.resolve(made.adapter, base=None).sha256
        seconds = round(made.seconds, 1)
        return {"adapter": made.adapter, "sha256": sha256, "seconds": seconds, "machine": machine(self.device)}

    def _measured(self, row: Row, ref: str, at: tuple[int, str]) -> dict[str, float]:
        steps, sampler = at
        base, adapter, _ = self.hub.use(ref, device=self.device)
        held_out = self.held_out(row.task)
        images, seconds = held_out.sampled(generate_function(base, adapter, Sampling(sampler=sampler)), steps)
        found = held_out.figures(images, self.features) | {"seconds": seconds}
        return {name: float(f"{value:.5g}") for name, value in found.items()}


def machine(device: str) -> str:
    """Return the hardware that a row is trained on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, CPU threads: {torch.get_num_threads()}"


def by_key(task: str, key: str) -> Row:
    """Return the row of that name. Raises StopIteration."""
    return next(row for rows in TABLES.values() for row in rows if (row.task, row.key) == (task, key))
