"""The memory of a training, counted on tensors without data."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_base, scheduler_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from training import Make

from codi_hub import backbones
from codi_hub.config.distill import TrainingConfig
from codi_hub.losses import METHODS
from codi_hub.training.latents import Cache
from codi_hub.training.memory import (
    Estimate,
    Meter,
    adapter_without_data,
    estimate,
    held,
    trainer_without_data,
    without_data,
)

FLOAT = 4  # bytes


def counted(
    folder: Path,
    *,
    size: int = 8,
    kind: str = "control",
    quantize: str | None = None,
    precision: str = "no",
    **training: Any,
) -> Estimate:
    """Return the estimate of a training on the base of the fixture `base`."""
    base = backbones.load(str(save_base(folder / "base", scheduler_config("v_prediction", zero_snr=True))))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    prompt = base.embed([""])
    without_data(base, mode)
    base.embed_texts = lambda texts: prompt.rows([0] * len(texts))  # type: ignore[method-assign]
    adapter = adapter_without_data(kind, base, mode, {})
    cls = METHODS.load("pe-codi")
    settings = TrainingConfig(**{"train_steps": 1, "batch": 2} | training)
    method = cls(cls.Config(), torch.device("cpu"))
    trainer = trainer_without_data(base, adapter, method, settings, (3, size), precision)
    return estimate(trainer, size, quantize=quantize)


def allocated(work: Callable[[], object]) -> int:
    """Return the most bytes at a time, by the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


def test_the_meter_counts_what_lives_at_once() -> None:
    layers = nn.Sequential(nn.Linear(100, 100, bias=False), nn.ReLU(), nn.Linear(100, 100, bias=False))
    x = torch.randn(10, 100)
    activation, weight = 10 * 100 * FLOAT, 100 * 100 * FLOAT
    with Meter() as meter:
        y = layers(x)
        assert meter.now == 2 * activation  # of the ReLU, kept for the backward pass, and the result
        assert meter.peak == 2 * activation
        y.sum().backward()
        assert meter.now == pytest.approx(activation + 2 * weight, abs=2 * FLOAT)  # y, and the gradients
        layers.zero_grad()
        del y
        assert meter.now <= 2 * FLOAT
        x.add_(1)
        assert meter.now <= 2 * FLOAT  # in place


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["control", "lora"])
def test_tensors_without_data_are_counted_as_the_allocator_counts_those_with_data(
    make: Make, tmp_path: Path, kind: str
) -> None:
    found = counted(tmp_path, kind=kind, size=128)
    make.cache = Cache(torch.zeros(2, 4, 64, 64).half(), torch.zeros(2, 3, 128, 128, dtype=torch.uint8), ["", ""])
    trainer = make(kind=kind)

    def step() -> None:
        torch.stack([*trainer.losses(0, 0).values()]).sum().backward()
        trainer.optimiser.zero_grad()

    step()  # what is allocated once is there
    assert found.step == pytest.approx(allocated(step), rel=0.02)
    assert found.adapter == found.average == held(trainer.student)
    assert found.optimiser == 2 * held(trainer.student)
    assert found.base == held(trainer.base.unet, trainer.base.vae)
    assert found.total == found.base + 4 * found.adapter + max(found.step, found.encoding)


@pytest.mark.slow
def test_what_saves_memory_lowers_its_part(tmp_path: Path) -> None:
    plain = counted(tmp_path / "a", size=64)
    saving = counted(tmp_path / "b", size=64, checkpointing=True, ema=0.0, optimizer="adamw8bit", quantize="nf4")
    assert saving.step < 0.8 * plain.step
    assert (saving.average, plain.average) == (0, plain.adapter)
    assert saving.optimiser < 0.26 * plain.optimiser
    assert saving.base < plain.base
    assert counted(tmp_path / "c", ema_device="cpu").average == 0
    assert counted(tmp_path / "d", size=64, accumulate=2).step > plain.step


@pytest.mark.slow
def test_a_trained_copy_of_the_base_is_counted_and_either_16_bit_precision(tmp_path: Path) -> None:
    control, full = counted(tmp_path / "a"), counted(tmp_path / "b", kind="full")
    assert full.adapter > control.adapter + 0.8 * full.base  # the rest is the autoencoder
    half, brain = (counted(tmp_path / name, size=64, precision=name) for name in ("fp16", "bf16"))
    assert half == brain


@pytest.mark.slow
def test_a_dry_run_prints_the_memory_and_leaves_nothing(
    codi: Callable[..., Any], base_folder: Path, tmp_path: Path
) -> None:
    assert codi("base", "add", "tiny", base_folder).code == 0
    command = ["distill", "superres", "--base", "tiny", "--kind", "control", "--run-dir", tmp_path / "x"]
    answer = codi(*command, "--dry-run")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0].startswith("superres on tiny: kind control, ")
    parts = ["base", "adapter", "average", "optimiser", "step", "encoding", "total"]
    assert [line.split()[0] for line in lines[1:]] == parts
    assert not (tmp_path / "x").exists()
    assert "superres:1" not in codi("list", "superres", "--base", "tiny").out
