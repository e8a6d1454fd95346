"""Swapping adapters on a loaded base: resident ones, and verified ones from disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from benchmarks import peers
from benchmarks.bases import folder_of
from benchmarks.shelf import Shelf, shelf
from benchmarks.table import Row, in_turn, ratios
from codi_hub.adapters.skeleton import skeleton
from codi_hub.interop.diffusers import WEIGHTS

SWAPS = 100  # swaps of resident adapters in one round
SIDE = {"nano": 64, "sd15": 256}  # side in px of the image whose first step is computed
PLENTY = 1 << 40


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield the rows of every base."""
    for name in bases:
        with shelf(name) as kept:
            yield from resident(name, kept, rounds)
            for kind in kept.refs:
                yield from against_reading(name, kept, kind, rounds)
            yield from against_from_pretrained(name, kept, rounds)


def resident(name: str, kept: Shelf, rounds: int) -> Iterator[Row]:
    """Yield the milliseconds of `Hub.use`, most of which is resolving the reference in the registry."""
    for kind, refs in kept.refs.items():
        use = partial(kept.hub.use, device="cpu", adapter_memory=PLENTY)
        contestants = {"ours": alternate(refs, use)}
        if kind == "control":
            nets = [use(ref)[1].encoder for ref in refs]
            pipe = peers.tuned(folder_of(name), kept.base, nets[0])
            contestants["theirs"] = alternate(nets, partial(setattr, pipe, "controlnet"))
        seconds = in_turn(contestants, rounds)
        what, ours, theirs = "swap, resident", f"Hub.use, {kind}", "pipe.controlnet = net"
        milliseconds = {who: tuple(1e3 * one / SWAPS for one in values) for who, values in seconds.items()}
        yield Row(what, name, ours, theirs, milliseconds["ours"], "ms", goal=1.0, at_most=True)
        if kind == "control":
            yield Row(what, name, theirs, "", milliseconds["theirs"], "ms")
            del nets, pipe
        del contestants
        kept.hub.use(refs[0], device="cpu", adapter_memory=0)  # drops the other


def against_reading(name: str, kept: Shelf, kind: str, rounds: int) -> Iterator[Row]:
    """Yield the time of a swap over reading the bytes of the weights, from disk and from the system's cache."""
    files = [kept.weights(ref) for ref in kept.refs[kind]]
    contestants = {
        "swap": from_disk(kept, kind),
        "read": alternate(files, lambda path: path.read_bytes(), 1),
    }
    for cold in (True, False) if hasattr(os, "posix_fadvise") else (False,):
        seconds = in_turn(contestants, rounds, before=(lambda: forget(files)) if cold else None)
        yield Row(
            "swap, from disk, already verified",
            name,
            f"Hub.use, {kind}",
            f"reading the bytes ({'from disk' if cold else 'cached by the system'})",
            ratios(seconds["swap"], seconds["read"]),
            goal=1.2 if cold and kind == "control" else None,
            at_most=True,
            note=f"{files[0].stat().st_size / 1e6:.3g} MB, {min(seconds['swap']):.3g} s",
        )


def against_from_pretrained(name: str, kept: Shelf, rounds: int) -> Iterator[Row]:
    """Yield the time of loading and the first step. Both files have the same weights in float16."""
    with TemporaryDirectory() as folder:
        nets = [as_controlnet(kept, ref, Path(folder) / str(k)) for k, ref in enumerate(kept.refs["control"])]
        step, use = Step(kept, SIDE[name]), from_disk(kept, "control")
        contestants = {
            "ours": lambda: step.ours(use()),
            "theirs": alternate(
                nets, lambda net: step.theirs(ControlNetModel.from_pretrained(net, torch_dtype=kept.base.dtype)), 1
            ),
        }
        seconds = in_turn(contestants, rounds)
    yield Row(
        "swap, from disk, and the first step",
        name,
        "Hub.use, control",
        "ControlNetModel.from_pretrained",
        ratios(seconds["ours"], seconds["theirs"]),
        note=f"{SIDE[name]} px; theirs {min(seconds['theirs']):.3g} s",
    )


def as_controlnet(kept: Shelf, ref: str, folder: Path) -> Path:
    """Write the adapter's weights under diffusers' names."""
    skeleton("control", kept.base).encoder.save_config(folder)
    tensors = {name.removeprefix("encoder."): value for name, value in load_file(kept.weights(ref)).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


class Step:
    """The first step of one image, on the base of a shelf."""

    def __init__(self, kept: Shelf, side: int) -> None:
        self.base = kept.base
        cells = side // self.base.latents.factor
        z_t = torch.randn(1, self.base.latents.channels, cells, cells)
        self.z_t = z_t.to(self.base.dtype, memory_format=torch.channels_last)
        self.t, self.prompt = torch.tensor([1.0]), self.base.embed([""])
        self.condition = torch.rand(1, 3, side, side).to(self.base.dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def ours(self, adapter: torch.nn.Module) -> torch.Tensor:
        """Evaluate base and adapter."""
        return adapter(self.base, self.z_t, self.t, self.prompt, self.condition)

    @torch.inference_mode()
    def theirs(self, net: ControlNetModel) -> torch.Tensor:
        """Evaluate diffusers' ControlNet and U-Net."""
        t = self.base.schedule.model_time(self.t)
        return peers.step(net, self.base.unet, self.z_t, t, self.prompt["context"], self.condition)


def alternate(between: list, work: Callable, count: int = SWAPS) -> Callable[[], object]:
    """Return a function that calls `work` `count` times, each with the next of `between`, cyclically."""
    following = cycle(between)
    return lambda: [work(next(following)) for _ in range(count)][-1]


def from_disk(kept: Shelf, kind: str) -> Callable[[], torch.nn.Module]:
    """Return a function that loads the adapter of a kind that is not resident."""
    following = cycle(kept.refs[kind])
    return lambda: kept.hub.use(next(following), device="cpu", adapter_memory=0)[1]


def forget(files: list[Path]) -> None:
    """Drop the files from the system's cache."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
