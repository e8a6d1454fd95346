"""Few-step inference: requests in, images out. The only place that batches."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codi_hub import seeds
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.prompts import PromptWarnings
from codi_hub.backbones.values import Prompt
from codi_hub.diffusion import SAMPLERS
from codi_hub.diffusion.guidance import Network, guided
from codi_hub.errors import one_line
from codi_hub.inference.requests import Request, check_adapters, mixed_batch, strengths
from codi_hub.inference.tiling import Window

WHOLE_NOISE_KEPT = 4  # noise tensors of whole images that are kept for their next tiles
AUTO_PIXELS = {"cpu": 1 << 20, "mps": 2 << 20, "cuda": 16 << 20}  # output pixels of an automatic batch


@dataclass(frozen=True)
class Sampling:
    """How steps are taken.

    Attributes:
        steps: number of network evaluations per image.
        sampler: a name in `codi_hub.diffusion.SAMPLERS`.
        temperature: scale of the noise. Below 1 the image moves from a sample towards the mean of what the condition
            allows: less invented detail, fewer wrong pixels.
        guidance_scale: w of classifier-free guidance; above 1 every evaluation computes two rows per image.
    """

    steps: int = 4
    sampler: str = "ddim"
    temperature: float = 1.0
    guidance_scale: float = 1.0

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is applied."""
        return self.guidance_scale != 1


@dataclass(frozen=True)
class Generated:
    """Images in the order of their requests, float32 (H, W, 3) in [0, 1], and the sizes of the batches computed."""

    images: list[np.ndarray]
    batches: list[int]


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what compiles `function` at its first call. Networks are its arguments: adapters of a kind share it."""
    warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # remarks on diffusers' code
    return torch.compile(function)


class Engine:
    """Runs adapters on one loaded base.

    Args:
        base: the base.
        compile: compile the networks at the first images; where that fails, `on_message` gets a line and they run as
            they are. A batch smaller than one before it, of the same sides, is filled up, since another size would be
            compiled anew.
        on_message: takes lines for people, among them one per prompt that is too long.
    """

    def __init__(
        self, base: Backbone, *, compile: bool = False, on_message: Callable[[str], object] = lambda text: None
    ) -> None:
        self.base, self.compile, self.on_message = base, compile, on_message
        self._warnings = PromptWarnings(base, on_message)
        self._filled: dict[tuple[int, ...], int] = {}  # images in the largest batch compiled, by their sides
        self._limits: dict[tuple[int, ...], int] = {}  # batch sizes found to fit the memory, by the images' sides
        self._whole_noise: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()

    def auto_batch(self, height: int, width: int, *, guided: bool = False) -> int:
        """Return how many images of a size one batch holds unless told otherwise; with guidance half as many."""
        pixels = AUTO_PIXELS.get(self.base.device.type, AUTO_PIXELS["cpu"]) // (1 + guided)
        most = max(1, pixels // max(1, height * width))
        return min(most, self._limits.get((height, width), most))

    def generate(
        self, requests: Sequence[Request], sampling: Sampling = Sampling(), *, batch: int | None = None
    ) -> Generated:
        """Generate one image per request; requests of one size share batches, whatever their adapters.

        Args:
            requests: of any sizes.
            sampling: steps, sampler and temperature of all.
            batch: images per batch at most; None: what `auto_batch` says. A batch that does not fit the memory is
                halved and tried again, and later ones of its size are no larger.

        Raises:
            UsageError: an unknown sampler, more steps than the schedule has, a strength that an adapter lacks, several
                conditions for an adapter that takes no other beside its own, or an image that is larger than the base
                takes.
            MemoryError: one image alone does not fit.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for k, request in enumerate(requests):
            check_adapters(request)
            self.base.latents.check(*request.condition.shape[:2])
            groups.setdefault(request.group, []).append(k)
        images: dict[int, np.ndarray] = {}
        sizes: list[int] = []
        for (height, width, *_), rows in groups.items():
            left = list(rows)
            while left:
                most = batch or self.auto_batch(height, width, guided=sampling.guided)
                part = left[: min(most, self._limits.get((height, width), most))]
                outputs, part = self._fitting(requests, part, sampling)
                images.update(zip(part, outputs, strict=True))
                sizes.append(len(part))
                left = left[len(part) :]
        return Generated([images[k] for k in range(len(requests))], sizes)

    def _fitting(
        self, requests: Sequence[Request], rows: list[int], sampling: Sampling
    ) -> tuple[list[np.ndarray], list[int]]:
        """Generate as many of the rows as fit the memory: all, else half of them, and so on."""
        while True:
            try:
                return self._batch([requests[k] for k in rows], sampling), rows
            except (MemoryError, torch.OutOfMemoryError) as error:
                failure: BaseException | None = error
            except RuntimeError as error:
                if "allocate" not in str(error):  # torch's CPU allocator has no class of its own
                    raise
                failure = error
            if len(rows) == 1:
                raise MemoryError("one image alone does not fit the memory") from failure
            failure = None  # its frames keep the batch's tensors
            rows = rows[: len(rows) // 2]
            size = requests[rows[0]].condition.shape[:2]
            self._limits[size] = len(rows)
            self._filled.pop(size, None)  # compiled batches are filled up, and would stay too large
            if self.base.device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[np.ndarray]:
        """Generate one batch of requests that have one size and one start."""
        base, count = self.base, len(requests)
        height, width = requests[0].condition.shape[:2]
        mixed = len({adapter for request in requests for adapter, _ in request.adapters}) > 1
        mixed = mixed or any(request.also for request in requests)  # two conditions of one adapter
        compile = self.compile and not mixed
        if compile:
            missing = self._filled.get((height, width), 0) - count
            requests = [*requests, *[requests[-1]] * max(0, missing)]
        rows = [*requests, *requests] if sampling.guided else requests  # first without the prompts, then with them
        adapter: Any = mixed_batch(rows) if mixed else rows[0].adapter
        condition = self._conditions(rows, mixed=mixed)
        decode = self._compiled(type(base).decode, compile)
        schedule = base.schedule_for(*padded_size(height, width, base.latents.multiple))
        denoise = schedule.denoiser(self._network(adapter, rows, condition, sampling, compile))

        def noise(number: int) -> Tensor:
            """Return the noise of a sampling step; 0 is the initial noise."""
            return sampling.temperature * self._noise(requests, number).to(base.device)

        first = noise(0)
        initial = adapter.initial_latents(base, condition, torch.cat([first, first]) if sampling.guided else first)
        initial = initial[: len(requests)]
        times = schedule.grid(sampling.steps, adapter.start)
        sample = SAMPLERS.load(sampling.sampler)
        x_hat = sample(denoise, initial, times, schedule, lambda number: noise(number + 1))
        images = decode(base, x_hat.contiguous(memory_format=torch.channels_last))[:, :, :height, :width]
        if compile:
            self._filled[height, width] = len(images)
        return list(images.permute(0, 2, 3, 1).cpu().numpy()[:count])

    def _network(
        self, adapter: Any, rows: Sequence[Request], condition: Any, sampling: Sampling, compile: bool
    ) -> Network:
        """Return the network with its prompts and conditions bound; with guidance, one row for two of `rows`."""
        base, predict = self.base, self._compiled(type(adapter).predict, compile)
        self._warnings.check(text for row in rows for text in (row.prompt, row.negative_prompt))
        if sampling.guided:
            half = len(rows) // 2
            prompt = Prompt.cat([_negative_prompts(rows[:half], base), base.embed([row.prompt for row in rows[half:]])])
        else:
            prompt = base.embed([row.prompt for row in rows])
        prepared = adapter.prepare(base, condition, prompt)
        strength = strengths(rows, base)

        def network(z_t: Tensor, t: Tensor) -> Tensor:
            return predict(adapter, base, z_t.to(base.dtype), t, prompt, prepared, strength)

        return guided(network, sampling.guidance_scale) if sampling.guided else network

    def _compiled(self, function: Callable[..., Tensor], compile: bool) -> Callable[..., Tensor]:
        """Return the function itself, or compiled; where that fails, everything goes on uncompiled."""
        if not compile:
            return function
        from torch._dynamo.exc import TorchDynamoException

        def attempt(*arguments: Any) -> Tensor:
            if self.compile:
                try:
                    return compiled(function)(*arguments)
                except TorchDynamoException as error:
                    self.compile = False
                    self.on_message(f"compile: going on without it: {one_line(error, 120)}")
            return function(*arguments)

        return attempt

    def _conditions(self, requests: Sequence[Request], *, mixed: bool) -> Any:
        """Return the conditions (B, K, H, W), or (1, K, H, W) each where there are several adapters."""

        def tensor(images: Sequence[np.ndarray]) -> Tensor:
            stacked = pad(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), self.base.latents.multiple)
            return stacked.to(self.base.device, self.base.dtype, memory_format=torch.channels_last)

        images = [condition for request in requests for condition in request.conditions]
        return [tensor([image]) for image in images] if mixed else tensor(images)

    def _noise(self, requests: Sequence[Request], step: int) -> Tensor:
        """Return (B, C, h, w) on the CPU; of a tile, its part of the whole image's noise."""
        latents, parts = self.base.latents, []
        for request in requests:
            size = latents.size(*request.condition.shape[:2])
            seed = seeds.sampling_noise(request.seed, step)
            if request.window is None:
                parts.append(gaussian((latents.channels, *size), seed))
                continue
            top, left, *whole = request.window
            key = (seed, *latents.size(*whole))
            if key not in self._whole_noise:
                while len(self._whole_noise) >= WHOLE_NOISE_KEPT:
                    self._whole_noise.popitem(last=False)
                self._whole_noise[key] = gaussian((latents.channels, *key[1:]), seed)
            y, x = top // latents.factor, left // latents.factor
            parts.append(self._whole_noise[key][:, y : y + size[0], x : x + size[1]])
        return torch.stack(parts)


@dataclass(frozen=True)
class AdapterGenerator:
    """An adapter on its base at fixed sampling settings; with `also`, see `Request`, several for one image."""

    engine: Engine
    adapter: Adapter
    sampling: Sampling
    strength: float = 1.0
    negative_prompt: str | None = None
    also: tuple[tuple[Adapter, float], ...] = ()

    def auto_batch(self, height: int, width: int) -> int:
        """See `Engine.auto_batch`."""
        return self.engine.auto_batch(height, width, guided=self.sampling.guided)

    def generate(
        self,
        conditions: Sequence[np.ndarray],
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        batch: int | None = None,
        windows: Sequence[Window] | None = None,
    ) -> Generated:
        """Generate one image per condition, float32 (H, W, C) in [0, 1]; see `Engine.generate`."""
        places: Sequence[Window | None] = windows or [None] * len(conditions)
        requests = [
            Request(condition, self.adapter, prompt, seed, self.strength, window, self.negative_prompt, self.also)
            for condition, prompt, seed, window in zip(conditions, prompts, seeds, places, strict=True)
        ]
        return self.engine.generate(requests, self.sampling, batch=batch)


def generate_function(
    base: Backbone, adapter: Adapter, sampling: Sampling = Sampling(), *, negative_prompt: str | None = None
) -> Callable[[list[np.ndarray], list[str], list[int], int], list[np.ndarray]]:
    """Return the function (conditions, prompts, seeds, steps) -> images of an adapter, as evaluations call it."""
    engine = Engine(base)

    def generate(conditions: list[np.ndarray], prompts: list[str], seeds: list[int], steps: int) -> list[np.ndarray]:
        at_steps = replace(sampling, steps=steps)
        generator = AdapterGenerator(engine, adapter, at_steps, negative_prompt=negative_prompt)
        return generator.generate(conditions, prompts, seeds).images

    return generate


def gaussian(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return standard normal noise of one image, float32, drawn on the CPU: the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pad(images: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) on the right and below to a multiple, by repeating the border."""
    below, right = -images.shape[2] % multiple, -images.shape[3] % multiple
    return torch.nn.functional.pad(images, (0, right, 0, below), mode="replicate")


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the size of an image that `pad` has padded."""
    return height + -height % multiple, width + -width % multiple


def _negative_prompts(requests: Sequence[Request], base: Backbone) -> Prompt:
    """Return what guidance leads away from, of a row per request."""
    texts = [request.negative_prompt for request in requests]
    return Prompt.cat([base.unconditional() if text is None else base.embed([text]) for text in texts])
