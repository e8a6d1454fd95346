"""Sampling that begins with the condition: the engine and the training begin alike, and who cannot says so."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import record_of, stir
from torch import Tensor
from training import Make

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import DistillOptions
from codi_hub.diffusion.samplers import sample
from codi_hub.diffusion.schedule import sampling_timesteps
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine
from codi_hub.training import step as methods
from codi_hub.training.job import Job, settled
from codi_hub.training.run import _new_adapter
from codi_hub.training.trainer import Trainer

KINDS = ("control", "lora", "static", "residual", "full")


@pytest.mark.parametrize("share", [0.5, 0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_state_is_the_condition_under_noise(any_base: FrozenBase, kind: str, share: float) -> None:
    told = {} if share == 0.5 else {"start_noise": share}
    adapter = adapters.build(kind, any_base, start=0.5, **told)
    condition, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    t = torch.tensor([499, 499])
    expected = any_base.schedule.add_noise(any_base.encode(condition), share * noise, t)
    assert {"start": 0.5} | told == {name: adapter.config[name] for name in ("start", *told)}
    assert torch.equal(adapter.begun(any_base, condition, noise), expected)
    assert adapter.horizon(1000) == 500
    usual = adapters.build(kind, any_base)
    assert usual.begun(any_base, condition, noise) is noise
    assert (usual.horizon(1000), usual.config.get("start")) == (1000, None)


def test_the_engine_walks_from_there_and_each_picture_is_itself_in_any_batch(base: FrozenBase) -> None:
    torch.manual_seed(0)
    adapter = stir(adapters.build("static", base, start=0.5)).eval()
    conditions = [np.random.default_rng(k).random((16, 24, 3), np.float32) for k in range(2)]
    made = Engine(base).generate(adapter, conditions, ["", "a red ball"], [3, 5], steps=2)
    with torch.no_grad():
        given = torch.from_numpy(conditions[1]).permute(2, 0, 1)[None]
        noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(5))[None]
        prompt, prepared = base.embed(["a red ball"]), adapter.prepare(given)
        denoise = base.schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))
        x_hat = sample(denoise, adapter.begun(base, given, noise), [499, 249], base.schedule)
        expected = base.decode(x_hat)[0].permute(1, 2, 0).numpy()
    assert np.abs(made[1] - expected).max() < 1e-5


@pytest.mark.parametrize("start", [0.0, 0.01, 1.1, "half", True])
def test_a_start_that_cannot_be_is_refused(base: FrozenBase, start: object) -> None:
    with pytest.raises(UsageError, match=r"--start .*: from 0\.02 to 1"):
        adapters.build("control", base, start=start)


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True])
def test_a_noise_that_cannot_be_is_refused(base: FrozenBase, share: object) -> None:
    with pytest.raises(UsageError, match=r"--start-noise .*: from 0 to 1"):
        adapters.build("control", base, start=0.5, start_noise=share)


@pytest.mark.parametrize(("before", "wanted", "expected"), [(None, 0.0, 0.0), (0.25, None, 0.25), (0.25, 0.75, 0.75)])
def test_a_version_gone_on_from_keeps_its_noise_unless_told_another(
    base: FrozenBase, tmp_path: Path, before: float | None, wanted: float | None, expected: float
) -> None:
    adapter = adapters.build("static", base, start=0.5, **({} if before is None else {"start_noise": before}))
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    options = DistillOptions(parent="edit:1", start_noise=wanted)
    parent = ("edit:1", tmp_path / format.WEIGHTS, tmp_path / format.RECORD)
    job = Job("edit", "edit", {}, "tiny", "tiny", options, tmp_path / "run", parent)
    assert _new_adapter(job, base, SimpleNamespace(condition_channels=3)).start_noise == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"start": 0.5}, 1.0),  # a noised target would give itself away
        ({"start": 0.5, "start_noise": 0.5}, 0.0),
        ({"start": 0.5, "rollout": 0.25}, 0.25),
        ({"start": 0.5, "shared_t": False}, 0.0),
        ({}, 0.0),
    ],
)
def test_what_begins_with_a_bare_picture_learns_from_states_of_the_sampler(
    base: FrozenBase, tmp_path: Path, told: dict[str, Any], expected: float
) -> None:
    job = Job("edit", "edit", {}, "tiny", "tiny", DistillOptions(kind="static", **told), tmp_path / "run")
    assert settled(job).options.rollout == expected
    begun = {name: value for name, value in told.items() if name.startswith("start")}
    adapter = adapters.build("static", base, **{"start_noise": 0.0} | begun)
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    parent = ("edit:1", tmp_path / format.WEIGHTS, tmp_path / format.RECORD)
    options = DistillOptions(parent="edit:1", **{name: value for name, value in told.items() if name not in begun})
    assert settled(replace(job, options=options, parent=parent)).options.rollout == expected


def test_noise_at_a_start_from_noise_is_refused(tmp_path: Path) -> None:
    job = Job("edit", "edit", {}, "tiny", "tiny", DistillOptions(kind="static", start_noise=0.5), tmp_path / "run")
    with pytest.raises(UsageError, match=r"--start-noise 0\.5: sampling begins with nothing but noise: add --start"):
        settled(job)


def test_without_being_told_a_new_adapter_begins_without_noise(base: FrozenBase, tmp_path: Path) -> None:
    job = Job("edit", "edit", {}, "tiny", "tiny", DistillOptions(kind="static", start=0.5), tmp_path / "run")
    made = _new_adapter(job, base, SimpleNamespace(condition_channels=3))
    assert made.config["start_noise"] == 0
    condition = torch.rand(1, 3, 16, 16)
    one, other = (made.begun(base, condition, torch.randn(1, 4, 8, 8)) for _ in range(2))
    assert torch.equal(one, other)


def test_who_has_no_picture_to_start_from_or_shares_a_batch_says_so(base: FrozenBase) -> None:
    with pytest.raises(UsageError, match="the condition is no picture to start from"):
        adapters.build("static", base, condition_channels=2, start=0.5)
    with pytest.raises(UsageError, match="shares no batch with others"):
        MixedBatch([adapters.build("static", base), adapters.build("static", base, start=0.5)])


def test_a_map_is_begun_with_as_a_gray_picture_and_a_mask_is_left_out(base: FrozenBase) -> None:
    whole, noise = torch.rand(2, 4, 16, 16), torch.randn(2, 4, 8, 8)
    for channels, picture in ((1, whole[:, [0, 0, 0]]), (4, whole[:, :3])):
        adapter = adapters.build("side", base, condition_channels=channels, start=0.5, start_noise=0.0)
        expected = base.schedule.add_noise(base.encode(picture), 0 * noise, torch.tensor([499, 499]))
        assert torch.equal(adapter.begun(base, whole[:, :channels], noise), expected)


def started(make: Make, **options: object) -> Trainer:
    """A trainer of an adapter that starts at half of the schedule."""
    trainer = make(grid=4, **options)
    adapter = adapters.build("static", make.base, start=0.5)
    return Trainer(make.base, adapter, make.cache, trainer.options, trainer.accelerator, total=6, folder=make.folder)


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_training_sees_what_the_sampler_begins_with_and_no_time_above_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, rollout: float
) -> None:
    trainer = started(make, rollout=rollout)
    assert trainer.grid.tolist() == sampling_timesteps(4, 500)[::-1] == [124, 249, 374, 499]
    seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def codi_loss(*given: Tensor, z_t: Tensor, **_: object) -> dict[str, Tensor]:
        seen.append((int(given[4][0]), given[2], given[3], z_t))
        return {"guidance": torch.zeros(())}

    monkeypatch.setattr(methods, "codi_loss", codi_loss)
    for step in range(16):
        trainer.losses(step, 0)
    assert {t for t, *_ in seen} == set(trainer.grid.tolist())
    schedule = make.base.schedule
    for t, x, eps, z_t in seen:
        noised = schedule.add_noise(x, eps, torch.full((len(x),), t))
        if t == 499:  # not the target under noise, but the condition
            assert (z_t - noised).abs().mean() > 1e-3
        elif not rollout:
            assert torch.equal(z_t, noised)


def test_mixed_times_see_it_where_their_own_time_is_the_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = started(make, shared_t=False, batch=8)
    seen: list[tuple[Tensor, Tensor]] = []

    def codi_loss(*given: Tensor, z_t: Tensor, **_: object) -> dict[str, Tensor]:
        apart = (z_t - make.base.schedule.add_noise(given[2], given[3], given[4])).abs().amax((1, 2, 3)) > 1e-6
        seen.append((given[4] == 499, apart))
        return {"guidance": torch.zeros(())}

    monkeypatch.setattr(methods, "codi_loss", codi_loss)
    for step in range(4):
        trainer.losses(step, 0)
    first, apart = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert first.any()
    assert torch.equal(first, apart)


def test_training_from_there_goes_on_after_an_interruption(make: Make, tmp_path: Path) -> None:
    trainer = started(make, rollout=0.5)
    terms = [trainer.train_step() for _ in range(2)]
    trainer.save()
    again = started(make, rollout=0.5)
    assert again.restore()
    assert again.target.start == 0.5
    assert all(np.isfinite(value) for row in [*terms, again.train_step()] for value in row.values())
