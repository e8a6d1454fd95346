"""The folder of a run and its configuration: what was asked for, and what a resumed run may change."""

from __future__ import annotations

import glob
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codi_hub.config import first_edition
from codi_hub.config.distill import DistillConfig, RunState, TrainingConfig
from codi_hub.config.layers import Layer, check_layer, merge, read_yaml
from codi_hub.config.model import declared
from codi_hub.config.write import plain, to_yaml
from codi_hub.data.sources import absolute
from codi_hub.errors import UsageError
from codi_hub.losses import METHODS
from codi_hub.partial import temporary
from codi_hub.paths import unwritable
from codi_hub.training.job import Job, Plan, plan
from codi_hub.validation import shown

CONFIG = "config.yaml"
RECORDS = (CONFIG, first_edition.RUN_FILE)  # a folder with one of them is a run's


def holds_run(folder: Path) -> bool:
    """Whether a run was started in a folder, by this edition or the first."""
    return any((folder / name).exists() for name in RECORDS)


def run_folder(home: Path, task: str, training: TrainingConfig) -> Path:
    """Return the folder of a run: the one asked for, the task's latest to resume, or a new one.

    Args:
        home: the state folder; runs are in its `distill`.
        task: the task's name.
        training: its `run_dir` and `resume`.

    Raises:
        UsageError: nothing to resume, or a new run where one was started already.
    """
    folder = training.run_dir
    runs = {} if folder else _numbered(home / "distill", task)
    if folder is None and not training.resume:
        number, moment = max(runs, default=(0, ""))[0] + 1, time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        return home / "distill" / f"{task}-{moment}-{number:04}-{secrets.token_hex(3)}"
    if folder is None:
        started = {place: path for place, path in runs.items() if holds_run(path)}
        if not started:
            raise UsageError(f"training.resume: no distillation of {task!r} was started in {home}")
        folder = started[max(started)]
    if not training.resume and holds_run(folder):
        raise UsageError(f"training.run_dir {folder}: a run was started there; add training.resume to continue it")
    return folder.absolute()


def _numbered(runs: Path, task: str) -> dict[tuple[int, str], Path]:
    """Return the folders of a task's runs, by what orders them: a number, or 0 and the name before there were numbers.

    Clocks and time zones go back; numbers do not.
    """
    name = re.compile(re.escape(task) + r"-\d{8}-\d{6}-(?:(\d+)-)?[0-9a-f]{6}")
    found = ((name.fullmatch(path.name), path) for path in runs.glob(f"{glob.escape(task)}-*-*"))
    return {(int(match[1] or 0), path.name): path for match, path in found if match}


def compose(
    task: str, preferences: Mapping[str, Any], layers: Sequence[Layer], home: Path, preset: Layer | None = None
) -> DistillConfig:
    """Return the configuration of layers, the last on top, over a preset, a task's preferences and the defaults.

    A run that is resumed has its own configuration in place of the preferences; what differs from it is compared
    later, by `claim`.

    Args:
        task: the task's name.
        preferences: `Task.distill`, by flag names such as `{"count": 2500, "lr": 6e-4}`.
        layers: nested mappings with the fields of `DistillConfig`.
        home: the state folder, where a run to resume is looked for.
        preset: below the layers; its batch and learning rate, as the preferences', hold on small bases alone.

    Raises:
        UsageError: a field that does not exist, a value that it cannot have, or nothing to resume.
    """
    asked = merge(layers)
    training = TrainingConfig(**asked.get("training", {}))
    preset = preset or {}
    if training.resume:
        asked = merge([preset, asked])
        folder = run_folder(home, task, training)
        return DistillConfig(**merge([started_layer(folder, task), asked, {"training": {"run_dir": folder}}]))
    config = DistillConfig(**merge([_preferred(preferences, merge([preset, asked])), preset, asked]))
    # of the training's fields only those that were asked for count as set: `sized` may replace the others
    fields = TrainingConfig.model_construct(set(asked.get("training", {})), **dict(config.training))
    return config.model_copy(update={"training": fields})


def _preferred(preferences: Mapping[str, Any], asked: Layer) -> dict[str, Any]:
    """Return the preferences as a layer: the kind gives way to a method or a parent, which have one themselves."""
    adapter, loss = asked.get("adapter", {}), asked.get("loss", {})
    preferred = dict(preferences)
    if loss.get("method") or adapter.get("parent"):
        preferred.pop("kind", None)
    method = loss.get("method")
    if method in METHODS and "guidance" not in METHODS.load(method).Config.model_fields:
        preferred.pop("guidance", None)
    return first_edition.layer_of(preferred)


def claim(work: Plan, processes: int) -> None:
    """Write the run's configuration into its folder; when it is resumed, compare the one that is there first.

    Args:
        work: the plan.
        processes: how many take part: a run may be resumed with others, where the pairs per step stay the same.

    Raises:
        UsageError: nothing to resume, or a field that a resumed run cannot change.
    """
    job, now = work.job, compared(work, processes)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        heading = f"Configuration of `codi distill {job.task_name}`, which another run can be started with"
        with temporary(job.folder) as part:
            part.write_text(to_yaml(now, work.models, heading), encoding="utf-8")
            os.replace(part, job.folder / CONFIG)
    except OSError as error:
        raise _unwritable(job.folder, error.strerror or str(error)) from error


def compared(work: Plan, processes: int) -> DistillConfig:
    """Return the run's configuration; when it is resumed, compare the one that is in its folder. Raises as `claim`."""
    job, config = work.job, work.config
    state = RunState(
        task=job.task_name,
        like=job.like,
        pairs_per_step=config.training.batch * config.training.accumulate * processes,
        teacher=job.parent.ref if job.parent and work.method.needs_teacher else None,
    )
    now = DistillConfig(**(config.values() | {"run": state}))
    if config.training.resume:
        if not holds_run(job.folder):
            raise UsageError(f"training.resume: {job.folder} holds no run to continue")
        _compare(now, started_with(job), job.folder)
    return now


def check_writable(folder: Path) -> None:
    """Raise UsageError for a run folder that cannot be written, before anything is loaded."""
    if reason := unwritable(folder):
        raise _unwritable(folder, reason)


def _unwritable(folder: Path, reason: str) -> UsageError:
    return UsageError(f"training.run_dir {folder}: not a folder that can be written ({reason})")


def started_with(job: Job) -> DistillConfig:
    """Return the configuration that the run in a job's folder was started with. Raises UsageError or InvalidInput."""
    if (job.folder / CONFIG).exists():
        return DistillConfig(**_with_dropout(read_yaml(job.folder / CONFIG)))
    config = DistillConfig(**_with_dropout(first_edition.read_run(job.folder)))
    decided = plan(replace(job, config=config, task_options=config.task or job.task_options)).config
    return DistillConfig(**(decided.values() | {"run": config.run}))


def started_layer(folder: Path, task: str) -> dict[str, Any]:
    """Return what a run was started with, as a layer for the run that resumes it.

    Raises:
        UsageError: no run, or one of another task. InvalidInput: its record is damaged.
    """
    if not holds_run(folder):
        raise UsageError(f"training.resume: {folder} holds no run to continue")
    path = folder / CONFIG
    layer = check_layer(read_yaml(path), str(path)) if path.exists() else first_edition.read_run(folder)
    layer = _with_dropout(layer)
    state = DistillConfig(**layer).run
    if state is not None and state.task != task:
        raise UsageError(f"training.resume: the run in {folder} is of task {state.task}, not {task}")
    return {name: value for name, value in layer.items() if name != "run"}


def _with_dropout(layer: dict[str, Any]) -> dict[str, Any]:
    """Return what a run was started with; one from before there was prompt dropout dropped none."""
    return merge([{"training": {"prompt_dropout": 0.0}}, layer])


def _compare(now: DistillConfig, before: DistillConfig, folder: Path) -> None:
    """Raise UsageError for the first field that differs, of those that a resumed run cannot change."""
    free = {one.path for one in declared(DistillConfig) if one.resumable}
    new, old = _flat(now), _flat(before)
    for values in (new, old):
        values["data.source"] = absolute(values["data.source"])
    for path in dict.fromkeys([*new, *old]):
        if path in free or new.get(path) == old.get(path):
            continue
        value, earlier = shown(new.get(path)), shown(old.get(path))
        if path == "run.pairs_per_step":
            raise UsageError(
                f"training.batch: the run in {folder} has {earlier} pairs per step (batch x accumulate x processes), "
                f"not {value}"
            )
        named = {"run.teacher": "adapter.parent", "task": "task options"}.get(path, path)
        raise UsageError(f"{named} {value}: the run in {folder} was started with {earlier}")


def _flat(config: DistillConfig) -> dict[str, Any]:
    """Return the values by their paths; `task` is one value."""
    flat: dict[str, Any] = {}
    for name, value in plain(config.values()).items():
        inner = value if isinstance(value, dict) and name != "task" else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": one for key, one in inner.items()}
    return flat
