"""Options of the other commands, and of the library calls that they make: run, evaluate, import, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from codi_hub.config.model import Options, option
from codi_hub.config.values import (
    ADAPTER_MEMORY,
    MAX_SEED,
    RAY_ADDRESS,
    Bits,
    ByteSize,
    Device,
    Devices,
    ExportFormat,
    ExportPrecision,
    ImageSize,
    Precision,
    ShardOfRun,
)


class RunOptions(Options):
    """How a task is run over images and folders."""

    out: Path | None = option(None, "-o", "--out", "--output")
    """Folder for the outputs, or s3://BUCKET/FOLDER (default: INPUT_TASK/ beside the input)."""
    steps: int | None = option(None, "--steps", ge=1, le=1000)
    """Number of sampling steps (default: the adapter's)."""
    strength: float = option(1.0, "--strength", ge=0.0, le=1.0)
    """Scale of what the adapter adds, from 0 (the base alone) to 1 (default)."""
    prompt: str | None = option(None, "--prompt")
    """Prompt for every image (default: each image's own, from metadata.jsonl or NAME.txt beside NAME.png)."""
    seed: int = option(0, "--seed", ge=0, le=MAX_SEED)
    """Seed; each image's own is derived from it and the file's name."""
    image_seed: int | None = option(None, "--image-seed", ge=0, le=2**63 - 1)
    """Seed of one image itself, as reports and outputs state it, in place of the derived one."""
    variants: int = option(1, "-n", "--variants", ge=1, le=1000, metavar="K")
    """Number of images per input, each with a seed of its own; from the second on named NAME_v2, NAME_v3, ..."""
    size: ImageSize | None = option(None, "--size", metavar="WxH")
    """Width and height of the outputs in pixels, for tasks that draw from a map; its sides are cut to the shape, then
    resized (default: the map's size)."""
    batch: int | None = option(None, "--batch", ge=1)
    """Number of images computed together (default: what fits into memory)."""
    tile: str = option("auto", "--tile", metavar="auto|off|N")
    """Compute large images in overlapping tiles of this side in pixels, which bounds the memory; auto: images of more
    than 2 megapixels in tiles of 1024."""
    suffix: str = option("", "--suffix")
    """Text added to the stem of every output's name."""
    ext: Literal["auto", "png", "jpg", "tif"] = option("auto", "--ext")
    """File type of the outputs."""
    bits: Bits = option(8, "--bits")
    """Bits per channel of the outputs; 16 in PNG and TIFF, from the network's own values."""
    overwrite: bool = option(False, "--overwrite")
    """Replace every output that exists, even files that codi did not write."""
    resume: bool = option(True, "--resume/--no-resume")
    """Skip what an earlier run finished."""
    verify_outputs: bool = option(False, "--verify-outputs")
    """Read every existing output to tell whether it is finished, even if its size and time have not changed."""
    metadata: bool = option(True, "--metadata/--no-metadata")
    """Keep EXIF, XMP and text of the inputs, and write into PNG and JPEG what made them."""
    recursive: bool = option(True, "--recursive/--no-recursive")
    """Include subfolders."""
    dry_run: bool = option(False, "--dry-run")
    """Print what would be computed, skipped or refused, and stop."""
    base: str | None = option(None, "--base")
    """Base to run on (default: the one in use)."""
    device: Device = option("auto", "--device", panel="Machine", metavar="NAME")
    """auto, cpu, cuda, cuda:N or mps."""
    devices: Devices = option((), "--devices", panel="Machine", metavar="NAME,NAME")
    """One process per device, such as cuda:0,cuda:1 or cpu,cpu (default: this process on --device)."""
    shard: ShardOfRun | None = option(None, "--shard", panel="Machine", metavar="I/N")
    """Make part I of N of the images, by the hash of their names; the N parts together are the run."""
    ray: str | None = option(None, "--ray", panel="Machine", metavar="ADDRESS", pattern=RAY_ADDRESS)
    """Make the images by Ray: local (a cluster of this process), auto (the one on this machine) or HOST:PORT."""
    dtype: Precision = option("auto", "--dtype", panel="Machine")
    """Precision of the networks."""
    compile: bool = option(False, "--compile", panel="Machine")
    """Compile the networks: minutes at the start, then about a sixth faster; for long runs."""
    adapter_memory: ByteSize = option(ADAPTER_MEMORY, "--adapter-memory", panel="Machine", metavar="SIZE")
    """Memory for adapters that stay loaded between jobs, such as 500MB (default: 2GB)."""
    temperature: float = option(1.0, "--temperature", ge=0.0, le=2.0)
    """Scale of the initial noise."""
    sampler: str = option("ddim", "--sampler")
    """ddim (along the ODE), renoise (fresh noise between steps) or dpmpp (DPM-Solver++(2M), for many steps)."""
    guidance_scale: float = option(1.0, "--guidance-scale", ge=1.0, le=100.0)
    """Scale of classifier-free guidance (default: 1, none).

    Above 1 for adapters that were trained without distillation, at twice the computation."""
    negative_prompt: str | None = option(None, "--negative-prompt")
    """With guidance, the text that images are led away from (default: none)."""
    allow_base_mismatch: bool = option(False, "--allow-base-mismatch")
    """Run an adapter on another base of its family, such as a fine-tune."""
    report: Path | None = option(None, "--report")
    """HTML page to write about the run: every image, before and after."""
    set: dict[str, Any] = option({}, "--set", metavar="KEY=VALUE")
    """Task option as KEY=VALUE; repeat for more."""


def _steps(value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        steps = tuple(dict.fromkeys(int(part) for part in parts))
    except (TypeError, ValueError):
        steps = ()
    if not steps or min(steps) < 1:
        raise ValueError("numbers from 1 up, as 1,2,4,8")
    return steps


def _names(value: Any) -> tuple[str, ...]:
    """Return names, also of texts with several of them; a text with "=" is one, since a command may have commas."""
    texts = [value] if isinstance(value, str) else value
    parts = [part for text in map(str, texts) for part in ([text] if "=" in text else text.split(","))]
    return tuple(part.strip() for part in parts)


class EvalOptions(Options):
    """How an adapter is measured."""

    steps: Annotated[tuple[int, ...], BeforeValidator(_steps)] = option((1, 2, 4, 8), "--steps", metavar="N,N")
    """Numbers of sampling steps to compare, as 1,2,4,8."""
    against: Annotated[tuple[str, ...], BeforeValidator(_names)] = option(
        (), "--against", metavar="NAME,NAME|NAME=TOOL", repeats=True
    )
    """What else stands in the table: base (the base without its adapter), other adapters of the task as depth:2, both
    at the same steps or at their own as depth:2@50, and the task's baselines such as bicubic for superres (default:
    baselines that cost nothing); for superres and inpaint another tool as NAME=FOLDER of its outputs for the inputs of
    --save-images, or as NAME='COMMAND {input} {output}', with {mask} for inpaint; repeat for more."""
    features: Path | None = option(None, "--features")
    """Feature network of the Frechet and perceptual distances: a folder such as the bundled one, or a TorchScript file
    that maps images (B,3,H,W) in [0,1] to (feature maps, vectors) (default: the bundled one, if there is one)."""
    metrics: tuple[str, ...] = option((), "--metric", metavar="NAME[=WEIGHTS]", repeats=True)
    """Further metric, with its weights where no installed package has them: st-lpips, frechet-imagenet (these two come
    with the extra eval), lpips, dists, fid, cmmd, clip-i, clip-t, dino or niqe; repeat for more."""
    data: str | None = option(None, "--data")
    """Held-out images, as in `codi distill --data` (default: test photographs)."""
    count: int | None = option(None, "--count", ge=1)
    """Number of images (default: all)."""
    out: Path | None = option(None, "-o", "--out")
    """Folder for the report and the images."""
    save_images: Path | None = option(None, "--save-images", metavar="DIR")
    """Folder for every measured image, one subfolder per row and one of the references, for other tools to measure,
    and one of the inputs, for other tools to process."""
    import_metrics: Path | None = option(None, "--import-metrics", metavar="CSV")
    """Values that another tool measured on those images: columns row, image, and one per metric."""
    base: str | None = option(None, "--base")
    """Base to run on (default: the one in use)."""
    sampler: str = option("ddim", "--sampler")
    """ddim (along the ODE), renoise (fresh noise between steps) or dpmpp (DPM-Solver++(2M), for many steps)."""
    temperature: float = option(1.0, "--temperature", ge=0.0, le=2.0)
    """Scale of the initial noise."""
    guidance_scale: float = option(1.0, "--guidance-scale", ge=1.0, le=100.0)
    """Scale of classifier-free guidance (default: 1, none).

    Above 1 for adapters that were trained without distillation, at twice the computation."""
    negative_prompt: str | None = option(None, "--negative-prompt")
    """With guidance, the text that images are led away from (default: none)."""
    allow_base_mismatch: bool = option(False, "--allow-base-mismatch")
    """Measure an adapter on another base of its family, such as a fine-tune."""
    seed: int = option(0, "--seed", ge=0, le=MAX_SEED)
    """Seed of the noise and the degradations."""
    device: Device = option("auto", "--device", panel="Machine", metavar="NAME")
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Precision = option("auto", "--dtype", panel="Machine")
    """Precision of the networks."""
    set: dict[str, Any] = option({}, "--set", metavar="KEY=VALUE")
    """Task option as KEY=VALUE; repeat for more."""


class ImportOptions(Options):
    """How another tool's ControlNet becomes a version."""

    task: str = option(..., "--task")
    """Task whose version it becomes; one that does not exist is registered, like pairs."""
    name: str | None = option(None, "--name", metavar="TAG")
    """Tag of the version, by which it is TASK:TAG."""
    bgr: bool = option(False, "--bgr")
    """It was trained on conditions whose channels are blue, green, red, as OpenCV reads images."""
    base: str | None = option(None, "--base")
    """Base that it is for (default: the one in use)."""


class ExportOptions(Options):
    """How an adapter is written for another tool."""

    out: Path = option(..., "-o", "--out")
    """Folder to write; with --format codi also a zip, by its name."""
    format: ExportFormat = option("diffusers", "--format")
    """Format: diffusers is a folder of the base's own pipeline: a ControlNet, or of kind concat a wider network; ldm a
    ControlNet in one file with the original names, as A1111 reads it; comfyui one file and a workflow; peft a LoRA, of
    kind concat; codi is what `codi install` takes."""
    dtype: ExportPrecision = option("fp16", "--dtype")
    """Precision of the weights."""
    overwrite: bool = option(False, "--overwrite")
    """Replace an earlier export."""
    allow_base_mismatch: bool = option(False, "--allow-base-mismatch")
    """Export an adapter for another base of its family, such as a fine-tune."""
