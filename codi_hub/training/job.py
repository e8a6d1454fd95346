"""What is to be distilled, and whether the version it goes on from suits the method."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.adapters.adapter import START_NOISE
from codi_hub.config.options import READS, TAUGHT, DistillOptions, check_kind
from codi_hub.errors import UsageError


@dataclass(frozen=True)
class Job:
    """What is distilled: a task by its name, its built-in kind and options, on a base, with training options."""

    task_name: str
    like: str
    task_options: dict[str, Any]
    base_name: str
    base_source: str
    options: DistillOptions
    folder: Path
    parent: tuple[str, Path, Path] | None = None  # reference, weights and record of the version to go on from


def _check_kept(ref: str, options: DistillOptions, config: dict[str, Any]) -> None:
    """Raises UsageError for a form that the version gone on from does not have."""
    if options.rank not in (None, config.get("rank")):
        raise UsageError(f"--rank {options.rank}: --from {ref} is of rank {config.get('rank')}, and stays so")
    for name in ("blocks", "levels", "read"):
        if (value := getattr(options, name)) and value != config.get(name):
            raise UsageError(f"--{name} {value}: --from {ref} has {config.get(name)}, and keeps it")
    if not options.gain and config.get("gain", True):
        raise UsageError(f"--no-gain: --from {ref} has a gain, and keeps it: distil it without --from")
    if options.start not in (1, config.get("start", 1)):
        raise UsageError(f"--start {options.start:g}: --from {ref} starts at {config.get('start', 1)}, and goes on so")


def settled(job: Job) -> Job:
    """The job with the kind and fusion that will be trained: where it goes on from a version, that one's.

    Raises:
        UsageError: an unknown kind, or a version that the method cannot go on from.
    """
    options, begins, noise = job.options, job.options.start, job.options.start_noise
    if job.parent:
        ref, _, record_file = job.parent
        record = format.read_record(record_file)
        if options.kind not in ("", record.kind):
            raise UsageError(f"--kind {options.kind}: --from {ref} is of kind {record.kind}, and stays so")
        check_kind(options.method, record.kind, f"--from {ref} of kind")
        made_by = record.method
        if options.method in TAUGHT and made_by not in ("", "conditional"):
            raise UsageError(
                f"--from {ref} was made with --method {made_by}, and the teacher of {options.method} must follow the "
                "whole ODE: train one with --method conditional"
            )
        _check_kept(ref, options, record.config)
        begins = record.config.get("start", 1)
        noise = record.config.get("start_noise", START_NOISE) if noise is None else noise
        options = replace(
            options,
            rank=None,
            blocks=None,
            levels=None,
            read=False,
            gain=True,
            kind=record.kind,
            fusion=record.config.get("fusion", options.fusion),
            attend=record.config.get("attend", options.attend),
            top_down=record.config.get("top_down", options.top_down),
        )
    if options.kind not in adapters.KINDS:
        raise UsageError(f"--kind {options.kind}: one of {', '.join(adapters.KINDS.names())}")
    if options.attend == "all" and options.kind in ("static", "lora", "residual"):
        raise UsageError(f"--attend all: not with --kind {options.kind}, which has no attention of its own")
    if options.fusion == "gate" and options.kind == "residual":
        raise UsageError("--fusion gate: not with --kind residual, which replaces no features")
    if options.top_down and options.kind in ("static", "lora", "residual"):
        raise UsageError(f"--top-down: only with --kind control or full, not {options.kind}")
    if options.start_noise is not None and begins == 1:
        raise UsageError(f"--start-noise {options.start_noise:g}: sampling begins with nothing but noise: add --start")
    if options.rollout is None and options.method not in READS:
        # a target under as little noise as there is gives itself away: what would be learnt is to leave it as it is
        options = replace(options, rollout=float(begins < 1 and not noise and options.shared_t))
    return replace(job, options=options)
