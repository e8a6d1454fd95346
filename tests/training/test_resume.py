"""Training that is interrupted, killed or spoilt, and goes on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training import Make, equal, quiet, weights

from codi_hub import interrupts
from codi_hub.errors import InvalidInput
from codi_hub.events import Event, TrainingStep
from codi_hub.training import checkpoint
from codi_hub.training.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "control"},
        {"kind": "control", "adapter": {"fusion": "gate"}, "accumulate": 2, "loss": {"shared_t": False}},
        {"adapter": {"fusion": "gate"}, "accumulate": 2},
        {"mixed_precision": "bf16"},
        {"loss": {"rollout": 0.7}},
        {"kind": "control", "loss": {"adversarial": 0.2}},
        {"adapter": {"start": 0.5}, "lr": 3e-3},
        {"kind": "residual"},
        {"kind": "lora"},
        {"method": "codi"},
        {"method": "conditional"},
        {"method": "conditional", "kind": "full"},
        {"method": "cm"},
        {"method": "cm", "kind": "full", "loss": {"shared_t": False}},
        {"method": "gd", "lr": 1e-2},
        {"method": "gd", "kind": "full", "accumulate": 2},
    ],
    ids=str,
)
def test_interrupted_and_restored_training_gives_the_same_weights(
    make: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = make(**options)
    whole.run(quiet)
    (tmp_path / checkpoint.NAME).unlink()

    def interrupt(event: Event) -> None:
        if isinstance(event, TrainingStep) and event.step == 3:
            raise KeyboardInterrupt

    broken = make(**options)
    with pytest.raises(KeyboardInterrupt):
        broken.run(interrupt)
    assert not equal(weights(broken), weights(whole))
    resumed = make(**options)
    torch.manual_seed(99)  # no global generator is drawn from
    assert resumed.restore()
    assert resumed.progress.step == 3
    assert equal(weights(resumed), weights(broken))
    resumed.run(quiet)
    assert resumed.progress.step == whole.progress.step == 6
    assert equal(weights(resumed), weights(whole))


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(make: Make, tmp_path: Path) -> None:
    """Killed: nothing is saved on the way out, and the write of the next checkpoint is left half done."""
    whole = make(train_steps=5)
    whole.run(quiet)
    (tmp_path / checkpoint.NAME).unlink()
    killed = make(train_steps=5)
    for _ in range(2):
        killed.train_step()
    killed.save()
    killed.train_step()
    part = tmp_path / ".codi-0123.part"
    part.write_bytes((tmp_path / checkpoint.NAME).read_bytes()[:1000])
    resumed = make(train_steps=5)
    assert resumed.restore()
    assert resumed.progress.step == 2
    resumed.run(quiet)
    assert equal(weights(resumed), weights(whole))
    assert not part.exists()


def test_the_scale_of_fp16_gradients_is_kept(make: Make) -> None:
    def with_scaler() -> Trainer:
        trainer = make()
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return trainer

    trainer = with_scaler()
    trainer.train_step()
    trainer.accelerator.scaler.update(128.0)
    trainer.save()
    resumed = with_scaler()
    assert resumed.restore()
    assert resumed.accelerator.scaler.state_dict() == trainer.accelerator.scaler.state_dict()
    assert resumed.accelerator.scaler.get_scale() == 128.0
    assert resumed.progress.step == 1
    plain = make()
    assert plain.restore()  # in another precision the scale has no meaning
    assert plain.progress.step == 1


def test_nothing_to_restore_is_no_error(make: Make) -> None:
    trainer = make()
    trainer.save()  # before the first step there is nothing to keep
    assert not trainer.restore()
    assert trainer.progress.step == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other adapter", "other file"])
def test_a_damaged_checkpoint_is_refused_in_one_line(make: Make, tmp_path: Path, damage: str) -> None:
    trainer = make()
    trainer.train_step()
    trainer.save()
    path = tmp_path / checkpoint.NAME
    data = path.read_bytes()
    if damage == "other adapter":
        other = make(adapter={"fusion": "gate"})
        other.train_step()
        other.save()
    elif damage == "other file":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "garbage": b"\xff" * 100}[damage])
    with pytest.raises(InvalidInput, match="start a new run") as caught:
        make().restore()
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_replace_no_checkpoint(make: Make) -> None:
    trainer = make()
    trainer.train_step()
    trainer.save()
    with torch.no_grad():
        next(iter(trainer.modules()["student"].parameters())).fill_(float("inf"))
    with pytest.raises(FloatingPointError):
        trainer.run(quiet)
    restored = make()
    assert restored.restore()
    assert all(bool(value.isfinite().all()) for value in restored.modules()["student"].parameters())


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_during_a_step_waits_for_its_end_and_the_checkpoint(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = {one: signal.getsignal(one) for one in interrupts.SIGNALS}
    interrupts.install()
    trainer = make()
    plain = trainer.losses
    monkeypatch.setattr(trainer, "losses", lambda step, micro: (os.kill(os.getpid(), number), plain(step, micro))[1])
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(quiet)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    restored = make()
    assert restored.restore()
    assert restored.progress.step == trainer.progress.step == 1
    assert equal(weights(restored), weights(trainer))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_weights(
    make: Make, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    trainer = make()
    trainer.train_step()
    before, plain = weights(trainer), trainer.losses
    monkeypatch.setattr(
        trainer, "losses", lambda step, micro: {name: v * value for name, v in plain(step, micro).items()}
    )
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        trainer.run(quiet)
    assert trainer.progress.step == 1
    restored = make()
    assert restored.restore()
    assert equal(weights(restored), before)
