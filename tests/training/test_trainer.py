"""The trainer: what it sees in which order, what its switches do, and when it ends."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import PAIRS, Make, equal, quiet, weights

from codi_hub.config.options import DistillOptions
from codi_hub.losses.codi import codi_loss
from codi_hub.training.trainer import CLIP, WARM_UP_STEPS

# ---- one step


@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_every_tensor_of_student_and_target_has_moved_after_two_steps(make: Make, fusion: str) -> None:
    trainer = make(fusion=fusion)
    for group in trainer.optimiser.param_groups:
        group["weight_decay"] = 0.0  # so that only gradients move anything
    before = weights(trainer)
    frozen = {name: value.clone() for name, value in trainer.base.state_dict().items()}
    for _ in range(2):
        trainer.train_step()
    after = weights(trainer)
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert all(torch.equal(value, frozen[name]) for name, value in trainer.base.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in trainer.target.parameters())


def test_training_lowers_the_loss_of_what_it_sees(make: Make) -> None:
    trainer = make(total=60, batch=10, lr=1e-2)

    def mean(name: str) -> float:
        with torch.no_grad():
            return sum(trainer.losses(step, 0)[name].item() for step in range(8)) / 8

    before = mean("guidance")
    for _ in range(60):
        trainer.train_step()
    assert mean("guidance") < 0.8 * before
    trainer.student = trainer.target  # the average that is kept in the end has learnt it too
    assert mean("guidance") < 0.8 * before


def test_the_moving_average_forgets_faster_while_it_is_young(make: Make) -> None:
    trainer = make(ema=0.5, lr=1e-2)
    for step in range(3):
        old = {name: value.clone() for name, value in trainer.target.named_parameters()}
        trainer.train_step()
        gamma = min(0.5, (1 + step) / (10 + step))
        for name, value in trainer.student.named_parameters():
            expected = gamma * old[name] + (1 - gamma) * value
            assert torch.allclose(trainer.target.get_parameter(name), expected, atol=1e-6)


def test_rate_rises_stays_and_falls_to_zero(make: Make) -> None:
    trainer = make(total=200)
    factors = []
    for step in range(201):
        trainer.progress.step = step
        factors.append(trainer.rate_factor())
    assert factors[0] == pytest.approx(1 / WARM_UP_STEPS)
    assert factors[WARM_UP_STEPS:100] == [1.0] * (100 - WARM_UP_STEPS)
    assert factors[150] == pytest.approx(0.5)
    assert factors[200] == 0.0
    trainer.options = DistillOptions(time_budget=10)
    trainer.progress.step, trainer.progress.seconds = 100, 7.5
    assert trainer.rate_factor() == pytest.approx(0.5)


def test_gates_are_clipped_apart_after_one_unscaling(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 a second unscaling in one step is an error."""
    trainer = make(fusion="gate")
    calls: list[int] = []
    monkeypatch.setattr(trainer.accelerator, "unscale_gradients", lambda *_: calls.append(1))
    norms: list[list[float]] = []
    step = trainer.optimiser.step

    def watched() -> None:
        groups = trainer.optimiser.param_groups
        norms.append([float(sum(p.grad.square().sum() for p in group["params"]) ** 0.5) for group in groups])
        step()

    monkeypatch.setattr(trainer.optimiser, "step", watched)
    monkeypatch.setattr(trainer, "losses", lambda *_, plain=trainer.losses: {k: 1e6 * v for k, v in plain(*_).items()})
    trainer.train_step()
    trainer.train_step()
    assert calls == [1, 1]
    assert norms[1] == pytest.approx([CLIP, CLIP], rel=1e-3)


# ---- what is seen


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_one_t_is_shared_by_a_steps_micro_batches_and_otherwise_mixed(make: Make, accumulate: int) -> None:
    shared, mixed = (make(batch=4, accumulate=accumulate, shared_t=flag) for flag in (True, False))
    seen: dict[str, list[list[int]]] = {"shared": [], "mixed": []}
    for step in range(40):
        for name, trainer in (("shared", shared), ("mixed", mixed)):
            times = [trainer.times(step, trainer.rows(step, micro)[1])[0] for micro in range(accumulate)]
            seen[name].append(torch.cat(times).tolist())
    assert all(len(set(ts)) == 1 for ts in seen["shared"])
    assert sum(len(set(ts)) > 1 for ts in seen["mixed"]) > 35
    for found in seen.values():
        assert {t for ts in found for t in ts} == {124, 249, 374, 499, 624, 749, 874, 999}


@pytest.mark.parametrize("shared_t", [True, False])
@pytest.mark.parametrize(("grid", "dt"), [(8, 1), (8, 3), (50, 1), (2, 1)])
def test_s_is_dt_grid_points_before_t(make: Make, grid: int, dt: int, shared_t: bool) -> None:
    trainer = make(grid=grid, dt=dt, batch=4, shared_t=shared_t)
    points = [0, *trainer.grid.tolist()]  # the clean end is the first timestep, whose sigma is not zero
    for step in range(60):
        for t, s in zip(*(v.tolist() for v in trainer.times(step, 4 * step)), strict=True):
            assert points.index(t) - points.index(s) == dt
            assert trainer.base.schedule.sigmas[s] > 0


def test_accumulated_batches_see_the_pairs_and_noise_of_one_twice_as_large(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def recorded(
        student: Any, target: Any, x: Tensor, eps: Tensor, t: Tensor, s: Tensor, *rest: Any, **named: Any
    ) -> Any:
        seen.append((x, eps, t, s))
        return codi_loss(student, target, x, eps, t, s, *rest, **named)

    monkeypatch.setattr("codi_hub.training.step.codi_loss", recorded)
    gradients, losses = [], []
    for options in ({"batch": 2, "accumulate": 2}, {"batch": 4, "accumulate": 1}):
        trainer = make(lr=1e-3, **options)
        trainer.progress.step = 3
        kept: list[Tensor] = []

        def keep(params: list[Tensor], norm: float, kept: list[Tensor] = kept) -> Tensor:
            kept.extend(p.grad for p in params)
            return torch.tensor(norm)

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", keep)
        losses.append(trainer.train_step())
        gradients.append([value.clone() for value in kept])
    halves, whole = seen[:2], seen[2]
    for place in range(4):
        assert torch.equal(torch.cat([half[place] for half in halves]), whole[place])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_an_epoch_shows_every_pair_once_in_a_new_order(make: Make) -> None:
    trainer = make(batch=5)
    epochs = [torch.cat([trainer.rows(2 * epoch + k, 0)[0] for k in range(2)]).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(PAIRS)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert make(batch=5, seed=1).rows(0, 0)[0].tolist() != epochs[0][:5]
    across = make(batch=4).rows(2, 0)[0].tolist()  # the last two of one epoch and the first two of the next
    assert across == epochs[0][8:] + epochs[1][:2]


def test_step_k_depends_on_its_number_alone(make: Make) -> None:
    one, other = make(), make()
    for step in (0, 1, 2):
        one.losses(step, 0)
    found, expected = one.losses(4, 0), other.losses(4, 0)
    assert {name: value.item() for name, value in found.items()} == {name: v.item() for name, v in expected.items()}
    assert make(seed=5).losses(4, 0)["guidance"].item() != expected["guidance"].item()


def test_each_pair_keeps_its_condition_and_prompt(make: Make) -> None:
    trainer = make()
    rows, _ = trainer.rows(1, 0)
    bound: list[tuple[Tensor, Tensor]] = []
    bind = trainer.bind
    trainer.bind = lambda network, prompt, condition: (
        bound.append((prompt, condition)) or bind(network, prompt, condition)
    )
    trainer.losses(1, 0)
    for prompt, condition in bound:
        assert torch.equal(condition, trainer.cache.conditions[rows].float() / 255)
        assert torch.equal(prompt, trainer.base.embed([trainer.cache.prompts[k] for k in rows]))
    assert len(bound) == 2  # student and target


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"guidance", "consistency"}),
        ({"consistency": False}, {"guidance"}),
        ({"guidance": "off"}, {"consistency"}),
        ({"guidance": "pixel"}, {"guidance", "consistency"}),
        ({"guidance": "relative"}, {"guidance", "consistency"}),
        ({"guidance": "roundtrip", "ode": "noise"}, {"guidance", "consistency"}),
        ({"ode": "none", "consistency_cap": False}, {"guidance", "consistency"}),
    ],
    ids=str,
)
def test_every_switch_trains(make: Make, options: dict[str, Any], names: set[str]) -> None:
    trainer = make(**options)
    before = weights(trainer)
    assert trainer.train_step().keys() == names
    assert trainer.train_step().keys() == names
    assert not equal(weights(trainer), before)


def test_switches_reach_the_loss(make: Make) -> None:
    step = 1
    plain = {name: value.item() for name, value in make(lr=1e-3).losses(step, 0).items()}
    found = {
        str(options): make(**options).losses(step, 0)
        for options in (
            {"ode": "none"},
            {"consistency_weight": 3.0},
            {"consistency_cap": False},
            {"guidance": "pixel"},
            {"guidance": "roundtrip"},
        )
    }
    values = {key: (terms["guidance"].item(), terms["consistency"].item()) for key, terms in found.items()}
    assert values["{'consistency_weight': 3.0}"][1] == pytest.approx(3 * plain["consistency"])
    assert values["{'ode': 'none'}"][1] != pytest.approx(plain["consistency"], rel=1e-3)
    assert values["{'consistency_cap': False}"][1] >= plain["consistency"]
    pixel, roundtrip = values["{'guidance': 'pixel'}"][0], values["{'guidance': 'roundtrip'}"][0]
    assert len({round(value, 6) for value in (plain["guidance"], pixel, roundtrip)}) == 3


# ---- the loop


def test_the_run_reports_each_step_and_keeps_its_rhythm(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(total=7, batch=2, accumulate=2, sample_every=3, checkpoint_every=2)
    events: list[Any] = []
    sampled: list[int] = []
    saved: list[int] = []
    monkeypatch.setattr(trainer, "save", lambda: saved.append(trainer.progress.step))
    trainer.run(events.append, sampled.append)
    assert [event.step for event in events] == list(range(1, 8))
    assert all(event.total == 7 for event in events)
    assert all(event.losses.keys() == {"guidance", "consistency"} for event in events)
    assert all(event.images_per_s > 0 and event.eta >= 0 for event in events)
    assert events[-1].eta == 0
    assert sampled == [3, 6]
    assert saved == [2, 4, 6, 7]


def test_a_time_budget_ends_the_run_after_one_step_at_least(make: Make) -> None:
    trainer = make(total=None, time_budget=0.001)
    trainer.run(quiet)
    assert trainer.progress.step == 1
    longer = make(total=None, time_budget=0.5, batch=1)
    longer.run(quiet)
    assert longer.progress.step > 1
    assert 0.5 <= longer.progress.seconds < 5
