"""The methods in the trainer: what each sees, what it moves, and what becomes a teacher."""

from typing import Any

import pytest
import torch
from torch import Tensor
from training import Make, equal, weights

from codi_hub.config.options import METHODS, TAUGHT
from codi_hub.diffusion.schedule import CLEAN, sampling_timesteps
from codi_hub.training import step as methods

TERMS = {
    "pe-codi": {"guidance", "consistency"},
    "codi": {"guidance", "consistency"},
    "conditional": {"diffusion"},
    "cm": {"consistency"},
    "gd": {"progressive"},
}
CASES = [(method, kind) for method in METHODS for kind in ("control", "full")]
CASES = [case for case in CASES if case not in (("pe-codi", "full"), ("codi", "control"))]


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_every_method_that_can_be_chosen_is_there() -> None:
    assert tuple(methods.METHODS) == METHODS
    assert TERMS.keys() == methods.METHODS.keys()


@pytest.mark.parametrize(("method", "kind"), CASES, ids=lambda case: str(case))
def test_two_steps_move_student_and_target_and_nothing_else(make: Make, method: str, kind: str) -> None:
    trainer = make(method=method, kind=kind, total=20)
    before, base = weights(trainer), state(trainer.base)
    teacher = state(trainer.teacher) if trainer.teacher else {}
    assert bool(teacher) == (method in TAUGHT)
    assert trainer.train_step().keys() == TERMS[method]
    trainer.train_step()
    moved = [name for name, value in weights(trainer).items() if not torch.equal(value, before[name])]
    assert {name.split("/")[0] for name in moved} == {"student", "target"}
    if method not in TAUGHT:  # where the teacher is the start itself, its zeros leave some tensors without gradient
        assert len(moved) == len(before)
    assert equal(state(trainer.base), base)
    if trainer.teacher:
        assert equal(state(trainer.teacher), teacher)
        assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.parameters())


@pytest.mark.parametrize("kind", ["control", "full"])
def test_a_codi_step_is_two_evaluations_and_one_backward(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Latent consistency distillation takes four: student, target, and the teacher with and without its condition."""
    trainer = make(method="codi" if kind == "full" else "pe-codi", kind=kind)
    seen: list[tuple[str, bool]] = []
    backwards: list[Tensor] = []
    watched = {"base": trainer.base.unet, "student": trainer.student.encoder, "target": trainer.target.encoder}
    if kind == "full":
        watched |= {"student's own": trainer.student.unet, "target's own": trainer.target.unet}
    hooks = [
        net.mid_block.register_forward_hook(lambda *_, name=name: seen.append((name, torch.is_grad_enabled())))
        for name, net in watched.items()
    ]
    backward = trainer.accelerator.backward
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss: (backwards.append(loss), backward(loss)))
    trainer.train_step()
    for hook in hooks:
        hook.remove()
    if kind == "full":
        assert seen == [("student's own", True), ("student", True), ("target's own", False), ("target", False)]
    else:
        assert seen == [("base", False), ("student", True), ("base", False), ("target", False)]
    assert len(backwards) == 1


def seen_by(trainer: Any, name: str, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[tuple[Any, ...]]:
    """What the loss `name` is given in so many steps; nothing is computed."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(methods, name, lambda *given: seen.append(given))
    for step in range(steps):
        trainer.losses(step, 0)
    return seen


def test_conditional_draws_a_time_for_every_pair_from_all_there_are(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(method="conditional", batch=10)
    times = torch.stack([given[3] for given in seen_by(trainer, "conditional_loss", monkeypatch, 60)])
    assert times.shape == (60, 10)
    assert min(len(set(row)) for row in times.tolist()) > 5
    assert 0 <= times.min() < 20
    assert 980 <= times.max() < 1000
    assert times.float().mean().item() == pytest.approx(499.5, abs=40)


@pytest.mark.parametrize("shared_t", [True, False])
def test_cm_walks_the_grid_down_to_clean(make: Make, monkeypatch: pytest.MonkeyPatch, shared_t: bool) -> None:
    trainer = make(method="cm", batch=4, grid=10, shared_t=shared_t)
    points = [CLEAN, *trainer.grid.tolist()]
    pairs: set[tuple[int, int]] = set()
    for *_, t, s, _ in seen_by(trainer, "cm_loss", monkeypatch, 60):
        assert not shared_t or len(set(t.tolist())) == 1
        pairs |= set(zip(t.tolist(), s.tolist(), strict=True))
    assert pairs == set(zip(points[1:], points[:-1], strict=True))


@pytest.mark.parametrize(("phase", "steps"), [(0, 32), (1, 16), (2, 8)])
def test_gd_takes_the_teachers_points_two_by_two(
    make: Make, monkeypatch: pytest.MonkeyPatch, phase: int, steps: int
) -> None:
    trainer = make(method="gd", batch=4, shared_t=False)
    trainer.progress.phase = phase
    grid = [*sampling_timesteps(steps, 1000), CLEAN]
    expected = {tuple(grid[k : k + 3]) for k in range(0, steps, 2)}
    seen = seen_by(trainer, "gd_loss", monkeypatch, 60)
    assert {tuple(row) for given in seen for row in torch.stack(given[4:7], 1).tolist()} == expected
    assert expected >= {(999, grid[1], grid[2])}
    assert {t for t, _, _ in expected} == set(sampling_timesteps(steps // 2, 1000))


def test_in_gd_what_was_learnt_becomes_the_teacher_at_every_third_of_the_training(make: Make) -> None:
    trainer = make(method="gd", total=6, lr=1e-2)
    start, phases, teachers = state(trainer.target), [], []
    learnt: dict[int, dict[str, Tensor]] = {}
    for step in range(6):
        learnt[step] = state(trainer.target)
        trainer.train_step()
        phases.append(trainer.progress.phase)
        teachers.append(state(trainer.teacher))
    assert phases == [0, 0, 1, 1, 2, 2]
    assert all(equal(teachers[k], start) for k in (0, 1))
    assert all(equal(teachers[k], learnt[2]) for k in (2, 3))
    assert all(equal(teachers[k], learnt[4]) for k in (4, 5))
    assert not equal(learnt[2], start)
    assert not equal(learnt[4], learnt[2])


def test_in_gd_the_student_goes_on_from_its_teacher(make: Make) -> None:
    trainer = make(method="gd", total=6, lr=1e-2)
    trainer.progress.step = 2
    with torch.no_grad():
        for p in trainer.target.parameters():
            p.add_(1.0)
    methods.halve(trainer)
    assert trainer.progress.phase == 1
    assert equal(state(trainer.student), state(trainer.target))
    with torch.no_grad():
        for p in trainer.target.parameters():
            p.add_(1.0)
    methods.halve(trainer)  # in the same phase nothing happens
    assert not equal(state(trainer.student), state(trainer.target))


@pytest.mark.parametrize(
    ("method", "networks"),
    [
        ("codi", ["student", "target"]),
        ("conditional", ["student"]),
        ("cm", ["student", "target", "teacher"]),
        ("gd", ["student", "teacher"]),
    ],
)
def test_each_network_has_its_place_in_the_loss(make: Make, method: str, networks: list[str]) -> None:
    trainer = make(method=method)
    bound: list[Any] = []
    bind = trainer.bind
    trainer.bind = lambda network, *rest: bound.append(network) or bind(network, *rest)
    trainer.losses(1, 0)
    assert [id(network) for network in bound] == [id(getattr(trainer, name)) for name in networks]


def test_gd_learns_from_its_teacher(make: Make) -> None:
    trainer = make(method="gd", total=1000, lr=1e-2, batch=5)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in trainer.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))

    def mean() -> float:
        with torch.no_grad():
            return sum(trainer.losses(1000 + k, 0)["progressive"].item() for k in range(8)) / 8

    first = mean()
    for _ in range(20):
        trainer.train_step()
    assert mean() < 0.6 * first


def test_rollout_asks_the_student_where_the_sampler_of_the_target_arrives(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Tensor | None]] = []
    monkeypatch.setattr(methods, "codi_loss", lambda *given, z_t, **_: seen.append((int(given[4][0]), z_t)))
    shares = {}
    for share in (0.0, 0.5, 1.0):
        trainer = make(rollout=share, grid=4)
        seen.clear()
        for step in range(40):
            trainer.losses(step, 0)
        shares[share] = sum(z_t is not None for _, z_t in seen) / len(seen)
    assert shares[0.0] == 0
    assert 0.2 < shares[0.5] < 0.8
    assert shares[1.0] == 1
    assert all(z_t is not None and not z_t.requires_grad for _, z_t in seen)
    by_t = {t for t, _ in seen}
    assert by_t == set(trainer.grid.tolist())


def test_at_the_top_a_rollout_is_the_noise_and_below_it_a_state_of_the_target(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[list[int]] = []

    def rollout(denoise: object, noise: Tensor, walk: list[int], schedule: object) -> Tensor:
        walks.append(walk)
        return noise

    monkeypatch.setattr(methods, "rollout", rollout)
    trainer = make(rollout=1.0, grid=4)
    for step in range(40):
        trainer.losses(step, 0)
    grid = trainer.grid.tolist()
    assert {walk[-1] for walk in walks} == set(grid)
    assert all(walk[0] == grid[-1] and walk == sorted(walk, reverse=True) for walk in walks)
    assert all(len(set(walk)) == len(walk) for walk in walks)
    lowest = {tuple(walk) for walk in walks if walk[-1] == grid[0]}
    assert len(lowest) > 1  # the walk of 2 steps and that of 4 both come by


@pytest.mark.parametrize("method", ["pe-codi", "codi"])
def test_the_target_sees_its_condition_once_however_long_its_walk(make: Make, method: str) -> None:
    trainer = make(method=method, kind="full" if method == "codi" else "static", rollout=1.0, grid=8)
    seen: dict[str, list[bool]] = {"student": [], "target": []}
    for name, calls in seen.items():
        getattr(trainer, name).encoder.controlnet_cond_embedding.register_forward_hook(
            lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
        )
    walked: list[Tensor] = []
    predict = trainer.target.predict
    trainer.target.predict = lambda *given: walked.append(given[1]) or predict(*given)
    for step in range(8):
        trainer.losses(step, 0)
    assert seen == {"student": [True] * 8, "target": [False] * 8}
    assert len(walked) > 16  # where the student's step leads to, and on the way to where it begins
