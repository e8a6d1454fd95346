"""What --against may name."""

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
    known = {one.ref: one for one in ROWS} | {"depth": ROWS[1]}
    if name not in known:
        raise NotFound(f"no {name}")
    return known[name]


def named(*names: str, like: str = "depth") -> list[tuple[str, tuple[int, ...]]]:
    found = entrants(names, ROWS[0], like, (1, 4), resolve=resolve, there=lambda: ROWS)
    return [(one.name, one.steps) for one in found]


def test_what_is_named_stands_in_order_with_the_same_steps_or_its_own() -> None:
    assert named() == [("depth:1", (1, 4))]
    assert named("base", "depth:2@50") == [("depth:1", (1, 4)), ("base", (1, 4)), ("depth:2", (50,))]
    assert named("depth", "base@8") == [("depth:1", (1, 4)), ("depth:2", (1, 4)), ("base", (8,))]


def test_a_name_given_twice_is_one_entrant_with_all_its_steps() -> None:
    assert named("depth:2@50", "depth:2@250", "depth:1@8", "depth:1") == [
        ("depth:1", (1, 4, 8)),
        ("depth:2", (50, 250)),
    ]


def test_bicubic_is_for_superres_and_adds_nothing_there() -> None:
    assert named("bicubic", like="superres") == [("depth:1", (1, 4))]
    with pytest.raises(UsageError, match=r"--against bicubic: .* possible are base, depth:1, depth:2, and steps"):
        named("bicubic")


@pytest.mark.parametrize("name", ["nearest", "superres:1", "edit", "bicubic@4", ""])
def test_what_means_nothing_here_is_refused_with_what_does(name: str) -> None:
    with pytest.raises(UsageError, match=r"possible are bicubic, base, depth:1, depth:2, .* as depth:1@50"):
        named(name, like="superres")


@pytest.mark.parametrize("name", ["base@", "base@0", "depth:2@x", "depth:2@4@5", "base@-1"])
def test_steps_of_its_own_are_a_number(name: str) -> None:
    with pytest.raises(UsageError, match=r"after @ comes a number of steps from 1 up, as depth:1@50"):
        named(name)


def test_a_version_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="no depth:7"):
        named("depth:7")
