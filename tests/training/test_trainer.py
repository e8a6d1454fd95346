"""The trainer: what it sees in which order, what its switches do, and when it ends."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import PAIRS, Make, equal, quiet, weights, without_gradient

from codi_hub.backbones.values import Prompt
from codi_hub.config.distill import TrainingConfig
from codi_hub.diffusion.schedule import Denoiser, RectifiedFlow
from codi_hub.events import Event, TrainingStep
from codi_hub.losses.codi import codi_loss
from codi_hub.losses.method import neighbours
from codi_hub.training.trainer import CLIP, WARM_UP_STEPS, Progress, Trainer

# ---- one step


@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
@pytest.mark.parametrize("kind", ["static", "control"])
def test_every_tensor_of_student_and_average_has_moved_after_two_steps(make: Make, kind: str, fusion: str) -> None:
    trainer = make(kind=kind, adapter={"fusion": fusion})
    for group in trainer.optimiser.param_groups:
        group["weight_decay"] = 0.0  # so that only gradients move anything
    before = weights(trainer)
    frozen = {name: value.clone() for name, value in trainer.base.state_dict().items()}
    for _ in range(2):
        trainer.train_step()
    after = weights(trainer)
    still = [name for name in before if torch.equal(before[name], after[name]) and not without_gradient(name)]
    assert still == []
    assert all(torch.equal(value, frozen[name]) for name, value in trainer.base.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in trainer.ema.parameters())


@pytest.mark.slow
def test_training_lowers_the_loss_of_what_it_sees(make: Make) -> None:
    trainer = make(kind="control", train_steps=60, batch=10, lr=1e-2)

    def mean(name: str) -> float:
        with torch.no_grad():
            return sum(trainer.losses(step, 0)[name].item() for step in range(8)) / 8

    before = mean("guidance")
    for _ in range(60):
        trainer.train_step()
    assert mean("guidance") < 0.8 * before
    trainer.student = trainer.ema  # the average that is kept in the end has learnt it too
    assert mean("guidance") < 0.8 * before


def test_the_moving_average_forgets_faster_while_it_is_young(make: Make) -> None:
    trainer = make(ema=0.5, lr=1e-2)
    for step in range(3):
        old = {name: value.clone() for name, value in trainer.ema.named_parameters()}
        trainer.train_step()
        gamma = min(0.5, (1 + step) / (10 + step))
        for name, value in trainer.student.named_parameters():
            expected = gamma * old[name] + (1 - gamma) * value
            assert torch.allclose(trainer.ema.get_parameter(name), expected, atol=1e-6)


def test_rate_rises_stays_and_falls_to_zero(make: Make) -> None:
    trainer = make(train_steps=200)
    factors = []
    for step in range(201):
        trainer.progress.step = step
        factors.append(trainer.rate_factor())
    assert factors[0] == pytest.approx(1 / WARM_UP_STEPS)
    assert factors[WARM_UP_STEPS:100] == [1.0] * (100 - WARM_UP_STEPS)
    assert factors[150] == pytest.approx(0.5)
    assert factors[200] == 0.0
    trainer.settings = TrainingConfig(train_steps=200, time_budget=10)
    trainer.progress.step, trainer.progress.elapsed = 100, 7.5
    assert trainer.rate_factor() == pytest.approx(0.5)


def test_gates_are_clipped_apart_after_one_unscaling(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 a second unscaling in one step is an error."""
    trainer = make(kind="control", adapter={"fusion": "gate"})
    calls: list[int] = []
    monkeypatch.setattr(trainer.accelerator, "unscale_gradients", lambda *_: calls.append(1))
    norms: list[list[float]] = []
    step = trainer.optimiser.step

    def watched() -> None:
        groups = trainer.optimiser.param_groups
        norms.append([torch.stack([p.grad.norm() for p in group["params"]]).norm().item() for group in groups])
        step()

    monkeypatch.setattr(trainer.optimiser, "step", watched)
    monkeypatch.setattr(trainer, "losses", lambda *_, plain=trainer.losses: {k: 1e6 * v for k, v in plain(*_).items()})
    trainer.train_step()
    trainer.train_step()
    assert calls == [1, 1]
    assert norms[1] == pytest.approx([CLIP, CLIP], rel=1e-3)


# ---- what is seen


def times(
    trainer: Trainer, step: int, micro: int, grid: int, dt: int = 1, *, shared: bool
) -> tuple[list[float], list[float]]:
    """(t, s) that the few-step losses draw in a micro-batch."""
    t, s = neighbours(trainer.context(step, micro), grid, dt, shared)
    return t.tolist(), s.tolist()


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_one_t_is_shared_by_a_steps_micro_batches_and_otherwise_mixed(make: Make, accumulate: int) -> None:
    trainer = make(batch=4, accumulate=accumulate)
    for shared in (True, False):
        drawn = [
            [t for micro in range(accumulate) for t in times(trainer, step, micro, 8, shared=shared)[0]]
            for step in range(40)
        ]
        alike = sum(len(set(ts)) == 1 for ts in drawn)
        assert alike == 40 if shared else alike < 5
        assert {t for ts in drawn for t in ts} == {k / 8 for k in range(1, 9)}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("grid", "dt"), [(8, 1), (8, 3), (50, 1), (2, 1)])
def test_s_is_dt_grid_points_before_t(make: Make, grid: int, dt: int, shared: bool) -> None:
    trainer = make(batch=4)
    schedule = trainer.base.schedule
    # the clean end is the first table entry, whose sigma is not zero
    points = [torch.tensor(schedule.least).item(), *schedule.learning_grid(grid).float().tolist()]
    seen = set()
    for step in range(60):
        for t, s in zip(*times(trainer, step, 0, grid, dt, shared=shared), strict=True):
            k = points.index(t)
            assert points.index(s) == k - dt
            assert schedule.at(torch.tensor([s]), torch.zeros(1))[1] > 0
            seen.add(k)
    assert min(seen) == dt or grid > 8
    assert max(seen) == grid or grid > 8


@pytest.mark.parametrize("shared", [True, False])
def test_on_a_flow_s_is_never_below_the_lowest_grid_point(make: Make, shared: bool) -> None:
    trainer = make(batch=4)
    schedule = RectifiedFlow(shift=3.0)
    grid = schedule.learning_grid(8).float().tolist()
    base: Any = SimpleNamespace(schedule_for=lambda *size: schedule, latents=trainer.base.latents)
    pairs = set()
    for step in range(60):
        t, s = neighbours(replace(trainer.context(step, 0), backbone=base), 8, 1, shared)
        pairs |= set(zip(t.tolist(), s.tolist(), strict=True))
    assert pairs == {(grid[0], grid[0]), *((later, earlier) for earlier, later in pairwise(grid))}


def test_an_adapter_that_starts_lower_is_trained_below_its_start(make: Make) -> None:
    trainer = make(adapter={"start": 0.5}, batch=4)
    drawn = {t for step in range(60) for t in times(trainer, step, 0, 8, shared=False)[0]}
    assert sorted(drawn) == pytest.approx([round(500 * k / 8) / 1000 for k in range(1, 9)])


def test_accumulated_batches_see_the_pairs_and_noise_of_one_twice_as_large(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def recorded(
        student: Any, target: Any, x: Tensor, eps: Tensor, times: tuple[Tensor, Tensor], *rest: Any, **named: Any
    ) -> Any:
        seen.append((x, eps, *times))
        return codi_loss(student, target, x, eps, times, *rest, **named)

    monkeypatch.setattr("codi_hub.losses.codi.codi_loss", recorded)
    gradients, losses = [], []
    for batch, accumulate in ((2, 2), (4, 1)):
        trainer = make(lr=1e-3, batch=batch, accumulate=accumulate)
        trainer.progress.step = 3
        kept: list[Tensor] = []

        def keep(params: list[Tensor], norm: float, kept: list[Tensor] = kept) -> Tensor:
            kept.extend(p.grad for p in params if p.grad is not None)
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
    epochs = [torch.cat([trainer.stream.rows(2 * epoch + k, 0)[0] for k in range(2)]).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(PAIRS)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert make(batch=5, seed=1).stream.rows(0, 0)[0].tolist() != epochs[0][:5]
    across = make(batch=4).stream.rows(2, 0)[0].tolist()  # the last two of one epoch and the first two of the next
    assert across == epochs[0][8:] + epochs[1][:2]


@pytest.mark.slow
def test_step_k_depends_on_its_number_alone(make: Make) -> None:
    one, other = make(), make()
    for step in (0, 1, 2):
        one.losses(step, 0)
    found, expected = one.losses(4, 0), other.losses(4, 0)
    assert {name: value.item() for name, value in found.items()} == {name: v.item() for name, v in expected.items()}
    assert make(seed=5).losses(4, 0)["guidance"].item() != expected["guidance"].item()


def test_each_pair_keeps_its_condition_and_prompt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    rows, _ = trainer.stream.rows(1, 0)
    bound: list[tuple[Prompt, Tensor]] = []
    bind = trainer.bind

    def watched(network: Any, prompt: Prompt, condition: Tensor, **named: Any) -> Denoiser:
        bound.append((prompt, condition))
        return bind(network, prompt, condition, **named)

    monkeypatch.setattr(trainer, "bind", watched)
    trainer.losses(1, 0)
    expected = trainer.base.embed(trainer.cache.rows(rows).prompts)
    for prompt, condition in bound:
        assert torch.equal(condition, trainer.cache.rows(rows).conditions.float() / 255)
        assert torch.equal(prompt["context"], expected["context"])
    assert len(bound) == 2  # student and moving average


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"guidance", "consistency"}),
        ({"consistency": 0}, {"guidance"}),
        ({"guidance": "off"}, {"consistency"}),
        ({"guidance": "pixel"}, {"guidance", "consistency"}),
        ({"guidance": "relative"}, {"guidance", "consistency"}),
        ({"guidance": "roundtrip", "ode": "noise"}, {"guidance", "consistency"}),
        ({"ode": "none", "consistency_cap": False}, {"guidance", "consistency"}),
    ],
    ids=str,
)
def test_every_switch_trains(make: Make, options: dict[str, Any], names: set[str]) -> None:
    trainer = make(loss=options)
    assert trainer.method.weights().keys() == names
    before = weights(trainer)
    assert trainer.train_step().keys() == names
    assert trainer.train_step().keys() == names
    assert not equal(weights(trainer), before)


SWITCHES: list[dict[str, Any]] = [
    {"ode": "none"},
    {"consistency": 3.0},
    {"consistency_cap": False},
    {"guidance": "pixel"},
    {"guidance": "roundtrip"},
]


def test_switches_reach_the_loss(make: Make) -> None:
    step = 1
    plain = {name: value.item() for name, value in make(lr=1e-3).losses(step, 0).items()}
    found = {str(options): make(loss=options).losses(step, 0) for options in SWITCHES}
    values = {key: (terms["guidance"].item(), terms["consistency"].item()) for key, terms in found.items()}
    assert values["{'consistency': 3.0}"][1] == pytest.approx(3 * plain["consistency"])
    assert values["{'ode': 'none'}"][1] != pytest.approx(plain["consistency"], rel=1e-3)
    assert values["{'consistency_cap': False}"][1] >= plain["consistency"]
    pixel, roundtrip = values["{'guidance': 'pixel'}"][0], values["{'guidance': 'roundtrip'}"][0]
    assert len({round(value, 6) for value in (plain["guidance"], pixel, roundtrip)}) == 3


# ---- the loop


def test_the_run_reports_each_step_and_samples_and_saves_in_between(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(train_steps=7, batch=2, accumulate=2, sample_every=3, checkpoint_every=2)
    events: list[Event] = []
    sampled: list[int] = []
    saved: list[int] = []
    monkeypatch.setattr(trainer, "save", lambda: saved.append(trainer.progress.step))
    trainer.run(events.append, sampled.append)
    steps = [event for event in events if isinstance(event, TrainingStep)]
    assert [event.step for event in steps] == list(range(1, 8)) == [k + 1 for k in range(len(events))]
    assert all(event.total == 7 for event in steps)
    assert all(event.losses.keys() == {"guidance", "consistency"} for event in steps)
    assert all(event.images_per_s > 0 and event.eta >= 0 for event in steps)
    assert steps[-1].eta == 0
    assert sampled == [3, 6]
    assert saved == [2, 4, 6, 7]


def test_a_time_budget_ends_the_run_after_one_step_at_least(make: Make) -> None:
    trainer = make(train_steps=None, time_budget=0.001)
    trainer.run(quiet)
    assert trainer.progress.step == 1
    longer = make(train_steps=None, time_budget=0.5, batch=1)
    longer.run(quiet)
    assert longer.progress.step > 1
    assert 0.5 <= longer.progress.elapsed < 5
    assert longer.progress.seconds < longer.progress.elapsed


def test_a_time_budget_counts_from_the_commands_begin_and_keeps_time_for_the_evaluation(make: Make) -> None:
    late = make(train_steps=None, time_budget=60.0, batch=1)
    late.began -= 1000
    late.run(quiet)
    assert late.progress.step == 1
    assert late.left() == 0
    measured = make(train_steps=None, time_budget=3.0, batch=1)
    measured.evaluation = 1e6  # steps: more than there is time for
    measured.run(quiet)
    assert measured.progress.reserve == pytest.approx(1.0)
    assert 2.0 <= measured.progress.elapsed < 2.9
    assert measured.finished


def test_the_time_of_earlier_commands_counts(make: Make) -> None:
    first = make(train_steps=None, time_budget=60.0, batch=1)
    first.began -= 59.9
    first.run(quiet)
    again = make(train_steps=None, time_budget=120.0, batch=1)
    again.folder = first.folder
    assert again.restore()
    assert not again.finished
    again.began -= 61
    again.run(quiet)
    assert again.finished
    assert Progress.of({"step": 3, "seconds": 7.0, "phase": 0, "scaler": None}) == Progress(3, 7.0, 0, 7.0)
