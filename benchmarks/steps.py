"""One step of the networks, and the loop of four: adapters against diffusers' ControlNet, all else equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.bases import folder_of
from benchmarks.shelf import Shelf, shelf
from benchmarks.table import Row, in_turn, ratios
from codi_hub import seeds
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Prompt
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian

SIDES = {"nano": 256, "sd15": 512}  # side of the images in px
BATCHES = {"nano": (1, 4), "sd15": (1,)}
REPEATS = {"nano": 8, "sd15": 1}  # steps of one round
FEW = 3  # rounds of loops that take a minute
STEPS = 4
GOALS = {"control": 1.0, "static": 1.28}
PEER = "diffusers' ControlNet"
STEP, LOOP = "conditional cost per step over the bare U-Net", f"denoising loop, {STEPS} steps"

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A base with an adapter of every kind, and the batch size."""

    name: str
    base: UNetBackbone
    adapters: dict[str, Adapter]
    batch: int

    @property
    def where(self) -> dict[str, str]:
        """Return the fields of a row that describe it."""
        side, many = SIDES[self.name], "" if self.batch == 1 else f", batch {self.batch}"
        return {"on": self.name + many, "note": f"{self.base.dtype}, channels_last, {side}x{side} px"}


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield both tables of every base; both sides are checked to compute the same before timing."""
    for name in bases:
        with shelf(name, each=1, make=peers.lively) as kept:
            if name == "nano":  # in float32 too, where rounding hides no difference
                _same(Case(name, *_loaded(kept, "fp32"), batch=2))
            base, made = _loaded(kept, "auto")
            _same(Case(name, base, made, batch=2))
            for batch in BATCHES[name]:
                case = Case(name, base, made, batch)
                yield from _one_step(case, rounds)
                yield from _loop(case, rounds if name == "nano" else min(rounds, FEW))


def _loaded(kept: Shelf, dtype: str) -> tuple[UNetBackbone, dict[str, Adapter]]:
    """Load base and adapters on the fastest device, as for a run."""
    found = {kind: kept.hub.use(ref, dtype=dtype) for kind, (ref,) in kept.refs.items()}
    return found["control"][0], {kind: adapter for kind, (_, adapter, _) in found.items()}


def _inputs(base: UNetBackbone, batch: int, side: int) -> tuple[Tensor, Tensor, Prompt, Tensor]:
    """Return z_T, T, prompt embeddings and conditions as network inputs."""
    size = (base.latents.channels, *base.latents.size(side, side))
    condition = torch.rand((batch, 3, side, side), generator=torch.Generator().manual_seed(0))
    noise = torch.stack([gaussian(size, seeds.sampling_noise(seed, 0)) for seed in range(batch)])
    z_t = noise.to(base.device, base.dtype, memory_format=torch.channels_last)
    t = torch.ones(batch, device=base.device)
    condition = condition.to(base.device, base.dtype, memory_format=torch.channels_last)
    return z_t, t, base.embed(["a photograph"] * batch), condition


@torch.inference_mode()
def _same(case: Case) -> None:
    """Check that one step, and the loop with diffusers' DDIM on trailing timesteps, agree with the engine's."""
    base, adapter, folder = case.base, case.adapters["control"], folder_of(case.name)
    z_t, t, prompt, condition = _inputs(base, case.batch, 128)
    theirs = _their_step(base, adapter, z_t, t, prompt, condition)
    ours = adapter.predict(base, z_t, t, prompt, adapter.prepare(base, condition, prompt))
    peers.agree(ours, theirs, base.dtype, "one step")
    pipe, prompts = peers.tuned(folder, base, adapter.encoder), ["a", "b"]
    pipe.scheduler = peers.walking_like_us(folder)
    theirs = _their_loop(pipe, prompts, condition, z_t)
    peers.agree(_our_loop(base, adapter, prompts, condition), theirs, base.dtype, "the loop of four")


def _their_step(
    base: UNetBackbone, adapter: Adapter, z_t: Tensor, t: Tensor, prompt: Prompt, condition: Tensor
) -> Tensor:
    timestep = base.schedule.model_time(t)
    return peers.step(adapter.encoder, base.unet, z_t, timestep, prompt["context"], condition)


def _their_loop(pipe: peers.Pipe, prompts: list[str], condition: Tensor, z_t: Tensor) -> Tensor:
    """Run the pipeline without its decoder."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe(prompts, image=condition, latents=z_t, **settings).images.cpu()


def _our_loop(base: UNetBackbone, adapter: Adapter, prompts: list[str], given: Tensor) -> Tensor:
    """Run the engine without its decoder; image k has seed k."""
    conditions = given.float().permute(0, 2, 3, 1).cpu().numpy()
    requests = [Request(conditions[k], adapter, prompt, seed=k) for k, prompt in enumerate(prompts)]
    with mock.patch.object(UNetBackbone, "decode", lambda _, x_hat: x_hat):
        made = Engine(base).generate(requests, Sampling(STEPS), batch=len(requests)).images
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def _one_step(case: Case, rounds: int) -> Iterator[Row]:
    """Yield the time of a step over the bare U-Net's; the condition is prepared beforehand."""
    base, made = case.base, case.adapters
    with torch.inference_mode():
        z_t, t, prompt, condition = _inputs(base, case.batch, SIDES[case.name])
        prepared = {kind: adapter.prepare(base, condition, prompt) for kind, adapter in made.items()}

    def ours(kind: str) -> Step:
        return lambda: made[kind].predict(base, z_t, t, prompt, prepared[kind])

    timestep, context = base.schedule.model_time(t), prompt["context"]
    steps: dict[str, Step] = {
        "bare": lambda: base.unet(z_t, timestep, encoder_hidden_states=context, return_dict=False)[0]
    }
    steps[PEER] = lambda: _their_step(base, made["control"], z_t, t, prompt, condition)
    steps |= {kind: ours(kind) for kind in made}
    seconds = in_turn({which: _repeated(step, REPEATS[case.name]) for which, step in steps.items()}, rounds)
    bare = seconds.pop("bare")
    for which, taken in seconds.items():
        goal, values = 1.03 if which == "static" else None, ratios(taken, bare)
        yield Row(STEP, ours=which, against="bare U-Net", values=values, goal=goal, at_most=True, **case.where)


def _repeated(step: Step, times: int) -> Callable[[], None]:
    def work() -> None:
        with torch.inference_mode():
            for _ in range(times):
                out = step()
            out.cpu()  # waits for the device

    return work


def _loop(case: Case, rounds: int) -> Iterator[Row]:
    """Yield the time from uncached prompts, conditions and seeds to latents."""
    z_t, _, _, condition = _inputs(case.base, case.batch, SIDES[case.name])
    pipe, fresh = peers.tuned(folder_of(case.name), case.base, case.adapters["control"].encoder), count()

    def prompts() -> list[str]:
        return [f"photograph {next(fresh)}" for _ in range(case.batch)]

    def ours(kind: str) -> Step:
        return lambda: _our_loop(case.base, case.adapters[kind], prompts(), condition)

    loops: dict[str, Step] = {PEER: lambda: _their_loop(pipe, prompts(), condition, z_t)}
    seconds = in_turn(loops | {kind: ours(kind) for kind in case.adapters}, rounds)
    theirs = seconds.pop(PEER)
    for kind, taken in seconds.items():
        values, goal = ratios(theirs, taken), GOALS.get(kind)
        yield Row(LOOP, ours=kind, against=f"{PEER} loop", values=values, goal=goal, **case.where)
