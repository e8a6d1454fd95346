"""A folder of 16 pictures, decoding and saving included: `Hub.run` against diffusers' pipeline in a loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks import peers
from benchmarks.bases import folder_of
from benchmarks.shelf import Shelf, shelf
from benchmarks.table import Row, Work, in_turn, ratios
from codi_hub.config.options import ExportOptions, RunOptions
from codi_hub.data.synthetic.leaves import leaves
from codi_hub.inference.engine import DTYPES, choose_device, choose_dtype, noise
from codi_hub.seeds import image_seed

PICTURES, SIDE, STEPS = 16, 256, 4
BATCH = 16  # what `Hub.run` takes of this size on a CPU
TASK = "pairs"  # whose condition is the picture itself, as the pipeline takes it
PROMPT = "a photograph"
WHAT = f"folder of {PICTURES}, end to end, {STEPS} steps"
LOOP, TUNED = "StableDiffusionControlNetPipeline in a loop", "the same, tuned and batched"
GOALS = {("control", LOOP): 1.3, ("static", LOOP): 1.5, ("control", TUNED): 1.05, ("static", TUNED): 1.2}
KINDS = ("control", "static")
FEW = 3  # rounds where one takes minutes
LEVELS = {"fp32": 1, "fp16": 4, "bf16": 16}  # of 8 bits, by which 99.9 % of the values may differ


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """All are loaded and warm, and have been seen to make the same pictures, before anything is timed."""
    for name in bases:
        kept = shelf(name, KINDS, each=1, task=TASK, make=peers.lively)
        with tempfile.TemporaryDirectory() as folder, kept as kept:
            yield from _rows(Contest(name, Path(folder), kept), rounds)


def _rows(contest: Contest, rounds: int) -> Iterator[Row]:
    name, few = contest.name, contest.pictures("few", 2)
    if name == "nano":  # in float32 too, where rounding hides nothing
        contest.check(contest.documented("fp32"), few, "fp32")
    dtype = contest.dtype
    documented, tuned = contest.documented(dtype), contest.tuned(dtype)
    contest.check(documented, few, dtype)
    pictures = contest.pictures("all", PICTURES)
    works: dict[str, Work] = {kind: partial(contest.run, kind, pictures) for kind in KINDS}
    works[LOOP] = partial(contest.loop, documented, pictures)
    works[TUNED] = partial(contest.batches, tuned, pictures)
    warm_up = 1
    if name != "nano":
        rounds, warm_up = min(rounds, FEW), 0
        for kind in KINDS:
            contest.run(kind, few)
    seconds = in_turn(works, rounds, warm_up)
    rate = {which: PICTURES / median(taken) for which, taken in seconds.items()}
    for (kind, peer), goal in GOALS.items():
        note = f"{dtype}, {SIDE}x{SIDE} px; {rate[kind]:.3g} against {rate[peer]:.3g} images/s"
        yield Row(WHAT, name, kind, peer, ratios(seconds[peer], seconds[kind]), goal=goal, note=note)


class Contest:
    """One base with an adapter of each kind, and the pipelines with the ControlNet that `control` is."""

    def __init__(self, name: str, folder: Path, kept: Shelf) -> None:
        self.name, self.folder, self.hub = name, folder, kept.hub
        self.refs = {kind: ref for kind, (ref,) in kept.refs.items()}
        self.source, self.device = folder_of(name), choose_device("auto")
        self.dtype = next(short for short, long in DTYPES.items() if long == choose_dtype("auto", self.device))

    def pictures(self, name: str, count: int) -> list[Path]:
        """A folder of so many PNG files, all alike in size."""
        folder = self.folder / name
        folder.mkdir()
        for k in range(count):
            Image.fromarray(leaves(np.random.default_rng(k), SIDE)).save(folder / f"{k:02}.png")
        return sorted(folder.iterdir())

    def out(self, who: str) -> Path:
        (self.folder / "out" / who).mkdir(parents=True, exist_ok=True)
        return self.folder / "out" / who

    # ---- ours

    def run(self, kind: str, pictures: Sequence[Path], dtype: str = "auto") -> Path:
        """What `codi run` does; where the outputs are."""
        options = RunOptions(out=self.out(kind), prompt=PROMPT, steps=STEPS, overwrite=True, dtype=dtype)
        report = self.hub.run(self.refs[kind], [pictures[0].parent], options)
        if report.ok != len(pictures):
            raise SystemExit(f"{kind} on {self.name}: {report.items}")
        return self.out(kind)

    # ---- theirs

    def documented(self, dtype: str) -> peers.Pipe:
        folder = self.folder / f"controlnet-{dtype}"
        self.hub.export(self.refs["control"], ExportOptions(out=folder, dtype=dtype))
        return peers.documented(self.source, folder, DTYPES[dtype], self.device)

    def tuned(self, dtype: str) -> peers.Pipe:
        base, adapter, _ = self.hub.use(self.refs["control"], dtype=dtype)
        return peers.tuned(self.source, base, adapter.encoder)

    def loop(self, pipe: peers.Pipe, pictures: Sequence[Path]) -> None:
        """As the documentation shows it."""
        out = self.out("loop")
        for k, path in enumerate(pictures):
            image, generator = Image.open(path).convert("RGB"), torch.manual_seed(k)
            made = pipe(PROMPT, image=image, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator)
            made.images[0].save(out / path.name)

    def batches(self, pipe: peers.Pipe, pictures: Sequence[Path]) -> None:
        """As many at a time as `Hub.run` takes."""
        out = self.out("batches")
        for start in range(0, len(pictures), BATCH):
            paths = pictures[start : start + BATCH]
            images, generator = [Image.open(path).convert("RGB") for path in paths], torch.manual_seed(start)
            prompts = [PROMPT] * len(paths)
            made = pipe(prompts, image=images, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator)
            for path, image in zip(paths, made.images, strict=True):
                image.save(out / path.name)

    # ---- the same

    def check(self, pipe: peers.Pipe, pictures: Sequence[Path], dtype: str) -> None:
        """Exits unless the pipeline, given our noise and DDIM on our timesteps, makes our pictures."""
        ours, theirs, side = self.run("control", pictures, dtype), pipe.scheduler, SIDE // pipe.vae_scale_factor
        pipe.scheduler = peers.walking_like_us(self.source)
        for path in pictures:
            drawn = noise((pipe.unet.config.in_channels, side, side), image_seed(0, path.name))[None]
            image, z_t = Image.open(path).convert("RGB"), drawn.to(self.device, DTYPES[dtype])
            made = pipe(PROMPT, image=image, latents=z_t, num_inference_steps=STEPS, guidance_scale=1.0).images[0]
            there = np.asarray(Image.open(ours / path.name)).astype(int)
            apart = np.quantile(np.abs(there - np.asarray(made)), 0.999)
            if not apart <= LEVELS[dtype]:
                raise SystemExit(f"{self.name}, {dtype}: our {path.name} is {apart:g} of 255 from the pipeline's")
        pipe.scheduler = theirs
