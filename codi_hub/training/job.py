"""What is to be distilled, and the plan of it: every field decided, every part checked, nothing loaded yet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from codi_hub import tasks
from codi_hub.adapters import KINDS
from codi_hub.adapters.adapter import AdapterConfig
from codi_hub.config.base import BaseOptions
from codi_hub.config.distill import DistillConfig
from codi_hub.data.sources import absolute
from codi_hub.errors import UsageError, one_line
from codi_hub.losses import GUIDANCE, METHODS
from codi_hub.losses.method import Method, MethodConfig
from codi_hub.plugins import Plugins
from codi_hub.record import AdapterRecord, label
from codi_hub.registry import BaseRow
from codi_hub.tasks.base import Task
from codi_hub.training import launch
from codi_hub.validation import shown, validated

DEFAULT_STEPS = 2000  # of training, where neither steps nor a time are given
INHERITED = ("condition_channels", "network")  # of an adapter: its task's and its parent's, not the configuration's
CHANGEABLE = ("start_noise", "init")  # of an adapter that continues from a parent; the rest of its form is the parent's


@dataclass(frozen=True)
class Parent:
    """An adapter version that a training continues from, distils, or is compared with.

    Attributes:
        ref: its name, TASK:VERSION.
        weights: its `adapter.safetensors`.
        record: its `adapter.json`.
    """

    ref: str
    weights: Path
    record: AdapterRecord


@dataclass(frozen=True)
class Job:
    """What is distilled, as the registry knows it.

    Attributes:
        task_name: the task.
        like: the built-in task it is a variant of.
        task_options: its options, those of the configuration over the registered ones.
        base_name, base: the frozen base.
        config: what was asked for.
        folder: the run folder.
        parent: the version to continue from, if any.
        latest: the task's latest version, where the run has to measure it too.
        registered: the base's row, which it is compared with.
        base_kind: the adapter kind that the base's family takes by default, if any.
        began: `time.monotonic()` when the command began, from which a time budget counts.
    """

    task_name: str
    like: str
    task_options: dict[str, Any]
    base_name: str
    base: BaseOptions
    config: DistillConfig
    folder: Path
    parent: Parent | None = None
    latest: Parent | None = None
    registered: BaseRow | None = None
    base_kind: str | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def base_steps(self) -> int | None:
        """Sampling steps that the base was distilled for; None for one that is not distilled."""
        return self.base.steps if self.base.distilled else None


@dataclass(frozen=True)
class Plan:
    """A job with everything decided.

    Attributes:
        job: the job that was planned.
        config: the configuration, every field of its kind and method in it.
        task: the task.
        method: the class of the training method.
        loss: the method's settings.
        kind: the adapter kind.
        adapter: the kind's settings.
    """

    job: Job
    config: DistillConfig
    task: Task
    method: type[Method]
    loss: MethodConfig
    kind: str
    adapter: AdapterConfig

    @property
    def models(self) -> dict[str, type[BaseModel]]:
        """The classes whose fields stand in sections of the configuration."""
        return {"adapter": type(self.adapter), "loss": type(self.loss)}

    @property
    def sampling_steps(self) -> int:
        """Sampling steps that the adapter is for: a distilled base's, where the method trains on a grid of them."""
        own_grid = "grid" in self.method.Config.model_fields
        return self.job.base_steps if self.job.base_steps and own_grid else self.method.steps

    @property
    def warning(self) -> str | None:
        """A line for people, where the method undoes what the base was distilled for."""
        if self.job.base_steps is None or self.sampling_steps <= self.job.base_steps:
            return None
        return (
            f"base {self.job.base_name} is distilled for {self.job.base_steps} steps, and method "
            f"{self.config.loss.method} trains it back to {self.sampling_steps}: use method pe-codi to keep it fast"
        )

    def method_label(self, loss: Mapping[str, float]) -> str:
        """Return the method as the record names it, from the trained loss terms and their weights."""
        return label(
            self.config.loss.method,
            consistency="consistency" in loss,
            guidance="guidance" in loss,
            start=self.adapter.start,
            start_noise=self.adapter.start_noise,
        )


def plan(job: Job) -> Plan:
    """Decide what a job leaves open, and check it: method, kind, their settings and the parent.

    Raises:
        UsageError: an unknown kind or method, a setting that they do not have, or parts that do not fit each other.
    """
    config, parent = job.config, job.parent
    method = _named(METHODS, "loss.method", config.loss.method)
    kind = config.adapter.kind or (parent.record.kind if parent else _default_kind(method, job.base_kind))
    task = tasks.load(job.like, job.task_options)
    _check_parent(config, method, kind, parent)
    form = _named(KINDS, "adapter.kind", kind)
    _check_kind(config.loss.method, method, kind, form.trains_base, parent)
    adapter = _adapter_settings(config, kind, task.condition_channels, parent)
    loss = _loss_settings(config, method, adapter, job.base_steps)
    _check_guidance(getattr(loss, "guidance", "off"), job.task_name, task)
    training = launch.honoured(config.training)
    if training.train_steps is None and training.time_budget is None:
        training = training.model_copy(update={"train_steps": DEFAULT_STEPS})
    if training.prompt_dropout is None:
        training = training.model_copy(update={"prompt_dropout": method.prompt_dropout})
    common = {"kind": kind, "parent": parent and parent.ref, "allow_base_mismatch": config.adapter.allow_base_mismatch}
    decided = DistillConfig(
        data=config.data.replace(source=absolute(config.data.source or task.training_data)),
        base=job.base_name,
        adapter=common | {name: value for name, value in _values(adapter).items() if name not in INHERITED},
        loss={"method": config.loss.method} | _values(loss),
        training=training,
        task=_current_options(task, job.task_options),
    )
    return Plan(job, decided, task, method, loss, kind, adapter)


def _default_kind(method: type[Method], base_kind: str | None) -> str:
    """Return the kind of a method, or the base's where the method leaves the base frozen."""
    return method.default_kind if method.trains_base or base_kind is None else base_kind


def _current_options(task: Task, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were set, under their current names and as JSON."""
    names = {task.renamed.get(name, name) for name in options}
    return task.options.model_dump(mode="json", include=names)


def _named(group: Plugins, path: str, name: str) -> Any:
    group.check(name, path)
    return group.load(name)


def _check_parent(config: DistillConfig, method: type[Method], kind: str, parent: Parent | None) -> None:
    """Refuse a parent that the method cannot use, or another kind than its."""
    name = config.loss.method
    if parent is None:
        if method.needs_teacher:
            raise UsageError(
                f"loss.method {name}: it needs a teacher; train one with method conditional and name it as "
                "adapter.parent TASK:VERSION"
            )
        return
    if kind != parent.record.kind:
        raise UsageError(f"adapter.kind {kind}: the parent {parent.ref} is of kind {parent.record.kind}, and stays so")
    if method.needs_teacher and parent.record.method not in ("", "conditional"):
        raise UsageError(
            f"adapter.parent {parent.ref}: it was trained with method {parent.record.method}, and the teacher of "
            f"{name} must follow the whole ODE; train one with method conditional"
        )


def _check_kind(name: str, method: type[Method], kind: str, trains_base: bool, parent: Parent | None) -> None:
    if method.trains_base is None or method.trains_base == trains_base:
        return
    other = next(other for other, one in METHODS.loadable() if one.trains_base == trains_base)
    which = f"kind {kind}" + (f" of {parent.ref}" if parent else "")
    if trains_base:
        raise UsageError(f"loss.method {name}: it keeps the base frozen, and {which} trains it; use method {other}")
    raise UsageError(f"loss.method {name}: it trains everything, and {which} keeps the base frozen; use method {other}")


def _adapter_settings(
    config: DistillConfig, kind: str, condition_channels: int, parent: Parent | None
) -> AdapterConfig:
    """Return the settings of the adapter: the parent's where there is one, and what was asked for."""
    model = KINDS.load(kind).Config
    asked = {"start": config.adapter.start, "start_noise": config.adapter.start_noise}
    asked = {name: value for name, value in asked.items() if value is not None} | config.adapter.extras
    before = parent.record.config if parent else {}
    settings = validated(model, before | asked | {"condition_channels": condition_channels}, "adapter", f"kind {kind}")
    if parent:
        kept = validated(model, before, "adapter", f"kind {kind}")
        for name in asked:
            old, new = getattr(kept, name), getattr(settings, name)
            if old != new and name not in CHANGEABLE:
                raise UsageError(
                    f"adapter.{name} {shown(new)}: the parent {parent.ref} has {shown(old)}, and keeps it; "
                    "train without adapter.parent"
                )
    if config.adapter.start_noise and settings.start == 1:
        raise UsageError(
            f"adapter.start_noise {config.adapter.start_noise:g}: sampling starts from noise alone; set adapter.start "
            "below 1"
        )
    settings.check_trainable()
    return settings


def _loss_settings(
    config: DistillConfig, method: type[Method], adapter: AdapterConfig, base_steps: int | None
) -> MethodConfig:
    """Return the settings of the loss, on a distilled base with its own grid.

    `rollout` is 1 where sampling starts from an image without noise.
    """
    asked = config.loss.extras
    if config.loss.guidance is not None:
        asked["guidance"] = config.loss.guidance
    if base_steps and "grid" in method.Config.model_fields:
        asked.setdefault("grid", max(2, base_steps))
    settings = validated(method.Config, asked, "loss", f"method {config.loss.method}")
    if "rollout" in method.Config.model_fields and getattr(settings, "rollout", None) is None:
        # a target without noise would be its own answer: the network would learn to leave the image as it is
        deterministic = adapter.start < 1 and adapter.start_noise == 0 and getattr(settings, "shared_t", True)
        settings = settings.model_copy(update={"rollout": float(deterministic)})
    return settings


def _check_guidance(name: str, task_name: str, task: Task) -> None:
    if name != "off" and name not in GUIDANCE:
        raise UsageError(f"loss.guidance {one_line(name, 40)}: one of {', '.join(GUIDANCE.names())}, off")
    term = None if name == "off" else GUIDANCE.load(name)
    if getattr(term, "needs_image_condition", False) and task.condition_channels < 3:
        raise UsageError(f"loss.guidance {name}: the condition of {task_name} is not an image of three channels")


def _values(settings: BaseModel) -> dict[str, Any]:
    """Return all fields, those too that a record leaves out."""
    return {name: getattr(settings, name) for name in type(settings).model_fields}
