"""Base models: one file per family, behind the `Backbone` protocol; found by name in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from codi_hub.config.base import BaseOptions
from codi_hub.errors import InvalidInput, UsageError, one_line
from codi_hub.plugins import Plugins

if TYPE_CHECKING:
    import torch

    from codi_hub.backbones.backbone import Backbone
    from codi_hub.backbones.parts import ModelFiles


ALIGNMENT = 64  # bytes, of the memory that torch allocates
FAMILIES = Plugins(
    "base family",
    "codi_hub.backbones",
    {
        "sd": "codi_hub.backbones.unet:UNetBackbone",
        "sdxl": "codi_hub.backbones.sdxl:SDXLBackbone",
        "sd3": "codi_hub.backbones.sd3:SD3Backbone",
        "flux": "codi_hub.backbones.flux:FluxBackbone",
        "z-image": "codi_hub.backbones.z_image:ZImageBackbone",
    },
)

STORED = {"F16": "float16", "BF16": "bfloat16"}  # precisions of files that are kept as they are
READ_TOGETHER = 1 << 22  # bytes


@dataclass(frozen=True)
class Located:
    """A base whose files are there, and that is not loaded.

    Attributes:
        options: as they were asked for, with the commit of a hub model.
        files: what it says of itself.
        family: the class that loads it.
    """

    options: BaseOptions
    files: ModelFiles
    family: type[Backbone]

    def load(self, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Backbone:
        """Load it in evaluation mode; see `load`."""
        import torch

        from codi_hub.backbones.card import set_sampling
        from codi_hub.backbones.quantise import unpack_gguf
        from codi_hub.backbones.sources import quiet_libraries

        device, dtype = torch.device(device), dtype or torch.float32
        with _readable(self.options.source), quiet_libraries():
            base: Any = self.family.load(self._quantised(device, dtype), dtype)
        if self.options.quantize == "gguf":
            unpack_gguf(base.network, [base.input_layer], dtype)
        _ = base.fingerprint  # computed and kept: from the files' memory, before weights are moved
        set_sampling(base, self.options)
        base = base.to(device).to(memory_format=torch.channels_last)
        quantised = self.options.quantize is not None
        for value in () if quantised else (*base.parameters(), *base.buffers()):
            if value.data_ptr() % ALIGNMENT:
                value.data = value.data.clone()
        return cast("Backbone", base)

    def load_outline(self, dtype: torch.dtype) -> Backbone:
        """Load it with a network of shapes alone, as they are before quantising: its memory is never written."""
        from codi_hub.backbones.card import set_sampling
        from codi_hub.backbones.sources import quiet_libraries

        files = replace(self.files, loras=(), outlines=(self.family.network_name,))
        with _readable(self.options.source), quiet_libraries():
            base = self.family.load(files, dtype)
        set_sampling(base, self.options)
        return base

    def load_as_stored(self) -> Backbone:
        """Load it on the CPU in the precision of its network's file, whose memory it shares, to try it.

        The files are read ahead in their order, which is faster than the order of the tensors. A quantised base is
        loaded as usual, where it can compute.
        """
        import torch

        if self.options.quantize:
            from codi_hub.backbones.quantise import trial_device

            return self.load(device=trial_device(self.options.quantize))
        from codi_hub.backbones.parts import weight_files
        from codi_hub.backbones.sources import quiet_libraries
        from codi_hub.backbones.weights import read_header

        paths: dict[Path, None] = {}
        stored = "F32"
        with suppress(InvalidInput, OSError):  # loading says what is missing, after what the configs show
            paths = {path: None for name in self.family.components for path in weight_files(self.files, name)}
            stored = read_header(weight_files(self.files, self.family.network_name)[0]).dtype if paths else stored
        with _readable(self.options.source), quiet_libraries(), _read_ahead([*paths]):
            return self.family.load(self.files, getattr(torch, STORED.get(stored, "float32")))

    def _quantised(self, device: torch.device, dtype: torch.dtype) -> ModelFiles:
        """Return the files with what loads the network in fewer bits, where that was asked for."""
        if self.options.quantize is None:
            return self.files
        from codi_hub.backbones.quantise import quantised
        from codi_hub.backbones.weights import GGUF

        file = self.files.components[self.family.network_name].file
        if self.options.quantize == "gguf" and (file is None or file.suffix != GGUF):
            raise UsageError("quantize gguf: name a .gguf file as the source, and its configs")
        if self.options.quantize != "gguf" and file is not None:
            raise UsageError(
                f"quantize {self.options.quantize}: the network has to be in a diffusers folder, not a file"
            )
        keep = [self.family.input_layer] if self.family.input_layer else []
        arguments = quantised(self.options.quantize, device, dtype, keep)
        return replace(self.files, arguments={self.family.network_name: arguments})


@contextmanager
def _read_ahead(paths: Sequence[Path]) -> Iterator[None]:
    """Read files into the system's cache meanwhile."""

    def read() -> None:
        buffer = bytearray(READ_TOGETHER)
        for path in paths:
            with suppress(OSError), path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(read)
        yield


def locate(options: BaseOptions) -> Located:
    """Find a base's files and its family; a hub model is downloaded, as far as the family needs it.

    Raises:
        NotFound, InvalidInput, UsageError: it is not there, is damaged, or no family supports it.
    """
    from codi_hub.backbones.sources import locate as find

    if options.quantize and options.loras:
        raise UsageError(
            "quantize: LoRAs are merged into whole weights; merge them in diffusers first, or leave it out"
        )
    with _readable(options.source):
        options, files = find(options, lambda files: getattr(_family(files), "components", ()))
        family = _family(files)
    if family is None:
        known = ", ".join(FAMILIES.names())
        raise InvalidInput(f"{options.source} is not a model folder of a known family ({known}): {_seen(files)}")
    if files.loras and not family.pipeline_name:
        raise UsageError(f"loras: bases of family {family.family} take none")
    return Located(options, files, family)


def load(base: str | BaseOptions, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Backbone:
    """Load a base of whichever family it is, in evaluation mode.

    Args:
        base: its options, or its source alone: a diffusers folder, a safetensors file, or a hub id.
        device: where to compute.
        dtype: precision of the networks (default: float32).

    Raises:
        NotFound, InvalidInput, UsageError, Mismatch: it is not there, is damaged, or no family supports it.
    """
    options = BaseOptions(source=base) if isinstance(base, str) else base
    return locate(options).load(device=device, dtype=dtype)


def _family(files: ModelFiles) -> type[Backbone] | None:
    return next((family for _, family in FAMILIES.loadable() if family.matches(files)), None)


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turn what the libraries raise about files that they cannot use into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, SafetensorError) as error:
        raise InvalidInput(
            f"base {source}: cannot be loaded: {one_line(error, 200)}: check its files or download it again"
        ) from error


def _seen(files: ModelFiles) -> str:
    if not files.classes:
        return "no model_index.json, no unet/config.json"
    return files.pipeline or ", ".join(sorted(set(files.classes.values())))
