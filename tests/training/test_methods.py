"""The methods in the trainer: what each sees, what it moves, and what becomes a teacher."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from training import Make, equal, state, weights, without_gradient

from codi_hub.diffusion.schedule import CLEAN, VariancePreserving
from codi_hub.errors import UsageError
from codi_hub.losses import METHODS
from codi_hub.losses.codi import CoDiConfig, PECoDi
from codi_hub.training.trainer import Trainer

TERMS = {
    "pe-codi": {"guidance", "consistency"},
    "codi": {"guidance", "consistency"},
    "conditional": {"diffusion"},
    "cm": {"consistency"},
    "gd": {"progressive"},
}
TAUGHT = {"cm", "gd"}
CASES = [(method, kind) for method in METHODS.names() for kind in ("control", "full")]
CASES = [case for case in CASES if case not in (("pe-codi", "full"), ("codi", "control"))]


def test_every_method_says_what_it_trains_and_needs() -> None:
    cpu = torch.device("cpu")
    assert METHODS.names() == list(TERMS)
    for name, terms in TERMS.items():
        method = METHODS.load(name)
        assert method(method.Config(), cpu).weights() == dict.fromkeys(terms, 1.0)
        assert method.needs_teacher == (name in TAUGHT)
        assert method.trains_base is {"codi": True, "pe-codi": False}.get(name)
        assert method.steps == (50 if name == "conditional" else 4)


@pytest.mark.parametrize(
    ("method", "switch"),
    [("conditional", {"grid": 8}), ("cm", {"ode": "own"}), ("gd", {"grid": 8}), ("pe-codi", {"steps": 4})],
    ids=str,
)
def test_a_switch_that_a_method_does_not_read_is_refused(method: str, switch: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        METHODS.load(method).Config(**switch)


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"dt": 8}, r"loss\.dt 8: less than loss\.grid \(8\)"),
        ({"rollout": 0.5, "shared_t": False}, r"loss\.rollout needs one time"),
        ({"guidance": "lpips"}, r"name its weights with loss\.lpips"),
        ({"guidance": "off", "consistency": 0}, "nothing would be trained"),
    ],
    ids=str,
)
def test_switches_that_exclude_each_other_are_refused_in_one_line(switches: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        PECoDi(CoDiConfig(**switches), torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_the_record_states_the_weights_that_were_trained() -> None:
    def weights_of(**switches: Any) -> dict[str, float]:
        return PECoDi(CoDiConfig(**switches), torch.device("cpu")).weights()

    assert weights_of(consistency=0.5) == {"guidance": 1.0, "consistency": 0.5}
    assert weights_of(consistency=0) == {"guidance": 1.0}
    assert weights_of(guidance="off") == {"consistency": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), CASES, ids=lambda case: str(case))
def test_two_steps_move_student_and_target_and_nothing_else(make: Make, method: str, kind: str) -> None:
    trainer = make(method=method, kind=kind, train_steps=20)
    before, base = weights(trainer), state(trainer.base)
    teacher = state(trainer.teacher) if trainer.teacher else {}
    assert bool(teacher) == (method in TAUGHT)
    assert trainer.train_step().keys() == TERMS[method]
    trainer.train_step()
    moved = [name for name, value in weights(trainer).items() if not torch.equal(value, before[name])]
    assert {name.split("/")[0] for name in moved} == {"student", "target"}
    if method not in TAUGHT:  # where the teacher is the start itself, its zeros leave some tensors without gradient
        assert set(before) - set(moved) <= {name for name in before if without_gradient(name)}
    assert equal(state(trainer.base), base)
    if trainer.teacher:
        assert equal(state(trainer.teacher), teacher)
        assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["control", "full"])
def test_a_codi_step_is_two_evaluations_and_one_backward(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Latent consistency distillation takes four: student, target, and the teacher with and without its condition."""
    trainer = make(method="codi" if kind == "full" else "pe-codi", kind=kind)
    seen: list[tuple[str, bool]] = []
    backwards: list[Tensor] = []
    watched = {"base": trainer.base.unet, "student": trainer.student.encoder, "target": trainer.ema.encoder}
    if kind == "full":
        watched |= {"student's own": trainer.student.unet, "target's own": trainer.ema.unet}
    hooks = [
        net.mid_block.register_forward_hook(lambda *_, name=name: seen.append((name, torch.is_grad_enabled())))
        for name, net in watched.items()
    ]
    backward = trainer.accelerator.backward

    def watched_backward(loss: Tensor) -> None:
        backwards.append(loss)
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "backward", watched_backward)
    trainer.train_step()
    for hook in hooks:
        hook.remove()
    if kind == "full":
        assert seen == [("student's own", True), ("student", True), ("target's own", False), ("target", False)]
    else:
        assert seen == [("base", False), ("student", True), ("base", False), ("target", False)]
    assert len(backwards) == 1


def seen_by(trainer: Trainer, loss: str, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[tuple[Any, ...]]:
    """What the loss function `module.name` is given in so many steps; nothing is computed."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(f"codi_hub.losses.{loss}", lambda *given: seen.append(given))
    for step in range(steps):
        trainer.losses(step, 0)
    return seen


def entries(trainer: Trainer, times: Tensor) -> list[int]:
    """The schedule's table entries of some times; -1 is clean."""
    schedule = trainer.base.schedule
    assert isinstance(schedule, VariancePreserving)
    return [int(index) for index in schedule.index(times.flatten())]


def test_conditional_draws_a_time_for_every_pair_from_all_there_are(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(method="conditional", batch=10)
    drawn = [entries(trainer, given[3]) for given in seen_by(trainer, "conditional.conditional_loss", monkeypatch, 60)]
    times = torch.tensor(drawn)
    assert times.shape == (60, 10)
    assert min(len(set(row)) for row in drawn) > 5
    assert 0 <= times.min() < 20
    assert 980 <= times.max() < 1000
    assert times.float().mean().item() == pytest.approx(499.5, abs=40)


@pytest.mark.parametrize("shared_t", [True, False])
def test_cm_walks_the_grid_down_to_clean(make: Make, monkeypatch: pytest.MonkeyPatch, shared_t: bool) -> None:
    trainer = make(method="cm", batch=4, loss={"grid": 10, "shared_t": shared_t})
    points = [-1, *range(99, 1000, 100)]
    pairs: set[tuple[int, int]] = set()
    for *_, t, s, _ in seen_by(trainer, "consistency_distillation.cm_loss", monkeypatch, 60):
        assert not shared_t or len(set(t.tolist())) == 1
        assert ((s == CLEAN) == (s < 0.0005)).all()
        pairs |= set(zip(entries(trainer, t), entries(trainer, s), strict=True))
    assert pairs == set(zip(points[1:], points[:-1], strict=True))


@pytest.mark.parametrize(("phase", "steps"), [(0, 32), (1, 16), (2, 8)])
def test_gd_takes_the_teachers_points_two_by_two(
    make: Make, monkeypatch: pytest.MonkeyPatch, phase: int, steps: int
) -> None:
    trainer = make(method="gd", batch=4, loss={"shared_t": False})
    trainer.progress.phase = phase
    schedule = trainer.base.schedule
    grid = entries(trainer, torch.tensor([*schedule.grid(steps), CLEAN]))
    expected = {tuple(grid[k : k + 3]) for k in range(0, steps, 2)}
    seen = seen_by(trainer, "progressive.gd_loss", monkeypatch, 60)
    found = {row for given in seen for row in zip(*(entries(trainer, times) for times in given[4:7]), strict=True)}
    assert found == expected
    assert expected >= {(999, grid[1], grid[2])}
    assert [t for t, _, _ in sorted(expected)[::-1]] == entries(trainer, torch.tensor(schedule.grid(steps // 2)))


def test_gd_begins_where_its_adapter_does(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(method="gd", batch=4, adapter={"start": 0.5}, loss={"shared_t": False})
    trainer.progress.phase = 2
    seen = seen_by(trainer, "progressive.gd_loss", monkeypatch, 60)
    assert {t for given in seen for t in entries(trainer, given[4])} == {499, 374, 249, 124}


def test_in_gd_what_was_learnt_becomes_the_teacher_at_every_third_of_the_training(make: Make) -> None:
    trainer = make(method="gd", train_steps=6, lr=1e-2)
    start, phases, teachers = state(trainer.ema), [], []
    learnt: dict[int, dict[str, Tensor]] = {}
    for step in range(6):
        learnt[step] = state(trainer.ema)
        trainer.train_step()
        phases.append(trainer.progress.phase)
        assert trainer.teacher
        teachers.append(state(trainer.teacher))
    assert phases == [0, 0, 1, 1, 2, 2]
    assert all(equal(teachers[k], start) for k in (0, 1))
    assert all(equal(teachers[k], learnt[2]) for k in (2, 3))
    assert all(equal(teachers[k], learnt[4]) for k in (4, 5))
    assert not equal(learnt[2], start)
    assert not equal(learnt[4], learnt[2])


def test_in_gd_student_and_teacher_go_on_from_the_average(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(method="gd", train_steps=6, lr=0.0)
    for group in trainer.optimiser.param_groups:
        group["weight_decay"] = 0.0  # so that a step changes no weight
    monkeypatch.setattr("codi_hub.training.trainer.update_ema", lambda *_: None)

    def spoil() -> None:
        with torch.no_grad():
            for p in trainer.ema.parameters():
                p.add_(1.0)

    trainer.progress.step = 2
    spoil()
    trainer.train_step()
    assert trainer.progress.phase == 1
    assert trainer.teacher
    assert equal(state(trainer.student), state(trainer.ema))
    assert equal(state(trainer.teacher), state(trainer.ema))
    spoil()
    trainer.train_step()  # in the same phase nothing happens
    assert not equal(state(trainer.student), state(trainer.ema))
    assert not equal(state(trainer.teacher), state(trainer.ema))


@pytest.mark.parametrize(
    ("method", "networks"),
    [
        ("codi", ["student", "ema"]),
        ("conditional", ["student"]),
        ("cm", ["student", "ema", "teacher"]),
        ("gd", ["student", "teacher"]),
    ],
)
def test_a_loss_evaluates_the_networks_it_needs(
    make: Make, monkeypatch: pytest.MonkeyPatch, method: str, networks: list[str]
) -> None:
    trainer = make(method=method)
    evaluated: list[str] = []
    for name in ("student", "ema", "teacher"):
        network = getattr(trainer, name)
        if network is None:
            continue
        predict = network.predict

        def watched(*given: Any, name: str = name, predict: Any = predict) -> Any:
            evaluated.append(name)
            return predict(*given)

        monkeypatch.setattr(network, "predict", watched)
    trainer.losses(1, 0)
    assert sorted(set(evaluated)) == sorted(networks)


@pytest.mark.slow
def test_gd_learns_from_its_teacher(make: Make) -> None:
    trainer = make(method="gd", train_steps=1000, lr=1e-2, batch=5)
    assert trainer.teacher
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


@pytest.mark.slow
def test_rollout_evaluates_the_student_where_the_sampler_of_the_average_arrives(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, Tensor | None]] = []
    monkeypatch.setattr(
        "codi_hub.losses.codi.codi_loss", lambda *given, z_t, **_: seen.append((float(given[4][0][0]), z_t))
    )
    shares = {}
    for share in (0.0, 0.5, 1.0):
        trainer = make(loss={"rollout": share, "grid": 4})
        seen.clear()
        for step in range(40):
            trainer.losses(step, 0)
        shares[share] = sum(z_t is not None for _, z_t in seen) / len(seen)
    assert shares[0.0] == 0
    assert 0.2 < shares[0.5] < 0.8
    assert shares[1.0] == 1
    assert all(z_t is not None and not z_t.requires_grad for _, z_t in seen)
    assert {t for t, _ in seen} == {0.25, 0.5, 0.75, 1.0}


@pytest.mark.slow
def test_at_the_top_a_rollout_is_the_noise_and_below_it_a_state_of_the_average(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[list[float]] = []

    def rollout(denoise: object, noise: Tensor, walk: list[float], schedule: object) -> Tensor:
        walks.append(walk)
        return noise

    monkeypatch.setattr("codi_hub.losses.codi.rollout", rollout)
    trainer = make(loss={"rollout": 1.0, "grid": 4})
    for step in range(40):
        trainer.losses(step, 0)
    grid = [0.25, 0.5, 0.75, 1.0]
    assert {walk[-1] for walk in walks} == set(grid)
    assert all(set(walk) <= set(grid) for walk in walks)
    assert all(walk[0] == grid[-1] and walk == sorted(walk, reverse=True) for walk in walks)
    assert all(len(set(walk)) == len(walk) for walk in walks)
    lowest = {tuple(walk) for walk in walks if walk[-1] == grid[0]}
    assert len(lowest) > 1  # the walk of 2 steps and that of 4 both come by


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pe-codi", "codi"])
def test_the_average_sees_its_condition_once_however_long_its_walk(
    make: Make, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    trainer = make(method=method, loss={"rollout": 1.0})
    seen: dict[str, list[bool]] = {"student": [], "ema": []}
    for name, calls in seen.items():
        getattr(trainer, name).encoder.controlnet_cond_embedding.register_forward_hook(
            lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
        )
    walked: list[Tensor] = []
    predict = trainer.ema.predict

    def watched(backbone: Any, z_t: Tensor, *rest: Any) -> Tensor:
        walked.append(z_t)
        return predict(backbone, z_t, *rest)

    monkeypatch.setattr(trainer.ema, "predict", watched)
    for step in range(8):
        trainer.losses(step, 0)
    assert seen == {"student": [True] * 8, "ema": [False] * 8}
    assert len(walked) > 16  # where the student's step leads to, and on the way to where it begins
