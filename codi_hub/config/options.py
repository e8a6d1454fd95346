"""What a run, a distillation and an evaluation can be told. Knows no torch; what they answer is in `reports`.

Each field says here, once, what it means, what it may be and what it is called on the command line, where `cli.fields`
turns it into an option.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from codi_hub.errors import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "fp32", "fp16", "bf16")
SAMPLERS = ("ddim", "renoise", "dpmpp")
ADAPTER_MEMORY = 2 * 10**9  # bytes of loaded adapters that are kept for the next use
EXPORT_FORMATS = ("diffusers",)
EXPORT_DTYPES = ("fp16", "bf16", "fp32")
SAMPLER_HELP = "How steps are taken: along the ODE, with fresh noise between them, or DPM-Solver++(2M) for many steps"
METHODS = ("pe-codi", "codi", "conditional", "cm", "gd")
USUAL_KIND = {"pe-codi": "static", "codi": "full"}  # and for what is compared with them, a ControlNet
OPTIMIZERS = ("adamw", "muon")
TAUGHT = ("cm", "gd")  # methods with a frozen teacher, which --from names
READS: dict[str, tuple[str, ...]] = {  # the loss switches that a baseline reads; CoDi's two forms read them all
    "conditional": (),
    "cm": ("grid", "dt", "shared_t"),
    "gd": ("shared_t",),
}


def _opt(
    default: Any,
    help: str,
    *flags: str,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    panel: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A field with its help, its flags (`--its-name` if none are given), its limits, and how it is typed if as text."""
    metadata = {
        "help": help,
        "flags": flags,
        "choices": choices,
        "least": least,
        "most": most,
        "panel": panel,
        "metavar": metavar,
    }
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


class _Checked:
    """Refuses a value outside its field's choices or limits, with one line that names the option as it is typed."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value, limits = getattr(self, f.name), f.metadata
            if value is None or not limits:
                continue
            flag = option_name(f.name, limits["flags"])
            if limits["choices"] and value not in limits["choices"]:
                raise UsageError(f"{flag} must be one of {', '.join(limits['choices'])}, not {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{flag} must be a finite number, not {value}")
            if limits["least"] is not None and value < limits["least"]:
                raise UsageError(f"{flag} must be at least {limits['least']}, not {value}")
            if limits["most"] is not None and value > limits["most"]:
                raise UsageError(f"{flag} must be at most {limits['most']}, not {value}")


def option_name(field_name: str, flags: tuple[str, ...] = ()) -> str:
    """The long flag of a field: the one given, or `--its-name`; of a switch such as "--a/--b", the first."""
    long = [flag for flag in flags if flag.startswith("--")]
    return (long[0] if long else "--" + field_name.replace("_", "-")).split("/")[0]


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str | float) -> float:
    """Seconds in "90s", "10m", "1h30m" or "45" (seconds). Raises UsageError for anything else, or for none at all."""
    match = _DURATION.fullmatch(str(text).strip().lower())
    parts = match.groups() if match else (None, None, None)
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True) if part)
    if seconds <= 0:
        raise UsageError(f"not a duration: {str(text)!r}; write it as 90s, 10m or 1h30m")
    return seconds


_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?) *([kmgt]?)(i?)b?")


def parse_size(text: str | int) -> int:
    """Bytes in "500MB", "2G", "1.5GiB" or "4096" (bytes); GB is 1000 MB, GiB 1024 MiB. Raises UsageError otherwise."""
    match = _SIZE.fullmatch(str(text).strip().lower())
    if not match or (match[3] and not match[2]):
        raise UsageError(f"not a size: {str(text)!r}; write it as 500MB or 2GB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


@dataclass(frozen=True, kw_only=True)
class RunOptions(_Checked):
    """How a task is run over files."""

    out: Path | None = _opt(None, "Folder for the outputs (default: INPUT_TASK/ beside the input)", "-o", "--out")
    steps: int | None = _opt(None, "Sampling steps (default: the adapter's)", least=1, most=1000)
    prompt: str | None = _opt(
        None, "Text for every image (default: each image's own, from metadata.jsonl or NAME.txt beside NAME.png)"
    )
    seed: int = _opt(0, "Seed; each image's own is derived from it and the file's name", least=0)
    batch: int | None = _opt(None, "Images at a time (default: what the memory allows)", least=1)
    tile: str = _opt(
        "auto",
        "Make large pictures in overlapping tiles of that side in pixels, which bounds the memory; auto: those of more "
        "than 2 megapixels in tiles of 1024",
        metavar="auto|off|N",
    )
    suffix: str = _opt("", "Added to every output's stem")
    ext: str = _opt("auto", "Type of the outputs", choices=("auto", "png", "jpg"))
    overwrite: bool = _opt(False, "Make again what is already there", "--overwrite")
    resume: bool = _opt(True, "Skip what an earlier run finished")
    recursive: bool = _opt(True, "Go into subfolders")
    dry_run: bool = _opt(False, "Only say what would be made, skipped or refused", "--dry-run")
    base: str | None = _opt(None, "Base to run on (default: the one in use)")
    device: str = _opt("auto", "Where to compute", choices=DEVICES, panel="Machine")
    dtype: str = _opt("auto", "Precision of the networks", choices=DTYPES, panel="Machine")
    compile: bool = _opt(
        False,
        "Compile the networks: minutes at first, then a sixth faster; for long runs",
        "--compile",
        panel="Machine",
    )
    adapter_memory: int = _opt(
        ADAPTER_MEMORY,
        "Memory for adapters that stay loaded for their next jobs, such as 500MB (default: 2GB)",
        panel="Machine",
        metavar="SIZE",
    )
    temperature: float = _opt(1.0, "Scale of the noise that sampling starts from", least=0.0, most=2.0)
    sampler: str = _opt("ddim", SAMPLER_HELP, choices=SAMPLERS)
    allow_base_mismatch: bool = _opt(
        False, "Run an adapter on another base of its family, such as a fine-tune", "--allow-base-mismatch"
    )
    report: Path | None = _opt(None, "HTML page to write about the run: every image, before and after", "--report")
    set: dict[str, Any] = _opt({}, "Task option as KEY=VALUE; repeat for more", "--set", metavar="KEY=VALUE")

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter_memory", parse_size(self.adapter_memory))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class DistillOptions(_Checked):
    """How an adapter is distilled: the data, the method of PAPER.md with its switches, and the training around it."""

    data: str | None = _opt(
        None,
        "leaves, scenes, edits (scenes and their edited twins), removals (a thing is taken away in all of them), or "
        "several such as edits+removals; a folder of images, a folder of pairs (condition/ and target/, or "
        "metadata.jsonl), a .parquet file or a hub id (default: the task's own)",
        panel="Data",
    )
    count: int | None = _opt(
        None, "Number of training pairs (default: all, or what suits the task)", least=1, panel="Data"
    )
    size: int | None = _opt(
        None, "Side of the training crops in pixels (default: what suits task and base)", least=8, panel="Data"
    )
    mirror: bool = _opt(
        False,
        "Train on each pair's mirror image too, left and right exchanged in its prompt: twice the data, for little",
        "--mirror",
        panel="Data",
    )
    workers: int = _opt(0, "Processes that make pairs", least=0, panel="Data")
    pairs: Path | None = _opt(
        None,
        "Folder of encoded pairs that runs on the same data and base can share (default: in the run's own)",
        panel="Data",
    )

    base: str | None = _opt(None, "Frozen base to distil on (default: the one in use)", panel="Adapter")
    kind: str = _opt(
        "",
        "Adapter kind: control (an encoder beside the frozen base), lora (the same, made of the base's own weights and "
        "small deltas), static (sees the condition alone, once per image: next to nothing per step), residual (a "
        "network of its own, once per image, with all the base's detail: to restore pictures) or full (everything) "
        "(default: what --from has, else control for depth, canny and edit and static for others; with other methods "
        "full for codi, control for conditional)",
        panel="Adapter",
    )
    rank: int | None = _opt(None, "Rank of the deltas of kind lora (default: 16)", least=1, most=1024, panel="Adapter")
    blocks: int | None = _opt(
        None,
        "Residual blocks of kind residual at each level, down and up (default: 12)",
        least=1,
        most=64,
        panel="Adapter",
    )
    levels: int | None = _opt(
        None, "Resolutions of kind residual, each half the one before (default: 1)", least=1, panel="Adapter"
    )
    read: bool = _opt(False, "Let kind residual read the prompt", "--read", panel="Adapter")
    fusion: str = _opt("zero_conv", "How the condition enters the base", choices=("zero_conv", "gate"), panel="Adapter")
    gain: bool = _opt(
        True,
        "With kind static, weigh its features by the time; without it, it can be exported",
        panel="Adapter",
    )
    attend: str = _opt(
        "base",
        "Levels of the conditional encoder that read the prompt: those of the base, or all (kinds control and full)",
        choices=("base", "all"),
        panel="Adapter",
    )
    top_down: bool = _opt(
        False,
        "Bring what the encoder's deep levels know to its fine ones, to change what the picture already shows (kinds "
        "control and full; no ControlNet then)",
        panel="Adapter",
    )
    init: str = _opt(
        "pretrained", "Start of the conditional encoder", choices=("pretrained", "random"), panel="Adapter"
    )
    parent: str | None = _opt(
        None, "Version to go on from, or the teacher of cm and gd, as TASK:VERSION", "--from", panel="Adapter"
    )
    allow_base_mismatch: bool = _opt(
        False, "Let --from name an adapter of another base of the family", "--allow-base-mismatch", panel="Adapter"
    )

    method: str = _opt(
        "pe-codi",
        "CoDi for the adapter alone (pe-codi) or for everything (codi); to compare with: plain conditional "
        "fine-tuning, then consistency (cm) or progressive (gd) distillation of it",
        choices=METHODS,
        panel="Loss",
    )
    grid: int = _opt(8, "Points of the time grid that training sees", least=2, panel="Loss")
    dt: int = _opt(1, "Grid points between the student's time and the target's", least=1, panel="Loss")
    ode: str = _opt(
        "own",
        "How z at the earlier time is made: the network's own PF-ODE step, the true noise, or no step at all",
        choices=("own", "noise", "none"),
        panel="Loss",
    )
    guidance: str = _opt(
        "latent",
        "Where the prediction is compared with the target image; relative: in latents, each pair's error relative to "
        "how far the target is from the condition, for edits large and small",
        choices=("latent", "relative", "roundtrip", "pixel", "lpips", "off"),
        panel="Loss",
    )
    guidance_cap: float = _opt(
        5.0,
        "Largest weight of that comparison on an eps-predicting base, where it grows as sigma²/alpha²",
        panel="Loss",
    )
    lpips: Path | None = _opt(None, "Weights of the perceptual network of --guidance lpips", panel="Loss")
    consistency: bool = _opt(True, "Self-consistency in the noise prediction", panel="Loss")
    consistency_weight: float = _opt(1.0, "Weight of the consistency term", least=0.0, panel="Loss")
    consistency_cap: bool = _opt(True, "Bound that term's weight on x at high noise", panel="Loss")
    shared_t: bool = _opt(True, "One time for the whole batch, or one per sample", "--shared-t/--mixed-t", panel="Loss")
    rollout: float | None = _opt(
        None,
        "Share of the steps that start from a state of the sampler itself instead of the noised picture (default: 1 "
        "where sampling begins with a picture under no noise, else 0)",
        least=0.0,
        most=1.0,
        panel="Loss",
    )
    start: float = _opt(
        1.0,
        "Where sampling begins, as a share of the schedule: below 1 with the condition, under --start-noise",
        least=0.02,
        most=1.0,
        panel="Loss",
    )
    start_noise: float | None = _opt(
        None,
        "How much of its time's noise the condition is put under where sampling begins with it; with none, no seed "
        "matters (default: what --from has, else none)",
        least=0.0,
        most=1.0,
        panel="Loss",
    )
    ema: float = _opt(0.99, "Rate of the target network's moving average", least=0.0, most=1.0, panel="Loss")

    train_steps: int | None = _opt(
        None, "Optimiser steps (default: the task's, or until --time-budget ends)", least=1, panel="Training"
    )
    time_budget: float | None = _opt(
        None, "Training time such as 90s, 10m or 1h30m; one step at least", metavar="TIME", panel="Training"
    )
    batch: int = _opt(16, "Pairs per step and device", least=1, panel="Training")
    accumulate: int = _opt(1, "Batches per optimiser step", least=1, panel="Training")
    lr: float = _opt(2e-4, "Learning rate", least=0.0, panel="Training")
    optimizer: str = _opt(
        "adamw",
        "Optimizer; muon learns more in a training of minutes, at a learning rate of 1e-3 to 3e-3",
        choices=OPTIMIZERS,
        panel="Training",
    )
    precision: str = _opt("auto", "Precision of training", choices=DTYPES, panel="Training")
    device: str = _opt("auto", "Where to compute", choices=DEVICES, panel="Training")
    seed: int = _opt(0, "Seed of the data, the noise and the initial weights", least=0, panel="Training")
    resume: bool | Path | None = _opt(
        None, "Go on from the last checkpoint: of --run-dir, or of this task's latest run", "--resume", panel="Training"
    )
    run_dir: Path | None = _opt(
        None, "Folder for checkpoints, logs and samples (default: a new one in the home)", panel="Training"
    )
    sample_every: int = _opt(250, "Steps between sample sheets; 0 makes none", least=0, panel="Training")
    checkpoint_every: int = _opt(100, "Steps between checkpoints", least=1, panel="Training")
    options: dict[str, Any] = _opt({}, "Task option as KEY=VALUE; repeat for more", "--set", metavar="KEY=VALUE")

    def __post_init__(self) -> None:
        if self.time_budget is not None:
            object.__setattr__(self, "time_budget", parse_duration(self.time_budget))
        super().__post_init__()
        if self.dt >= self.grid:
            raise UsageError(f"--dt must be smaller than --grid ({self.grid}), not {self.dt}")
        if self.rollout and not self.shared_t:
            raise UsageError("--rollout needs one time for the whole batch: leave out --mixed-t")
        if self.guidance == "lpips" and self.lpips is None:
            raise UsageError("--guidance lpips needs a network: name its weights with --lpips FILE")
        if self.kind == "side":  # its name in the first edition
            object.__setattr__(self, "kind", "residual")
        self._check_method()
        if not self.kind and not self.parent:
            object.__setattr__(self, "kind", USUAL_KIND.get(self.method, "control"))
        if self.rank and self.kind not in ("", "lora"):
            raise UsageError("--rank has a meaning with --kind lora alone: leave it out")
        for name in ("blocks", "levels", "read"):
            if getattr(self, name) and self.kind not in ("", "residual"):
                raise UsageError(f"--{name} has a meaning with --kind residual alone: leave it out")
        if not self.gain and self.kind not in ("", "static"):
            raise UsageError("--no-gain has a meaning with --kind static alone: leave it out")
        if self.kind == "lora" and self.init == "random":
            raise UsageError("--init random: kind lora is made of the base's own weights; use --kind control")

    def _check_method(self) -> None:
        """Refuses a method without its teacher, of the wrong kind, or with a switch that it does not read."""
        check_kind(self.method, self.kind)
        if self.method in TAUGHT and self.parent is None:
            raise UsageError(
                f"--method {self.method} needs a teacher: train one with --method conditional and name it as "
                "--from TASK:VERSION"
            )
        read = READS.get(self.method)
        for f in fields(self):
            if read is None or f.metadata["panel"] != "Loss" or f.name in ("method", "ema", *read):
                continue
            if getattr(self, f.name) != f.default:
                flag = option_name(f.name, f.metadata["flags"])
                raise UsageError(f"{flag} has no meaning with --method {self.method}: leave it out")


def check_kind(method: str, kind: str, of: str = "--kind") -> None:
    """Refuses a kind that the method cannot train; "" passes. `of` says where the kind comes from.

    Raises:
        UsageError: codi with a frozen base, or pe-codi with one that is trained.
    """
    if method == "codi" and kind not in ("", "full"):
        raise UsageError(
            f"--method codi trains everything, and {of} {kind} keeps the base frozen: use --method pe-codi"
        )
    if method == "pe-codi" and kind == "full":
        raise UsageError(f"--method pe-codi keeps the base frozen, and {of} full trains it: use --method codi")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(_Checked):
    """How an adapter is measured."""

    steps: tuple[int, ...] = _opt((1, 2, 4, 8), "Numbers of steps to compare, as 1,2,4,8", metavar="N,N")
    against: tuple[str, ...] = _opt(
        (),
        "What else stands in the table: base (the base without its adapter), other adapters of the task as depth:2, "
        "both at the same steps or at their own as depth:2@50; bicubic, for superres (default: what costs nothing: "
        "bicubic for superres)",
        metavar="NAME,NAME",
    )
    features: Path | None = _opt(
        None,
        "Network of the Frechet and perceptual distances: a folder such as the bundled one, or a TorchScript file "
        "that maps images (B,3,H,W) in [0,1] to (feature maps, vectors) (default: the bundled one, if there is one)",
    )
    data: str | None = _opt(None, "Held-out images, as in `codi distill --data` (default: test photographs)")
    count: int | None = _opt(None, "Number of images (default: all)", least=1)
    out: Path | None = _opt(None, "Folder for the report and the pictures", "-o", "--out")
    base: str | None = _opt(None, "Base to run on (default: the one in use)")
    sampler: str = _opt("ddim", SAMPLER_HELP, choices=SAMPLERS)
    temperature: float = _opt(1.0, "Scale of the noise that sampling starts from", least=0.0, most=2.0)
    seed: int = _opt(0, "Seed of the noise and the degradations", least=0)
    device: str = _opt("auto", "Where to compute", choices=DEVICES, panel="Machine")
    dtype: str = _opt("auto", "Precision of the networks", choices=DTYPES, panel="Machine")
    set: dict[str, Any] = _opt({}, "Task option as KEY=VALUE; repeat for more", "--set", metavar="KEY=VALUE")

    def __post_init__(self) -> None:
        try:
            steps = self.steps.split(",") if isinstance(self.steps, str) else self.steps
            steps = tuple(dict.fromkeys(int(step) for step in steps))
        except ValueError:
            steps = ()
        if not steps or min(steps) < 1:
            raise UsageError(f"--steps must be numbers from 1 up, as 1,2,4,8, not {self.steps!r}")
        object.__setattr__(self, "steps", steps)
        names = self.against.split(",") if isinstance(self.against, str) else self.against
        object.__setattr__(self, "against", tuple(name.strip() for name in names))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ExportOptions(_Checked):
    """How an adapter is written for another tool: `out` is the folder to make."""

    out: Path
    format: str = _opt("diffusers", "", choices=EXPORT_FORMATS)
    dtype: str = _opt("fp16", "", choices=EXPORT_DTYPES)
    overwrite: bool = False
