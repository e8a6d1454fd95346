"""What the option `against` may name."""

import pytest

from codi_hub.errors import NotFound, UsageError
from codi_hub.evaluation.against import entrants
from codi_hub.registry import AdapterRow


def row(task: str, version: int) -> AdapterRow:
    return AdapterRow(
        id=version, task=task, version=version, base="nano", kind="control", steps=4, parameters=1, bytes=1,
        sha256=f"{task}{version}", status="ready", bundled=False, metrics={}, score=None, parent=None, tags=(),
        created="",
    )  # fmt: skip


ROWS = [row("depth", 1), row("depth", 2)]


def resolve(name: str) -> AdapterRow:
    rows = {one.ref: one for one in ROWS} | {"depth": ROWS[1]}
    if name not in rows:
        raise NotFound(f"no {name}")
    return rows[name]


def named(*names: str, baselines: tuple[str, ...] = ()) -> list[tuple[str, tuple[int, ...]]]:
    contestants = entrants(names, ROWS[0], baselines, (1, 4), resolve=resolve, available=lambda: ROWS)
    return [(one.name, one.steps) for one in contestants]


def test_contestants_are_in_order_with_the_same_steps_or_their_own() -> None:
    assert named() == [("depth:1", (1, 4))]
    assert named("base", "depth:2@50") == [("depth:1", (1, 4)), ("base", (1, 4)), ("depth:2", (50,))]
    assert named("depth", "base@8") == [("depth:1", (1, 4)), ("depth:2", (1, 4)), ("base", (8,))]


def test_a_repeated_name_is_one_contestant_with_all_its_steps() -> None:
    assert named("depth:2@50", "depth:2@250", "depth:1@8", "depth:1") == [
        ("depth:1", (1, 4, 8)),
        ("depth:2", (50, 250)),
    ]


def test_a_baseline_of_the_task_adds_nothing_and_others_are_refused() -> None:
    assert named("bicubic", baselines=("bicubic",)) == [("depth:1", (1, 4))]
    with pytest.raises(UsageError, match=r"against bicubic: .* use one of base, depth:1, depth:2, with steps"):
        named("bicubic")


@pytest.mark.parametrize("name", ["nearest", "superres:1", "edit", "bicubic@4", ""])
def test_names_without_a_meaning_are_refused_with_those_that_have_one(name: str) -> None:
    with pytest.raises(UsageError, match=r"use one of bicubic, base, depth:1, depth:2, .* as depth:1@50"):
        named(name, baselines=("bicubic",))


@pytest.mark.parametrize("name", ["base@", "base@0", "depth:2@x", "depth:2@4@5", "base@-1"])
def test_own_steps_are_a_number(name: str) -> None:
    with pytest.raises(UsageError, match=r"after @ comes a number of steps of at least 1, such as depth:1@50"):
        named(name)


def test_a_missing_version_is_not_found() -> None:
    with pytest.raises(NotFound, match="no depth:7"):
        named("depth:7")
