"""What makes a training fit: checkpointing, optimiser, moving average, sizes, and the launcher's options."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training import Make, equal, quiet, weights

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.config.base import BaseOptions
from codi_hub.config.distill import DistillConfig, TrainingConfig
from codi_hub.config.layers import preset_names, read_preset
from codi_hub.errors import CodiError, UsageError
from codi_hub.training import launch, sizes
from codi_hub.training.folder import compose
from codi_hub.training.job import Job, Plan, plan
from codi_hub.training.memory import enough_memory


def gradients(make: Make, **options: Any) -> dict[str, torch.Tensor]:
    trainer = make(**options)
    terms = trainer.losses(1, 0)
    torch.stack(list(terms.values())).sum().backward()
    return {name: p.grad.clone() for name, p in trainer.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["control", "lora", "static", "full"])
def test_checkpointing_gives_the_same_gradients_and_runs_blocks_again(
    make: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"kind": kind, "method": "codi" if kind == "full" else "pe-codi"}
    plain = gradients(make, **options)
    again: list[int] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*args: Any, **named: Any) -> Any:
        again.append(1)
        return checkpoint(*args, **named)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    try:
        found = gradients(make, checkpointing=True, **options)
    finally:
        make.base.unet.disable_gradient_checkpointing()
        make.base.vae.disable_gradient_checkpointing()
    assert again
    assert equal(found, plain)


def test_without_an_average_the_student_is_the_target(make: Make, tmp_path: Path) -> None:
    off = make(ema=0.0, lr=1e-3)
    off.run(quiet)
    assert off.ema is off.accelerator.unwrap_model(off.student)
    assert "target" not in off.modules()
    resumed = make(ema=0.0, lr=1e-3)
    assert resumed.restore()
    assert equal(weights(resumed), weights(off))


def test_an_average_on_the_cpu_is_copied_to_the_device_for_an_evaluation(make: Make) -> None:
    """The device is `meta`'s stand-in: the copy is another network with the same weights."""
    plain, other = make(lr=1e-3), make(lr=1e-3, ema_device="cpu")
    for trainer in (plain, other):
        trainer.train_step()
    assert equal(weights(plain), weights(other))
    from codi_hub.training.networks import on_device

    copy = on_device(other.ema, torch.device("meta"))
    assert copy is not other.ema
    assert {p.device.type for p in copy.parameters()} == {"meta"}
    assert on_device(other.ema, torch.device("cpu")) is other.ema


def test_eight_bit_adamw_resumes_where_it_stopped(make: Make, tmp_path: Path) -> None:
    options = {"optimizer": "adamw8bit", "lr": 1e-3, "train_steps": 4, "kind": "control"}
    whole = make(**options)
    whole.run(quiet)
    assert any(v.get("state1") is not None and v["state1"].dtype == torch.uint8 for v in whole.optimiser.state.values())
    broken = make(**options)
    for _ in range(2):
        broken.train_step()
    broken.save()
    resumed = make(**options)
    assert resumed.restore()
    resumed.run(quiet)
    assert equal(weights(resumed), weights(whole))


def test_an_optimiser_whose_package_is_absent_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(UsageError, match=r"^training.optimizer adamw8bit: bitsandbytes is not installed; pip install"):
        make(optimizer="adamw8bit")


def test_an_optimiser_that_cannot_run_here_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no kernel")

    fake = type("module", (), {"AdamW8bit": Broken})
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", fake)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", fake)
    with pytest.raises(UsageError, match=r"^training.optimizer adamw8bit: bitsandbytes cannot run on cpu here"):
        make(optimizer="adamw8bit")


# ---- sizes


def planned(**training: Any) -> Plan:
    config = compose("superres", {"lr": 6e-4}, [{"training": training}] if training else [], Path("unused"))
    return plan(Job("superres", "superres", {}, "sd", BaseOptions(source="nowhere"), config, Path("unused")))


def sized(work: Plan, base: Backbone, monkeypatch: pytest.MonkeyPatch, parameters: int) -> tuple[int, int, float]:
    own = sum(p.numel() for p in base.network.parameters())
    monkeypatch.setattr(sizes, "count_parameters", lambda net: parameters if net is base.network else own // 2)
    training = sizes.sized(work, base).config.training
    return training.batch, training.accumulate, training.lr


def test_batch_and_rate_follow_the_size_of_the_base(base: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    own = sum(p.numel() for p in base.network.parameters())
    assert sized(planned(), base, monkeypatch, own) == (16, 1, 6e-4)
    assert sized(planned(), base, monkeypatch, 900_000_000) == (4, 1, 1e-4)
    assert sized(planned(), base, monkeypatch, 2_600_000_000) == (1, 4, 1e-4)
    monkeypatch.setattr(sizes, "LIGHT", 0.0)
    assert sized(planned(), base, monkeypatch, 900_000_000) == (4, 1, 1e-5)
    assert sized(planned(batch=2, lr=6e-4), base, monkeypatch, 2_600_000_000) == (2, 4, 6e-4)


# ---- accelerate launch


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "no dynamo backend is supported"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed precision fp8 is not supported"),
    ],
)
def test_what_the_launcher_cannot_have_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^accelerate launch: .*{message}"):
        launch.honoured(TrainingConfig(), environment)


def test_what_the_launcher_was_told_is_honoured_unless_it_contradicts() -> None:
    told = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_FSDP": "false",
    }
    found = launch.honoured(TrainingConfig(batch=2), told)
    assert (found.precision, found.accumulate, found.device, found.batch) == ("bf16", 4, "cpu", 2)
    plain = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "False"}
    assert launch.honoured(TrainingConfig(precision="fp16"), plain) == TrainingConfig(precision="fp16")
    for training in (TrainingConfig(precision="fp32"), TrainingConfig(accumulate=2), TrainingConfig(device="cuda:1")):
        with pytest.raises(UsageError, match="accelerate launch was told"):
            launch.honoured(training, told)


# ---- running out of memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_says_what_to_lower(error: BaseException) -> None:
    with pytest.raises(CodiError) as caught, enough_memory(planned(batch=4)):
        raise error
    assert str(caught.value) == (
        "not enough memory: lower training.batch (4) or data.size (that of the base), or set training.checkpointing, "
        "train adapter.kind lora, training.ema 0, training.optimizer adamw8bit"
    )


def test_a_configuration_keeps_what_was_asked_for(tmp_path: Path) -> None:
    config = compose("superres", {"lr": 6e-4, "count": 10}, [{"training": {"batch": 2}}], tmp_path)
    assert isinstance(config, DistillConfig)
    assert config.training.model_fields_set == {"batch"}
    assert (config.training.lr, config.data.count) == (6e-4, 10)


@pytest.mark.parametrize("name", preset_names())
def test_a_presets_batch_and_rate_give_way_on_larger_bases(name: str, tmp_path: Path) -> None:
    preset = read_preset(name)
    config = compose("superres", {"lr": 3e-3, "count": 10}, [{"training": {"ema": 0.5}}], tmp_path, preset)
    assert config.training.model_fields_set == {"ema"}
    training = preset.get("training", {})
    assert (config.training.lr, config.training.batch) == (training.get("lr", 3e-3), training.get("batch", 16))
