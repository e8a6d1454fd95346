"""Few-step inference: conditions, prompts and seeds in, pictures out."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codi_hub.adapters import Adapter
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.unet import FrozenBase
from codi_hub.diffusion.samplers import SAMPLERS
from codi_hub.diffusion.schedule import sampling_timesteps
from codi_hub.errors import UsageError, one_line

WHOLES = 4  # how many steps' noise of a picture made in tiles is kept, for its next tiles
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """`auto|cpu|cuda|mps` -> a device that is here.

    Raises:
        UsageError: unknown, or not on this machine.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    if not present.get(name.split(":")[0], False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise UsageError(f"--device {name}: not on this machine (here: {here})")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto|fp32|fp16|bf16` -> a dtype; auto is 16 bit where the device computes faster in it and float32 elsewhere.

    Raises:
        UsageError: an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and computes_bfloat16() else torch.float32
    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def computes_bfloat16() -> bool:
    """Whether the CPU is faster in bfloat16: by AMX, or in AVX-512 where that is not Intel's.

    Intel's takes 1.7 times as long for it as for float32 (a training step of nano), and virtual machines may hide AMX.
    """
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return bool(can.get("amx_tile") or (can.get("avx512_bf16") and "Intel" not in can["cpu_name"]))


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Normal noise, float32 (len(seeds), *shape), each row from its own seed on the CPU: the same in any batch."""
    return torch.stack([noise(shape, seed) for seed in seeds])


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal noise of one picture, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What compiles `function` at its first call. Networks are its arguments: adapters of a kind share what is made."""
    warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # remarks on diffusers' code
    return torch.compile(function)


class Engine:
    """Runs adapters on one loaded base.

    Args:
        compile: compile the networks at the first pictures; where that fails, `say` gets a line and they run as they
            are. A batch smaller than one before it, of the same sides, is filled up, for another size would be
            compiled anew.
    """

    def __init__(self, base: FrozenBase, *, compile: bool = False, say: Callable[[str], object] = lambda text: None):
        self.base, self.compile, self.say = base, compile, say
        self._batches: dict[tuple[int, ...], int] = {}  # pictures in the largest batch compiled, by their sides
        self._wholes: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()  # noise of a picture made in tiles

    @torch.inference_mode()
    def generate(
        self,
        adapter: Adapter | MixedBatch,
        conditions: Sequence[np.ndarray],
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 4,
        sampler: str = "ddim",
        temperature: float = 1.0,
        windows: Sequence[tuple[int, int, int, int]] | None = None,
    ) -> list[np.ndarray]:
        """One picture per condition.

        Args:
            adapter: of all pictures; or each has its own.
            conditions: float32 (H, W, C) in [0, 1], all of one height and width; any size.
            seeds: picture k's noise depends on seeds[k] and its size alone.
            sampler: a name in `codi_hub.diffusion.samplers.SAMPLERS`.
            temperature: scale of the noise. Below 1 the picture moves from a sample towards the mean of what the
                condition allows: less invented detail, fewer wrong pixels.
            windows: of tiles: (top, left, height of the whole picture, its width) in pixels, the first two multiples of
                `base.multiple`. A tile's noise is its part of the whole picture's.

        Returns:
            float32 (H, W, 3) in [0, 1], as large as the conditions.
        """
        base = self.base
        height, width = conditions[0].shape[:2]
        count, compile = len(conditions), self.compile and not isinstance(adapter, MixedBatch)
        if compile:
            fill = [-1] * (self._batches.get((height, width), 0) - count)
            rows = [*range(count), *fill]
            conditions, prompts, seeds = ([of[k] for k in rows] for of in (conditions, prompts, seeds))
            windows = windows and [windows[k] for k in rows]
        predict, decode = (self._made(of, compile) for of in (type(adapter).predict, FrozenBase.decode))
        size = self._latent_size(height, width)

        def drawn(number: int) -> Tensor:
            """Of the sampler's step of that number; 0 is what it starts from."""
            own = [(seed + 7919 * number) % 2**63 for seed in seeds]
            return temperature * self._noise(own, size, windows).to(base.device)

        given = self._given(adapter, conditions)
        prompt = base.embed(list(prompts))
        prepared = adapter.prepare(given, prompt)
        denoise = base.schedule.denoiser(
            lambda z_t, t: predict(adapter, base, z_t.to(prompt.dtype), t, prompt, prepared)
        )
        timesteps = sampling_timesteps(steps, adapter.horizon(len(base.schedule)))
        begun = adapter.begun(base, given, drawn(0))
        x_hat = SAMPLERS[sampler](denoise, begun, timesteps, base.schedule, lambda number: drawn(number + 1))
        images = decode(base, x_hat.contiguous(memory_format=torch.channels_last))[:, :, :height, :width]
        if compile:
            self._batches[height, width] = len(images)
        return list(images.permute(0, 2, 3, 1).cpu().numpy()[:count])

    def _made(self, function: Callable[..., Tensor], compile: bool) -> Callable[..., Tensor]:
        """The function itself, or compiled; with what cannot be compiled, all goes on as it is."""
        if not compile:
            return function
        from torch._dynamo.exc import TorchDynamoException

        def tried(*given: Any) -> Tensor:
            if self.compile:
                try:
                    return compiled(function)(*given)
                except TorchDynamoException as error:
                    self.compile = False
                    self.say(f"--compile: going on without it: {one_line(error, 120)}")
            return function(*given)

        return tried

    def _given(self, adapter: Adapter | MixedBatch, conditions: Sequence[np.ndarray]) -> Any:
        """Conditions as the adapter takes them."""

        def tensor(images: Sequence[np.ndarray]) -> Tensor:
            stacked = pad(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), self.base.multiple)
            return stacked.to(self.base.device, self.base.dtype, memory_format=torch.channels_last)

        if isinstance(adapter, MixedBatch):
            return [tensor([image]) for image in conditions]
        return tensor(conditions)

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Cells of a picture's latent, padded to what the base can take."""
        multiple, f = self.base.multiple, self.base.factor
        return -(-height // multiple) * multiple // f, -(-width // multiple) * multiple // f

    def _noise(
        self, seeds: Sequence[int], size: tuple[int, int], windows: Sequence[tuple[int, int, int, int]] | None
    ) -> Tensor:
        """(B, C, h, w) with (h, w) = size; of a window, its part of the whole picture's."""
        channels, f = self.base.unet.config.in_channels, self.base.factor
        if windows is None:
            return seeded_noise(seeds, (channels, *size))
        parts = []
        for seed, (top, left, *whole) in zip(seeds, windows, strict=True):
            height, width = self._latent_size(*whole)
            key = (seed, height, width)
            if key not in self._wholes:
                while len(self._wholes) >= WHOLES:
                    self._wholes.popitem(last=False)
                self._wholes[key] = noise((channels, height, width), seed)
            parts.append(self._wholes[key][:, top // f : top // f + size[0], left // f : left // f + size[1]])
        return torch.stack(parts)


def pad(images: Tensor, multiple: int) -> Tensor:
    """Pads (B, C, H, W) on the right and below to a multiple, by repeating the border."""
    below, right = -images.shape[2] % multiple, -images.shape[3] % multiple
    return torch.nn.functional.pad(images, (0, right, 0, below), mode="replicate")
