"""Training for guidance: pairs without their prompts, and teachers whose predictions are guided."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import trained
from torch import Tensor
from training import Make, equal, quiet, weights

from codi_hub.backbones.unet import UNetBackbone
from codi_hub.config.base import BaseOptions
from codi_hub.config.distill import DistillConfig
from codi_hub.errors import UsageError
from codi_hub.losses.codi import CoDiConfig, PECoDi
from codi_hub.losses.method import StepContext
from codi_hub.training.folder import CONFIG, claim
from codi_hub.training.job import Job, plan
from codi_hub.training.stream import PairStream
from codi_hub.training.trainer import Trainer

W = 30.0  # the effect of prompts on a random network is small


def planned(folder: Path, **sections: Any) -> Any:
    config = DistillConfig(**sections)
    return plan(Job("depth", "depth", {}, "tiny", BaseOptions(source="nowhere"), config, folder))


# ---- prompt dropout


def test_a_pair_is_dropped_by_its_place_in_the_stream_alone() -> None:
    whole = PairStream(100, 1000, 1, seed=7).dropped(0, 0.1)
    assert 60 < int(whole.sum()) < 140
    parts = [PairStream(100, 50, 1, seed=7).dropped(start, 0.1) for start in range(0, 1000, 50)]
    assert torch.equal(torch.cat(parts), whole)
    assert int(PairStream(100, 1000, 1, seed=7).dropped(0, 0.5).sum()) > 400
    assert not torch.equal(PairStream(100, 1000, 1, seed=8).dropped(0, 0.1), whole)


def prompts_seen(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    original = Trainer.bind

    def bind(self: Trainer, network: Any, prompt: Any, condition: Tensor, *, trained: bool = False) -> Any:
        if trained:
            seen.append(prompt["context"])
        return original(self, network, prompt, condition, trained=trained)

    monkeypatch.setattr(Trainer, "bind", bind)
    for step in range(8):
        trainer.context(step, 0)
    monkeypatch.undo()
    return seen


def test_a_dropped_pair_is_trained_under_no_prompt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = prompts_seen(make(method="conditional", batch=5), monkeypatch)
    dropped = prompts_seen(make(method="conditional", batch=5, prompt_dropout=0.5), monkeypatch)
    empty = make.base.embed([""])["context"][0]
    changed = 0
    for step, (now, before) in enumerate(zip(dropped, kept, strict=True)):
        rows = PairStream(10, 5, 1, seed=0).dropped(5 * step, 0.5)
        changed += int((now != before).any())
        for row, drop in enumerate(rows.tolist()):
            assert torch.equal(now[row], empty if drop else before[row])
    assert changed


def test_without_dropout_training_keeps_its_bits(make: Make) -> None:
    none, zero, some = (make(method="conditional", prompt_dropout=share) for share in (None, 0.0, 0.9))
    for trainer in (none, zero, some):
        trainer.train_step()
        trainer.train_step()
    assert equal(weights(none), weights(zero))
    assert not equal(weights(none), weights(some))


def test_the_default_is_the_methods_and_an_older_run_goes_on_without(tmp_path: Path) -> None:
    assert planned(tmp_path).config.training.prompt_dropout == 0.0
    work = planned(tmp_path, loss={"method": "conditional"})
    assert work.config.training.prompt_dropout == 0.1
    claim(work, 1)
    text = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(text.replace("  prompt_dropout: 0.1\n", ""))
    training = {"resume": True, "prompt_dropout": 0.1}
    with pytest.raises(UsageError, match=r"training\.prompt_dropout 0\.1: the run in .* was started with 0"):
        claim(planned(tmp_path, loss={"method": "conditional"}, training=training), 1)
    claim(planned(tmp_path, loss={"method": "conditional"}, training=training | {"prompt_dropout": 0.0}), 1)


# ---- guided teachers


@pytest.fixture
def teaching(make: Make, base: UNetBackbone) -> Any:
    """Make a trainer whose teacher differs from its student, and follows prompts."""

    def build(method: str, **loss: Any) -> Trainer:
        trainer = make(method=method, kind="control", loss=loss, batch=4)
        if trainer.teacher is not None:
            trainer.teacher.load_state_dict(trained(base, "control").state_dict())
        return trainer

    return build


def directly(trainer: Trainer, scale: float) -> Any:
    """The teacher's guided (x_hat, eps_hat), computed on the prediction itself."""
    rows, _ = trainer.stream.rows(0, 0)
    condition = trainer.cache.conditions[rows].float() / 255
    prompt = trainer.base.embed([trainer.cache.prompts[row] for row in rows])
    empty = trainer.base.embed([""] * len(rows))
    teacher: Any = trainer.teacher

    @torch.no_grad()
    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        cond, uncond = (teacher(trainer.base, z_t, t, text, condition) for text in (prompt, empty))
        return trainer.base.schedule.convert(uncond + scale * (cond - uncond), z_t, t)

    return denoise


def with_teacher(trainer: Trainer, context: StepContext, scale: float, phase: int = 0) -> StepContext:
    return replace(context, teacher=directly(trainer, scale), phase=phase)


def value(trainer: Trainer, context: StepContext) -> float:
    return sum(term.item() for term in trainer.method.loss(context).values())


@pytest.mark.parametrize("method", ["cm", "gd"])
def test_a_guided_teacher_is_a_teacher_that_predicts_so(teaching: Any, method: str) -> None:
    plain, guided = teaching(method), teaching(method, teacher_guidance=W)
    expected = value(plain, with_teacher(plain, plain.context(0, 0), W))
    assert value(guided, guided.context(0, 0)) == pytest.approx(expected, rel=1e-4)
    assert value(plain, plain.context(0, 0)) != pytest.approx(expected, rel=1e-2)


def test_progressive_distillation_guides_the_first_teacher_only(teaching: Any) -> None:
    """Later ones are students that learned the guided predictions: again would multiply the guidance."""
    plain, guided = teaching("gd"), teaching("gd", teacher_guidance=W)
    contexts = [replace(trainer.context(0, 0), phase=1) for trainer in (plain, guided)]
    assert value(plain, contexts[0]) == value(guided, contexts[1])


def test_codi_moves_its_target_by_the_teachers_guidance(teaching: Any) -> None:
    """The target is x + (w - 1) (x_hat with the prompt - x_hat without); the consistency term stays as it is."""
    plain, guided = teaching("pe-codi"), teaching("pe-codi", teacher_guidance=W)
    assert plain.teacher is None
    context, moved = plain.context(0, 0), guided.context(0, 0)
    times: list[Tensor] = []
    teacher = moved.teacher

    def watched(z_t: Tensor, t: Tensor) -> Any:
        times.append(t)
        return teacher(z_t, t)

    terms = guided.method.loss(replace(moved, teacher=watched))
    t = times[0]
    z_t = plain.base.schedule.add_noise(context.x, context.eps, t)
    target = context.x + directly(guided, W)(z_t, t)[0] - directly(guided, 1.0)(z_t, t)[0]
    x_hat = context.student(z_t, t)[0]
    assert terms["guidance"].item() == pytest.approx((target - x_hat).square().mean().item(), rel=1e-4)
    before = plain.method.loss(context)
    assert terms["guidance"].item() != pytest.approx(before["guidance"].item(), rel=1e-2)
    assert terms["consistency"].item() == before["consistency"].item()


@pytest.mark.slow
def test_the_teacher_stays_as_it_was(teaching: Any) -> None:
    """The moving average moves, and its own guided prediction would multiply the guidance from step to step."""
    trainer = teaching("pe-codi", teacher_guidance=W)
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    trainer.run(quiet)
    assert equal(before, trainer.teacher.state_dict())
    resumed = teaching("pe-codi", teacher_guidance=W)
    assert resumed.restore()
    assert equal(before, resumed.teacher.state_dict())


def test_a_target_in_pixels_cannot_be_moved() -> None:
    with pytest.raises(UsageError, match=r"loss\.teacher_guidance moves the target in latents: use it with"):
        PECoDi(CoDiConfig(teacher_guidance=W, guidance="pixel"), torch.device("cpu"))
