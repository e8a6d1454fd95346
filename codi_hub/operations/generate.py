"""Generation of images in memory: arguments per image, adapters of several tasks in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from codi_hub.diffusion import SAMPLERS
from codi_hub.errors import UsageError, one_line, prefixed
from codi_hub.images.filters import to_uint8
from codi_hub.images.io import LoadedImage, decode_image, with_alpha
from codi_hub.images.sidecars import clean_prompt
from codi_hub.inference.tiling import Tiling, finish_output, generate_tiled
from codi_hub.operations.context import Context, check_guidance, check_steps, check_strength, check_variants
from codi_hub.seeds import image_seed, variant_seed

if TYPE_CHECKING:
    from codi_hub.inference.engine import Engine
    from codi_hub.inference.models import Loaded
    from codi_hub.registry import AdapterRow
    from codi_hub.tasks import Prepared, Task

AnyImage = Image.Image | np.ndarray
"""A PIL image, or an array: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or what the task's `prepare` takes."""


@dataclass(frozen=True)
class GenerateOptions:
    """Arguments of `Hub.generate`; see there. `masks` to `seeds` and `strength` are one for all images or one each."""

    masks: Any = None
    prompts: Any = None
    negative_prompts: Any = None
    seeds: Any = None
    variants: int = 1
    steps: int | None = None
    strength: Any = 1.0
    options: Mapping[str, Any] | None = None
    sampler: str = "ddim"
    temperature: float = 1.0
    guidance_scale: float = 1.0
    tile: str = "auto"
    batch: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    allow_base_mismatch: bool = False


@dataclass(frozen=True)
class Input:
    """An image with everything that its output depends on."""

    task: Task
    row: AdapterRow
    prepared: Prepared
    image: LoadedImage
    as_array: bool
    prompt: str
    negative_prompt: str | None
    seed: int
    steps: int
    strength: float


def generate(context: Context, refs: str | Sequence[str], images: Any, options: GenerateOptions) -> Any:
    """Generate an image per input; see `Hub.generate`."""
    from codi_hub.inference.models import Placement

    single = isinstance(images, Image.Image | np.ndarray)
    _check(options)
    tiling = Tiling.parse(options.tile)
    inputs = _inputs(context, refs, [images] if single else list(images), options)
    for row, task in {entry.row.id: (entry.row, entry.task) for entry in inputs}.values():
        context.models.check(row, task, allow_base_mismatch=options.allow_base_mismatch)
    names = ("device", "dtype", "allow_base_mismatch")
    placement = Placement(**{name: getattr(options, name) for name in names})
    loaded = {row.id: context.models.load(row, placement) for row in {e.row.id: e.row for e in inputs}.values()}
    outputs = _generate(inputs, loaded, tiling, options)
    finished: list[Any] = [_finish(entry, output) for entry, output in zip(inputs, outputs, strict=True)]
    if (count := options.variants) > 1:
        finished = [finished[k : k + count] for k in range(0, len(finished), count)]
    return finished[0] if single else finished


def _generate(
    inputs: Sequence[Input], loaded: Mapping[int, Loaded], tiling: Tiling | None, options: GenerateOptions
) -> list[np.ndarray]:
    """Return the outputs of the networks, float32 (H, W, 3) in [0, 1], or finished uint8 ones of tiled images."""
    from codi_hub.inference.engine import Engine, Request, Sampling

    engine = Engine(loaded[inputs[0].row.id].base)
    outputs: dict[int, np.ndarray] = {}
    whole: dict[int, list[int]] = {}
    for k, entry in enumerate(inputs):
        if tiling is not None and tiling.applies(entry.prepared.size):
            outputs[k] = _generate_tiles(engine, entry, loaded[entry.row.id].adapter, tiling, options)
        else:
            whole.setdefault(entry.steps, []).append(k)
    for steps, indices in whole.items():
        requests = [
            Request(
                e.prepared.condition,
                loaded[e.row.id].adapter,
                e.prompt,
                e.seed,
                e.strength,
                negative_prompt=e.negative_prompt,
            )
            for e in (inputs[k] for k in indices)
        ]
        sampling = Sampling(steps, options.sampler, options.temperature, options.guidance_scale)
        outputs.update(zip(indices, engine.generate(requests, sampling, batch=options.batch).images, strict=True))
    return [outputs[k] for k in range(len(inputs))]


def _generate_tiles(engine: Engine, entry: Input, adapter: Any, tiling: Tiling, options: GenerateOptions) -> np.ndarray:
    from codi_hub.inference.engine import AdapterGenerator, Sampling

    sampling = Sampling(entry.steps, options.sampler, options.temperature, options.guidance_scale)
    generator = AdapterGenerator(engine, adapter, sampling, entry.strength, entry.negative_prompt)

    def tiles(conditions: list[np.ndarray], windows: list[Any]) -> Sequence[np.ndarray]:
        prompts, seeds = [entry.prompt] * len(windows), [entry.seed] * len(windows)
        return generator.generate(conditions, prompts, seeds, batch=options.batch, windows=windows).images

    return generate_tiled(entry.prepared, entry.task, tiles, tiling, options.batch)


def _finish(entry: Input, output: np.ndarray) -> AnyImage:
    """Finish an output and return it in the form of its input, with the input's alpha channel and ICC profile."""
    alpha = None if entry.prepared.opaque else entry.image.alpha
    pixels = with_alpha(finish_output(entry.task, output, entry.prepared), alpha)
    if entry.as_array:
        return pixels
    image = Image.fromarray(pixels)
    if entry.image.icc is not None:
        image.info["icc_profile"] = entry.image.icc
    return image


def _inputs(
    context: Context, refs: str | Sequence[str], images: Sequence[Any], options: GenerateOptions
) -> list[Input]:
    if not images:
        raise UsageError("images: at least one is needed")
    count = len(images)
    names = _each("ref", refs, count, str)
    masks = _each("masks", options.masks, count, Image.Image | np.ndarray)
    prompts = _each("prompts", options.prompts, count, str)
    negatives = _each("negative_prompts", options.negative_prompts, count, str)
    seeds = _each("seeds", options.seeds, count, int)
    strengths = _each("strength", options.strength, count, int | float)
    mismatch = options.allow_base_mismatch
    rows = {name: context.resolve(name, allow_base_mismatch=mismatch) for name in dict.fromkeys(names)}
    tasks = {name: context.catalog.load_task(row.task, dict(options.options or {})) for name, row in rows.items()}
    inputs = []
    for k, (name, image, mask) in enumerate(zip(names, images, masks, strict=True)):
        row, task = rows[name], tasks[name]
        steps = options.steps if options.steps is not None else row.steps
        check_steps(steps, row)
        with prefixed(f"images[{k}]"):
            prompt = clean_prompt(prompts[k] or "", "the prompt") or ""
            if task.needs_prompt and not prompt:
                raise UsageError(f"task {row.task} needs a prompt for every image")
            negative = clean_prompt(negatives[k] or "", "the negative prompt")
            check_guidance(options.guidance_scale, negative, row)
            strength = 1.0 if strengths[k] is None else strengths[k]
            check_strength(strength, row)
            check_variants(options.variants, options.sampler, options.temperature, row)
            own = image_seed(0, str(k)) if seeds[k] is None else _check_seed(seeds[k])
            loaded = _load(image, mask, task)
            pixels = loaded.with_alpha() if task.reads_alpha else loaded.image
            as_array = isinstance(image, np.ndarray)
            for seed in (variant_seed(own, number) for number in range(options.variants)):
                prepared = task.prepare(pixels, rng=np.random.default_rng(seed))
                inputs.append(Input(task, row, prepared, loaded, as_array, prompt, negative, seed, steps, strength))
    return inputs


def _each(name: str, value: Any, count: int, kind: Any) -> list[Any]:
    """Return a value per image, of one value for all or a sequence with one each; None stays None."""
    if value is None or isinstance(value, kind):
        return [value] * count
    if not isinstance(value, Sequence) or len(value) != count:
        if not isinstance(value, Sequence):
            raise UsageError(f"{name}: {_named(value)} cannot be used")
        values = f"{len(value)} value{'s' * (len(value) != 1)} for {count} image{'s' * (count != 1)}"
        raise UsageError(f"{name}: {values}: give one for all, or one each")
    for k, one in enumerate(value):
        if not isinstance(one, kind) and (one is not None or name == "ref"):
            raise UsageError(f"{name}[{k}]: {_named(one)} cannot be used")
    return list(value)


def _named(value: Any) -> str:
    return one_line(f"{type(value).__name__} {value!r}", 40)


def _check(options: GenerateOptions) -> None:
    SAMPLERS.check(options.sampler, "sampler")
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"batch {options.batch}: at least 1")


def _check_seed(seed: int) -> int:
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed}: a number from 0 to 2^63 - 1")
    return seed


def _load(image: Any, mask: AnyImage | None, task: Task) -> LoadedImage:
    """Return an input as a file would be loaded, with the mask as its alpha channel (0 in the hole)."""
    if mask is not None and not task.reads_alpha:
        raise UsageError(f"masks: task {task.name} takes no mask")
    if isinstance(image, Image.Image):
        loaded = decode_image(image.copy())  # decoding closes its image
    elif not isinstance(image, np.ndarray):
        raise UsageError(f"a {type(image).__name__} is not an image: give a PIL image or a numpy array")
    elif image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        if not image.size:
            raise UsageError(f"an array of shape {image.shape} has no pixels")
        loaded = decode_image(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))
    else:
        loaded = LoadedImage(image)
    if mask is not None:
        if not isinstance(loaded.image, Image.Image):
            raise UsageError("masks: the image must be a PIL image or a uint8 array")
        loaded.alpha = _alpha(mask, loaded.image.size)
    return loaded


def _alpha(mask: AnyImage, size: tuple[int, int]) -> Image.Image:
    """Return a mask, white in the hole, as an alpha channel, transparent in the hole."""
    if isinstance(mask, Image.Image):
        pixels = np.asarray(decode_image(mask.copy()).image.convert("L"))  # type: ignore[union-attr]
    else:
        pixels = mask[..., 0] if mask.shape[2:] == (1,) else mask
        pixels = pixels if pixels.dtype == np.uint8 else to_uint8(pixels.astype(np.float32))
    if pixels.ndim != 2 or pixels.shape[::-1] != size:
        raise UsageError(
            f"masks: a mask of {'x'.join(map(str, pixels.shape[::-1]))} pixels for an image of {size[0]}x{size[1]}"
        )
    return Image.fromarray(255 - pixels)
