"""Generation of images in memory: arguments per image, one or several conditions each, adapters of any tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from codi_hub.config.values import ADAPTER_MEMORY
from codi_hub.diffusion import SAMPLERS
from codi_hub.errors import UsageError, one_line, prefixed
from codi_hub.images.filters import to_uint8
from codi_hub.images.io import LoadedImage, decode_image, with_alpha
from codi_hub.images.sidecars import clean_prompt
from codi_hub.inference.tiling import Tiling, finish_output, generate_tiled
from codi_hub.operations.context import (
    Context,
    check_guidance,
    check_size,
    check_steps,
    check_strength,
    check_together,
    check_variants,
)
from codi_hub.seeds import image_seed, variant_seed

if TYPE_CHECKING:
    from codi_hub.adapters.adapter import Adapter
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
    size: tuple[int, int] | None = None
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
    adapter_memory: int = ADAPTER_MEMORY
    allow_base_mismatch: bool = False


@dataclass(frozen=True)
class Condition:
    """One condition of an image: what a task made of an input, and the adapter that takes it."""

    task: Task
    row: AdapterRow
    prepared: Prepared
    image: LoadedImage
    strength: float


@dataclass(frozen=True)
class Input:
    """An image with everything that its output depends on; the first condition's task finishes it."""

    conditions: Sequence[Condition]
    prepared: Prepared
    as_array: bool
    prompt: str
    negative_prompt: str | None
    seed: int
    steps: int

    @property
    def task(self) -> Task:
        """The task that finishes the output."""
        return self.conditions[0].task


def generate(context: Context, refs: Any, images: Any, options: GenerateOptions) -> Any:
    """Generate an image per input; see `Hub.generate`."""
    from codi_hub.inference.models import Placement

    single = isinstance(images, Image.Image | np.ndarray)
    _check(options)
    tiling = Tiling.parse(options.tile)
    inputs = _inputs(context, refs, [images] if single else list(images), options)
    rows = {one.row.id: (one.row, one.task) for entry in inputs for one in entry.conditions}
    for row, task in rows.values():
        context.models.check(row, task, allow_base_mismatch=options.allow_base_mismatch)
    names = ("device", "dtype", "adapter_memory", "allow_base_mismatch")
    placement = Placement(**{name: getattr(options, name) for name in names})
    loaded = {row.id: context.models.load(row, placement) for row, _ in rows.values()}
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

    engine = Engine(loaded[inputs[0].conditions[0].row.id].base)
    outputs: dict[int, np.ndarray] = {}
    whole: dict[int, list[int]] = {}
    for k, entry in enumerate(inputs):
        if tiling is not None and tiling.applies(entry.prepared.size):
            outputs[k] = _generate_tiles(engine, entry, _adapters(entry, loaded), tiling, options)
        else:
            whole.setdefault(entry.steps, []).append(k)
    for steps, indices in whole.items():
        requests = []
        for entry in (inputs[k] for k in indices):
            (adapter, strength), *also = _adapters(entry, loaded)
            condition, negative = entry.prepared.conditions, entry.negative_prompt
            request = Request(condition, adapter, entry.prompt, entry.seed, strength, None, negative, tuple(also))
            requests.append(request)
        sampling = Sampling(steps, options.sampler, options.temperature, options.guidance_scale)
        outputs.update(zip(indices, engine.generate(requests, sampling, batch=options.batch).images, strict=True))
    return [outputs[k] for k in range(len(inputs))]


def _adapters(entry: Input, loaded: Mapping[int, Loaded]) -> list[tuple[Adapter, float]]:
    return [(loaded[one.row.id].adapter, one.strength) for one in entry.conditions]


def _generate_tiles(
    engine: Engine, entry: Input, adapters: Sequence[tuple[Adapter, float]], tiling: Tiling, options: GenerateOptions
) -> np.ndarray:
    from codi_hub.inference.engine import AdapterGenerator, Sampling

    sampling = Sampling(entry.steps, options.sampler, options.temperature, options.guidance_scale)
    (adapter, strength), *also = adapters
    generator = AdapterGenerator(engine, adapter, sampling, strength, entry.negative_prompt, tuple(also))

    def tiles(conditions: list[np.ndarray], windows: list[Any]) -> Sequence[np.ndarray]:
        prompts, seeds = [entry.prompt] * len(windows), [entry.seed] * len(windows)
        return generator.generate(conditions, prompts, seeds, batch=options.batch, windows=windows).images

    return generate_tiled(entry.prepared, entry.task, tiles, tiling, options.batch)


def _finish(entry: Input, output: np.ndarray) -> AnyImage:
    """Finish an output and return it in the form of its input, with the input's alpha channel and ICC profile."""
    source = entry.conditions[0].image
    alpha = None if entry.prepared.opaque else source.alpha
    pixels = with_alpha(finish_output(entry.task, output, entry.prepared), alpha)
    if entry.as_array:
        return pixels
    image = Image.fromarray(pixels)
    if source.icc is not None:
        image.info["icc_profile"] = source.icc
    return image


def _inputs(context: Context, refs: Any, images: Sequence[Any], options: GenerateOptions) -> list[Input]:
    if not images:
        raise UsageError("images: at least one is needed")
    count = len(images)
    images = [one if isinstance(one, list | tuple) else [one] for one in images]
    names = _each_condition("ref", refs, images, str)
    masks = _each_condition("masks", options.masks, images, Image.Image | np.ndarray)
    strengths = _each_condition("strength", options.strength, images, int | float)
    prompts = _each("prompts", options.prompts, count, str)
    negatives = _each("negative_prompts", options.negative_prompts, count, str)
    seeds = _each("seeds", options.seeds, count, int)
    mismatch = options.allow_base_mismatch
    unique = dict.fromkeys(name for own in names for name in own)
    rows = {name: context.resolve(name, allow_base_mismatch=mismatch) for name in unique}
    tasks = {name: context.catalog.load_task(row.task, dict(options.options or {})) for name, row in rows.items()}
    inputs = []
    for k in range(count):
        own = [rows[name] for name in names[k]]
        steps = options.steps if options.steps is not None else own[0].steps
        check_steps(steps, own[0])
        with prefixed(f"images[{k}]"):
            if len(own) > 1:
                check_together(context, own)
            prompt = clean_prompt(prompts[k] or "", "the prompt") or ""
            needing = [row.task for row, name in zip(own, names[k], strict=True) if tasks[name].needs_prompt]
            if needing and not prompt:
                raise UsageError(f"task {needing[0]} needs a prompt for every image")
            negative = clean_prompt(negatives[k] or "", "the negative prompt")
            for name, row in zip(names[k], own, strict=True):
                check_guidance(options.guidance_scale, negative, row)
                check_size(options.size, tasks[name])
                check_variants(options.variants, options.sampler, options.temperature, row)
            first_seed = image_seed(0, str(k)) if seeds[k] is None else _check_seed(seeds[k])
            for seed in (variant_seed(first_seed, number) for number in range(options.variants)):
                conditions = [
                    _condition(tasks[name], rows[name], _load(image, mask, tasks[name], options.size), strength, seed)
                    for name, image, mask, strength in zip(names[k], images[k], masks[k], strengths[k], strict=True)
                ]
                first, *others = (one.prepared for one in conditions)
                prepared = first.with_further(others) if others else first
                as_array = isinstance(images[k][0], np.ndarray)
                inputs.append(Input(conditions, prepared, as_array, prompt, negative, seed, steps))
    return inputs


def _condition(task: Task, row: AdapterRow, loaded: LoadedImage, strength: float | None, seed: int) -> Condition:
    strength = 1.0 if strength is None else strength
    check_strength(strength, row)
    pixels = loaded.with_alpha() if task.reads_alpha else loaded.image
    return Condition(task, row, task.prepare(pixels, rng=np.random.default_rng(seed)), loaded, strength)


def _each_condition(name: str, value: Any, images: Sequence[Sequence[Any]], kind: Any) -> list[list[Any]]:
    """Return a value per condition of each image, of one for all, one per image, or one per condition of an image."""
    values = _each(name, value, len(images), kind, nested=True)
    return [
        _each(f"{name}[{k}]", own, len(conditions), kind, "condition")
        for k, (own, conditions) in enumerate(zip(values, images, strict=True))
    ]


def _each(name: str, value: Any, count: int, kind: Any, of: str = "image", *, nested: bool = False) -> list[Any]:
    """Return a value per image, of one value for all or a sequence with one each; None stays None.

    Args:
        of: what there are `count` of.
        nested: whether a value of the sequence may be a list or a tuple.
    """
    if value is None or isinstance(value, kind):
        return [value] * count
    if not isinstance(value, Sequence) or len(value) != count:
        if not isinstance(value, Sequence):
            raise UsageError(f"{name}: {_named(value)} cannot be used")
        values = f"{len(value)} value{'s' * (len(value) != 1)} for {count} {of}{'s' * (count != 1)}"
        raise UsageError(f"{name}: {values}: give one for all, or one each")
    for k, one in enumerate(value):
        usable = isinstance(one, kind) or (nested and isinstance(one, list | tuple))
        if not usable and (one is not None or name.startswith("ref")):
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


def _load(image: Any, mask: AnyImage | None, task: Task, size: tuple[int, int] | None) -> LoadedImage:
    """Return an input as a file would be loaded, with the mask as its alpha channel (0 in the hole), and resized."""
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
    return loaded if size is None else loaded.fitted(size)


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
