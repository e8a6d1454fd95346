"""Sampling that starts from the condition: the engine and the training start from the same latents."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds import built, every_kind, trained
from tiny import record_of
from torch import Tensor
from training import Make

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.diffusion.samplers import sample
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine, Request, Sampling
from codi_hub.training.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
@every_kind
def test_initial_latents_are_the_condition_under_noise(any_base: UNetBackbone, kind: str, share: float | None) -> None:
    adapter = built(any_base, kind, start=0.5, **({} if share is None else {"start_noise": share}))
    assert adapter.config["start_noise"] == (share or 0.0)  # without noise by default
    condition, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    expected = any_base.schedule.add_noise(any_base.encode(condition), (share or 0.0) * noise, torch.tensor([0.5, 0.5]))
    assert torch.equal(adapter.initial_latents(any_base, condition, noise), expected)
    usual = built(any_base, kind)
    assert usual.initial_latents(any_base, condition, noise) is noise
    assert (adapter.start, usual.start, usual.config["start"]) == (0.5, 1.0, 1.0)


def test_an_adapter_without_noise_ignores_the_seed(base: UNetBackbone) -> None:
    adapter = trained(base, "static", start=0.5)
    condition = np.random.default_rng(0).random((16, 24, 3), np.float32)
    one, other = (Engine(base).generate([Request(condition, adapter, seed=seed)]).images[0] for seed in (1, 2))
    assert np.array_equal(one, other)


def test_the_engine_samples_from_there_and_each_image_is_the_same_in_any_batch(base: UNetBackbone) -> None:
    adapter = trained(base, "static", start=0.5, start_noise=0.5)
    conditions = [np.random.default_rng(k).random((16, 24, 3), np.float32) for k in range(2)]
    requests = [
        Request(condition, adapter, text, seed)
        for condition, text, seed in zip(conditions, ["", "a red ball"], [3, 5], strict=True)
    ]
    images = Engine(base).generate(requests, Sampling(steps=2)).images
    with torch.no_grad():
        condition = torch.from_numpy(conditions[1]).permute(2, 0, 1)[None]
        noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(5))[None]
        prompt = base.embed(["a red ball"])
        prepared = adapter.prepare(base, condition, prompt)
        denoise = base.schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))
        x_hat = sample(denoise, adapter.initial_latents(base, condition, noise), [0.5, 0.25], base.schedule)
        expected = base.decode(x_hat)[0].permute(1, 2, 0).numpy()
    assert np.abs(images[1] - expected).max() < 1e-5


def test_requests_of_different_starts_are_generated_in_batches_of_their_own(base: UNetBackbone) -> None:
    several = [trained(base, "static", start=start) for start in (1.0, 0.5, 0.5)]
    condition = np.random.default_rng(0).random((16, 24, 3), np.float32)
    requests = [Request(condition, several[k], "a", k) for k in (0, 1, 0, 2, 1)]
    together = Engine(base).generate(requests, Sampling(steps=2))
    assert together.batches == [2, 3]
    for image, request in zip(together.images, requests, strict=True):
        assert np.abs(image - Engine(base).generate([request], Sampling(steps=2)).images[0]).max() < 1e-4


@pytest.mark.parametrize("start", [0.0, 0.01, 1.1, "half", True])
def test_an_impossible_start_is_refused(base: UNetBackbone, start: object) -> None:
    with pytest.raises(UsageError, match=r"adapter\.start .+: (a number|at (least 0\.02|most 1))$"):
        adapters.build("control", base, start=start)


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True])
def test_an_impossible_noise_is_refused(base: UNetBackbone, share: object) -> None:
    with pytest.raises(UsageError, match=r"adapter\.start_noise .+: (a number|at (least 0|most 1))$"):
        adapters.build("control", base, start=0.5, start_noise=share)


def test_a_condition_that_is_no_image_to_start_from_is_refused(base: UNetBackbone) -> None:
    with pytest.raises(UsageError, match=r"start 0\.5: a condition of two channels cannot be the initial image"):
        adapters.build("static", base, condition_channels=2, start=0.5)
    adapters.build("static", base, condition_channels=2)


@pytest.mark.parametrize(("recorded", "expected"), [(None, 0.5), (0.0, 0.0), (0.25, 0.25)])
def test_a_first_edition_record_that_states_no_noise_has_half_of_it(
    base: UNetBackbone, tmp_path: Path, recorded: float | None, expected: float
) -> None:
    adapter = trained(base, "static", start=0.5)
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    written = json.loads((tmp_path / format.RECORD).read_text())
    record = {name: written[name] for name in ("task", "kind", "base", "prediction_type", "steps")}
    config = {"condition_channels": 3, "fusion": "zero_conv", "gain": True, "start": 0.5}
    config |= {} if recorded is None else {"start_noise": recorded}
    (tmp_path / format.RECORD).write_text(json.dumps(record | {"format_version": 1, "config": config}))
    loaded = format.load(tmp_path / format.WEIGHTS, format.read_record(tmp_path / format.RECORD), base)
    assert (loaded.start, loaded.config["start_noise"]) == (0.5, expected)


def test_a_map_is_encoded_as_a_gray_image_and_a_mask_is_left_out(base: UNetBackbone) -> None:
    whole, noise = torch.rand(2, 4, 16, 16), torch.randn(2, 4, 8, 8)
    for channels, image in ((1, whole[:, [0, 0, 0]]), (4, whole[:, :3])):
        adapter = built(base, "residual", condition_channels=channels, start=0.5, start_noise=0.0)
        expected = base.schedule.add_noise(base.encode(image), 0 * noise, torch.tensor([0.5, 0.5]))
        assert torch.equal(adapter.initial_latents(base, whole[:, :channels], noise), expected)


# ---- in training

GRID = [0.125, 0.25, 0.375, 0.5]  # the learning grid of 4 points up to a start of 0.5


def started(make: Make, *, loss: dict[str, Any] | None = None, **settings: Any) -> Trainer:
    """A trainer of an adapter that starts at half of the schedule."""
    adapter = {"start": 0.5, "start_noise": 0.5}
    return make(kind="static", adapter=adapter, loss={"grid": 4} | (loss or {}), **settings)


def evaluations(trainer: Trainer, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(t, z_t, initial latents, ground truth under noise) of what the student is evaluated at, step by step."""
    for step in range(steps):
        context, seen = trainer.context(step, 0), list[tuple[Tensor, Tensor]]()

        def student(z_t: Tensor, t: Tensor, seen: Any = seen, of: Any = context.student) -> tuple[Tensor, Tensor]:
            seen.append((z_t, t))
            return of(z_t, t)

        trainer.method.loss(replace(context, student=student))
        ((z_t, t),) = seen
        yield t, z_t, context.initial, context.schedule.add_noise(context.x, context.eps, t)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_training_starts_from_the_samplers_initial_latents_and_at_no_later_time(make: Make, rollout: float) -> None:
    trainer = started(make, loss={"rollout": rollout})
    times = set()
    for t, z_t, initial, noised in evaluations(trainer, 16):
        times |= set(t.tolist())
        assert len(set(t.tolist())) == 1
        if t[0] == 0.5:  # not the ground truth under noise, but the condition
            assert torch.equal(z_t, initial)
            assert (z_t - noised).abs().mean() > 1e-3
        elif rollout:
            assert (z_t - noised).abs().mean() > 1e-3
        else:
            assert torch.equal(z_t, noised)
    assert times == set(GRID)


def test_with_times_per_sample_the_rows_at_the_start_begin_with_the_condition(make: Make) -> None:
    trainer = started(make, loss={"shared_t": False}, batch=8)
    at_start = []
    for t, z_t, initial, noised in evaluations(trainer, 4):
        first = t == 0.5
        at_start.append(first)
        assert torch.equal(z_t[first], initial[first])
        assert torch.equal(z_t[~first], noised[~first])
    assert torch.cat(at_start).any()
    assert not torch.cat(at_start).all()


def test_training_from_there_continues_after_an_interruption(make: Make) -> None:
    trainer = started(make, loss={"rollout": 0.5})
    terms = [trainer.train_step() for _ in range(2)]
    trainer.save()
    again = started(make, loss={"rollout": 0.5})
    assert again.restore()
    assert again.ema.start == 0.5
    assert all(np.isfinite(value) for row in [*terms, again.train_step()] for value in row.values())
