"""The memory of a training, counted without computing: tensors that have shapes only pass through a real step."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.skeleton import skeleton
from codi_hub.backbones.backbone import Backbone
from codi_hub.config.distill import TrainingConfig
from codi_hub.errors import CodiError
from codi_hub.losses.method import Method
from codi_hub.training.job import Plan
from codi_hub.training.latents import Cache
from codi_hub.training.trainer import Trainer

MOMENTS = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}  # bytes per trained parameter; blocks of 8 bits have two scales
STORED = {"int8": 1.0, "nf4": 0.516, "gguf": 0.57}  # bytes per weight of a quantised base; of GGUF for Q4_K
WIDE = ("group_norm", "layer_norm", "rms_norm")  # functions that CUDA's autocast computes in float32


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device at the peak of a training, by what holds them.

    Attributes:
        base: the frozen network and autoencoder, and the largest weight unpacked where the network is quantised.
        adapter, average, teacher: the trained network, its moving average and the teacher, in float32.
        optimiser: the moments.
        step: gradients, activations and temporary tensors, at most.
        encoding: what encoding pairs and prompts takes instead of `step`: activations, or the text encoders.
    """

    base: int
    adapter: int
    average: int
    teacher: int
    optimiser: int
    step: int
    encoding: int

    @property
    def total(self) -> int:
        """Bytes at the peak. The driver, and gaps in the allocator's blocks, come on top: half a gigabyte and more."""
        *held, step, encoding = astuple(self)
        return sum(held) + max(step, encoding)


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors that are created while it is active. `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in before | self._live:  # no view, and not computed in place
                size = storage.nbytes()
                self._live.add(storage._cdata)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage._cdata, size)
        return result

    def _free(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


@contextmanager
def wide_functions() -> Iterator[None]:
    """Compute in float32 what autocast on CUDA does and on the CPU does not: its activations are twice as large."""
    plain = {name: getattr(functional, name) for name in WIDE}

    def widened(function: Callable[..., Tensor], value: Tensor, *rest: Any, **named: Any) -> Tensor:
        return function(value.float() if torch.is_autocast_enabled("cpu") else value, *rest, **named)

    try:
        for name, function in plain.items():
            setattr(functional, name, partial(widened, function))
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def without_data(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace a module's floating tensors, and those on `meta`, by ones with a shape and no data, as on the CPU."""
    replaced: dict[int, tuple[Tensor, Tensor]] = {}  # the original is kept, so that its id is not given to another
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is None or not (value.is_floating_point() or value.is_meta):
                    continue
                if id(value) not in replaced:
                    with mode:
                        empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                    parameter = isinstance(value, nn.Parameter)
                    fake = nn.Parameter(empty, requires_grad=value.requires_grad) if parameter else empty
                    replaced[id(value)] = fake, value
                store[name] = replaced[id(value)][0]  # type: ignore[assignment]


def adapter_without_data(kind: str, base: Backbone, mode: FakeTensorMode, settings: Mapping[str, Any]) -> Adapter:
    """Return an adapter for a base that went through `without_data`, likewise without data."""
    adapter = skeleton(kind, base, **settings)
    without_data(adapter, mode)
    return adapter.requires_grad_(True).train()


def trainer_without_data(
    base: Backbone, adapter: Adapter, method: Method, training: TrainingConfig, pairs: tuple[int, int], precision: str
) -> Trainer:
    """Return a trainer of an adapter without data, on pairs of zeros.

    Args:
        base, adapter: see `without_data` and `adapter_without_data`.
        method: what a step minimises.
        training: its settings; the package of its optimiser need not be there.
        pairs: channels of the conditions, and side of the images in pixels.
        precision: accelerate's name of it, such as bf16.
    """
    (channels, size), count = pairs, training.batch
    AcceleratorState._reset_state(reset_partial_state=True)
    # accelerate has no float16 on the CPU; bfloat16 takes the same memory
    accelerator = Accelerator(cpu=True, mixed_precision=precision.replace("fp16", "bf16"), device_placement=False)
    latents = torch.zeros(count, base.latents.channels, *base.latents.size(size, size), dtype=torch.float16)
    images = [torch.zeros(count, n, size, size, dtype=torch.uint8) for n in (channels, 3)]
    cache = Cache(latents, images[0], [""] * count, images[1] if method.needs_targets else None)
    plain = training.model_copy(update={"optimizer": "adamw"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deepcopy asks tensors without data for their address
        trainer = Trainer(base, adapter, cache, method, plain, accelerator, Path())
    trainer.settings = training
    return trainer


def estimate(trainer: Trainer, size: int, *, quantize: str | None = None) -> Estimate:
    """Count the memory of a training.

    Args:
        trainer: whose base and adapter went through `without_data`; its pairs have the size and number of a batch.
        size: side of the images in pixels.
        quantize: how the base's network is stored, a name in `STORED`; None in its own precision.
    """
    base, settings = trainer.base, trainer.settings
    student = trainer.accelerator.unwrap_model(trainer.student)
    trained = sum(parameter.numel() for parameter in student.parameters())
    average = trainer.ema is not student and settings.ema_device == "device"
    images = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        encoding = _peak(trainer, lambda: base.encode(images))
    texts = base.text_modules()
    network = held(*(module for module in base.children() if module not in texts))
    return Estimate(
        base=network + unpacked(base, quantize),
        adapter=held(student),
        average=held(trainer.ema) if average else 0,
        teacher=held(trainer.teacher) if trainer.teacher else 0,
        optimiser=round(trained * MOMENTS[settings.optimizer]),
        step=_peak(trainer, partial(_step, trainer)),
        encoding=max(encoding, held(*texts)),
    )


def _step(trainer: Trainer) -> None:
    """Take the forward and backward passes of a step; a second micro-batch finds the gradients of the first."""
    for micro in range(min(2, trainer.settings.accumulate)):
        terms = trainer.losses(0, micro)
        trainer.accelerator.backward(torch.stack([*terms.values()]).sum())
    trainer.optimiser.zero_grad()


def _peak(trainer: Trainer, work: Callable[[], object]) -> int:
    """Return the most bytes that some work allocates at a time."""
    meter = Meter()
    wide = nullcontext() if trainer.accelerator.mixed_precision == "no" else wide_functions()
    with wide, meter:
        work()
    return meter.peak


def held(*modules: nn.Module) -> int:
    """Return the bytes of the tensors of modules; a tensor that several have counts once."""
    tensors: Iterable[Tensor] = (value for module in modules for value in (*module.parameters(), *module.buffers()))
    return sum(value.nbytes for value in {id(value): value for value in tensors}.values())


def unpacked(base: Backbone, quantize: str | None) -> int:
    """Return what quantising a base's linear layers adds to its bytes: less for all, and the largest one unpacked."""
    if quantize is None:
        return 0
    weights = [layer.weight for layer in base.network.modules() if isinstance(layer, nn.Linear)]
    saved = sum(weight.nbytes - STORED[quantize] * weight.numel() for weight in weights)
    return round(max(weight.nbytes for weight in weights) - saved)


@contextmanager
def enough_memory(work: Plan) -> Iterator[None]:
    """Turn running out of memory into one line that says what to lower. Raises CodiError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        training, size = work.config.training, work.config.data.size
        lower = [f"training.batch ({training.batch})"] if training.batch > 1 else []
        lower += [f"data.size ({size or 'that of the base'})"]
        more = [] if training.checkpointing else ["set training.checkpointing"]
        more += [] if work.kind == "lora" else ["train adapter.kind lora"]
        more += ["training.ema 0"] if training.ema else []
        more += ["training.optimizer adamw8bit"] if training.optimizer == "adamw" else []
        raise CodiError(f"not enough memory: lower {' or '.join(lower)}, or {', '.join(more)}") from error
