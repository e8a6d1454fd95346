"""A folder of 16 images, decoding and saving included: `Hub.run` against diffusers' pipeline in a loop."""

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
from codi_hub import ExportOptions, RunOptions, seeds
from codi_hub.data.synthetic.leaves import leaves
from codi_hub.inference.devices import DTYPES, choose_device, choose_dtype
from codi_hub.inference.engine import Engine, gaussian

IMAGES, SIDE, STEPS = 16, 256, 4
TASK = "pairs"  # whose condition is the image itself, as for the pipeline
PROMPT = "a photograph"
WHAT = f"folder of {IMAGES}, end to end, {STEPS} steps"
LOOP, TUNED = "StableDiffusionControlNetPipeline in a loop", "the same, tuned and batched"
GOALS = {("control", LOOP): 1.3, ("static", LOOP): 1.5, ("control", TUNED): 1.05, ("static", TUNED): 1.2}
KINDS = ("control", "static")
FEW = 3  # rounds where one takes minutes
LEVELS = {"fp32": 1, "fp16": 4, "bf16": 16}  # 8-bit levels by which 99.9 % of the values may differ


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield the rows; all contestants are loaded, warm, and checked to give the same images before timing."""
    for name in bases:
        kept = shelf(name, KINDS, each=1, task=TASK, make=peers.lively)
        with tempfile.TemporaryDirectory() as folder, kept as kept:
            yield from _rows(Contest(name, Path(folder), kept), rounds)


def _rows(contest: Contest, rounds: int) -> Iterator[Row]:
    name, few = contest.name, contest.images("few", 2)
    if name == "nano":  # in float32 too, where rounding hides no difference
        contest.check(contest.documented("fp32"), few, "fp32")
    dtype = contest.dtype
    documented, tuned = contest.documented(dtype), contest.tuned(dtype)
    contest.check(documented, few, dtype)
    files = contest.images("all", IMAGES)
    works: dict[str, Work] = {kind: partial(contest.run, kind, files) for kind in KINDS}
    works[LOOP] = partial(contest.loop, documented, files)
    works[TUNED] = partial(contest.batches, tuned, files)
    warm_up = 1
    if name != "nano":
        rounds, warm_up = min(rounds, FEW), 0
        for kind in KINDS:
            contest.run(kind, few)
    seconds = in_turn(works, rounds, warm_up)
    rate = {which: IMAGES / median(taken) for which, taken in seconds.items()}
    for (kind, peer), goal in GOALS.items():
        note = f"{dtype}, {SIDE}x{SIDE} px; {rate[kind]:.3g} against {rate[peer]:.3g} images/s"
        yield Row(WHAT, name, kind, peer, ratios(seconds[peer], seconds[kind]), goal=goal, note=note)


class Contest:
    """A base with an adapter of each kind, and pipelines with the ControlNet equal to `control`."""

    def __init__(self, name: str, folder: Path, kept: Shelf) -> None:
        self.name, self.folder, self.hub = name, folder, kept.hub
        self.refs = {kind: ref for kind, (ref,) in kept.refs.items()}
        self.source, self.device = folder_of(name), choose_device("auto")
        self.dtype = next(short for short, long in DTYPES.items() if long == choose_dtype("auto", self.device))

    def images(self, name: str, count: int) -> list[Path]:
        """Return a new folder's PNG files, all of one size."""
        folder = self.folder / name
        folder.mkdir()
        for k in range(count):
            Image.fromarray(leaves(np.random.default_rng(k), SIDE)).save(folder / f"{k:02}.png")
        return sorted(folder.iterdir())

    def out(self, who: str) -> Path:
        """Return the output folder of a contestant."""
        (self.folder / "out" / who).mkdir(parents=True, exist_ok=True)
        return self.folder / "out" / who

    # ---- CoDi Hub

    def run(self, kind: str, files: Sequence[Path], dtype: str = "auto") -> Path:
        """Run the folder as `codi run` does; return the output folder."""
        options = RunOptions(out=self.out(kind), prompt=PROMPT, steps=STEPS, overwrite=True, dtype=dtype)
        report = self.hub.run(self.refs[kind], [files[0].parent], options)
        if report.ok != len(files):
            raise SystemExit(f"{kind} on {self.name}: {report.items}")
        return self.out(kind)

    # ---- diffusers

    def documented(self, dtype: str) -> peers.Pipe:
        """Return the pipeline as its documentation loads it."""
        folder = self.folder / f"controlnet-{dtype}"
        self.hub.export(self.refs["control"], ExportOptions(out=folder, dtype=dtype))
        return peers.documented(self.source, folder, DTYPES[dtype], self.device)

    def tuned(self, dtype: str) -> peers.Pipe:
        """Return the pipeline with channels-last layout and fused attention."""
        base, adapter, _ = self.hub.use(self.refs["control"], dtype=dtype)
        self.batch = Engine(base).auto_batch(SIDE, SIDE)
        return peers.tuned(self.source, base, adapter.encoder)

    def loop(self, pipe: peers.Pipe, files: Sequence[Path]) -> None:
        """Generate one image after the other, as the documentation shows."""
        out = self.out("loop")
        for k, path in enumerate(files):
            image, generator = Image.open(path).convert("RGB"), torch.manual_seed(k)
            made = pipe(PROMPT, image=image, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator)
            made.images[0].save(out / path.name)

    def batches(self, pipe: peers.Pipe, files: Sequence[Path]) -> None:
        """Generate in batches of `Hub.run`'s size."""
        out = self.out("batches")
        for start in range(0, len(files), self.batch):
            paths = files[start : start + self.batch]
            images, generator = [Image.open(path).convert("RGB") for path in paths], torch.manual_seed(start)
            prompts = [PROMPT] * len(paths)
            made = pipe(prompts, image=images, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator)
            for path, image in zip(paths, made.images, strict=True):
                image.save(out / path.name)

    # ---- equality

    def check(self, pipe: peers.Pipe, files: Sequence[Path], dtype: str) -> None:
        """Exit unless the pipeline, with the same noise and DDIM timesteps, gives the images of `Hub.run`."""
        ours, theirs, side = self.run("control", files, dtype), pipe.scheduler, SIDE // pipe.vae_scale_factor
        pipe.scheduler = peers.walking_like_us(self.source)
        for path in files:
            seed = seeds.sampling_noise(seeds.image_seed(0, path.name), 0)
            drawn = gaussian((pipe.unet.config.in_channels, side, side), seed)[None]
            image, z_t = Image.open(path).convert("RGB"), drawn.to(self.device, DTYPES[dtype])
            made = pipe(PROMPT, image=image, latents=z_t, num_inference_steps=STEPS, guidance_scale=1.0).images[0]
            there = np.asarray(Image.open(ours / path.name)).astype(int)
            apart = np.quantile(np.abs(there - np.asarray(made)), 0.999)
            if not apart <= LEVELS[dtype]:
                raise SystemExit(f"{self.name}, {dtype}: {path.name} differs by {apart:g} of 255 from the pipeline's")
        pipe.scheduler = theirs
