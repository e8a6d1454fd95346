"""Bases, tasks, versions, tags and runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from codi_hub.errors import Conflict, InvalidInput, NotFound, UsageError
from codi_hub.registry import Registry

pytestmark = pytest.mark.usefixtures("backend")


def test_the_first_base_comes_into_use_and_another_can(registry: Registry) -> None:
    assert [(row.name, row.default) for row in registry.bases.list()] == [("nano", True), ("sd15", False)]
    assert registry.bases.use("sd15").default
    assert registry.bases.get().name == "sd15"
    assert registry.bases.get("nano").sketch == {"w": [1.0]}
    registry.bases.remove("sd15")
    with pytest.raises(NotFound, match="no base is in use; choose one with `codi base use NAME`"):
        registry.bases.get()
    with pytest.raises(NotFound, match="no base 'sd15'; there is nano"):
        registry.bases.use("sd15")


def test_an_equal_base_is_accepted_and_another_of_its_name_refused(registry: Registry) -> None:
    again = registry.bases.add("nano", "/models/nano", family="f1", sketch={"w": [1.0]})
    assert again == registry.bases.get("nano")
    with pytest.raises(Conflict, match=r"from /models/nano \(family f1\); `codi base rm nano` first"):
        registry.bases.add("nano", "/models/other", family="f1")
    with pytest.raises(UsageError, match="'a b' cannot name a base"):
        registry.bases.add("a b", "/models/other", family="f1")


def test_a_base_with_adapters_cannot_be_removed(registry: Registry, add) -> None:
    add("depth", "sd15")
    with pytest.raises(Conflict, match=r"1 adapters \(depth:1\) were distilled on it"):
        registry.bases.remove("sd15")
    assert len(registry.bases.list()) == 2


def test_a_base_with_adapters_keeps_its_shift_and_guidance(registry: Registry, add) -> None:
    def again(**card: Any) -> dict[str, Any]:
        return registry.bases.add("sd15", "/new/sd15", family="f2", card=card, replace=True).card

    assert again(shift=3.0) == {"shift": 3.0}
    assert again(shift=2.0) == {"shift": 2.0}
    add("depth", "sd15")
    assert again(shift=2.0, distilled=True, steps=4) == {"shift": 2.0, "distilled": True, "steps": 4}
    for card in ({"shift": 1.0}, {}):
        with pytest.raises(Conflict, match=r"keeps its shift \(2.0\): 1 adapters \(depth:1\) were trained with it"):
            again(**card)
    with pytest.raises(Conflict, match=r"keeps its guidance \(as it is\)"):
        again(shift=2.0, guidance=7.0)


def test_tasks_are_rows(registry: Registry) -> None:
    row, created = registry.tasks.add("fog", "depth", {"invert": True})
    assert created
    assert registry.tasks.add("fog", "depth", {"invert": True}) == (row, False)
    with pytest.raises(Conflict, match="like depth with invert=True; to replace it, `codi task rm fog` first"):
        registry.tasks.add("fog", "depth", {"invert": False})
    with pytest.raises(Conflict):
        registry.tasks.add("fog", "canny", {"invert": True})
    assert registry.tasks.list() == [row]
    assert registry.tasks.get("fog") == row
    assert registry.tasks.get("mist") is registry.tasks.get("\udcff") is None
    registry.tasks.remove("fog")
    with pytest.raises(NotFound, match="no task 'fog'"):
        registry.tasks.remove("fog")


@pytest.mark.parametrize("name", ["", "Depth", "-a", "a:b", "a/b", "a\n", "ä", "a" * 65])
def test_invalid_task_names(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a task"):
        registry.tasks.add(name, "depth", {})


def test_versions_are_per_task_and_base(add) -> None:
    refs = [
        add(task, base)[0] for task, base in [("depth", "nano"), ("depth", "sd15"), ("depth", "nano"), ("x", "nano")]
    ]
    assert [(row.ref, row.base) for row in refs] == [
        ("depth:1", "nano"),
        ("depth:1", "sd15"),
        ("depth:2", "nano"),
        ("x:1", "nano"),
    ]


def test_an_adapter_of_a_removed_task_stays(registry: Registry, add) -> None:
    registry.tasks.add("fog", "depth", {})
    add("fog")
    registry.tasks.remove("fog")
    assert registry.adapters.resolve("fog").ref == "fog:1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "latest"),
    [((1.0, 2.0), 2), ((2.0, 1.0), 1), ((1.0, 1.0), 2), ((None, -5.0), 2), ((5.0, None), 1), ((5.0, float("nan")), 1)],
)
def test_latest_moves_unless_the_score_is_worse(registry: Registry, add, scores: tuple, latest: int) -> None:
    moved = [add(score=score, weights=f"w{i}")[1] for i, score in enumerate(scores)]
    assert moved == [True, latest == 2]
    assert registry.adapters.resolve("depth").version == latest
    assert registry.adapters.tag("depth:1", "latest").tags == ("latest",)
    assert registry.adapters.resolve("depth").version == 1


def test_references(registry: Registry, add) -> None:
    for weights in ("a", "b", "c"):
        add(weights=weights)
    add("depth", "sd15")
    assert registry.adapters.tag("depth:2", "prod").tags == ("prod",)
    found = {
        ref: registry.adapters.resolve(ref).version
        for ref in ("depth", "depth:1", "depth:prod", "depth:latest", "depth:03")
    }
    assert found == {"depth": 3, "depth:1": 1, "depth:prod": 2, "depth:latest": 3, "depth:03": 3}
    assert registry.adapters.resolve("depth", "sd15").version == 1
    registry.bases.use("sd15")
    assert registry.adapters.resolve("depth").base == "sd15"
    registry.adapters.untag("depth", "prod", "nano")
    with pytest.raises(NotFound, match=r"no depth:prod for base nano; there is depth:1\|2\|3\|latest"):
        registry.adapters.resolve("depth:prod", "nano")
    with pytest.raises(NotFound, match="depth has no tag 'prod' for base nano"):
        registry.adapters.untag("depth", "prod", "nano")


@pytest.mark.parametrize(
    "ref", ["", ":", "depth:", ":1", "depth:1:2", "Depth", "depth:a b", "depth:-1", "../x", "depth:²"]
)
def test_invalid_references(registry: Registry, ref: str) -> None:
    with pytest.raises(UsageError):
        registry.adapters.resolve(ref)


def test_not_found_errors_name_the_alternatives(registry: Registry, add) -> None:
    with pytest.raises(NotFound, match="'depth' has no adapter yet; train one with `codi distill depth`"):
        registry.adapters.resolve("depth")
    add("depth", "sd15")
    with pytest.raises(NotFound, match="'depth' has no adapter for base nano, but for sd15: name such a base"):
        registry.adapters.resolve("depth")
    with pytest.raises(NotFound, match="no depth:7 for base sd15; there is depth:1"):
        registry.adapters.resolve("depth:7", "sd15")
    with pytest.raises(NotFound, match="no base 'sdxl'; there is nano, sd15"):
        registry.adapters.resolve("depth", "sdxl")


def test_invalid_tags(registry: Registry, add) -> None:
    add()
    for name in ("3", "", "a:b", "-x"):
        with pytest.raises(UsageError, match="cannot name a tag"):
            registry.adapters.tag("depth", name)
    with pytest.raises(UsageError, match="every task has a latest version"):
        registry.adapters.untag("depth", "latest")


def test_pages(registry: Registry, add) -> None:
    for task in ("b", "a"):
        for base in ("sd15", "nano"):
            add(task, base)
    rows = registry.adapters.list()
    assert [(row.task, row.base, row.tags) for row in rows] == [
        ("a", "nano", ("latest",)),
        ("a", "sd15", ("latest",)),
        ("b", "nano", ("latest",)),
        ("b", "sd15", ("latest",)),
    ]
    assert registry.adapters.list(limit=2, offset=1) == rows[1:3]
    assert registry.adapters.list(task="a") == rows[:2]
    assert registry.adapters.list(base="sd15") == rows[1::2]
    assert registry.adapters.list(task="zzz") == []
    with pytest.raises(NotFound):
        registry.adapters.list(base="zzz")


def test_an_adapter_keeps_its_metadata_and_files(registry: Registry, add) -> None:
    metrics = {"psnr": {"4": 21.5}, "broken": float("inf"), "steps": (1, 2)}
    row, _ = add(metrics=metrics, weights="abc", parent="depth:9", score=3)
    assert registry.adapters.resolve("depth:1") == row
    assert (row.metrics, row.parent) == ({"psnr": {"4": 21.5}, "broken": None, "steps": [1, 2]}, "depth:9")
    assert (row.bytes, row.score, row.status, row.bundled) == (3, 3.0, "ready", False)
    assert registry.adapters.files(row) == ["README.md", "adapter.json", "adapter.safetensors"]
    assert registry.adapters.file(row, "adapter.safetensors").read_text() == "abc"
    with pytest.raises(NotFound, match=r"depth:1 has no file '../secret'"):
        registry.adapters.file(row, "../secret")


def test_a_folder_without_weights_or_an_unknown_base_is_refused(registry: Registry, add, tmp_path: Path) -> None:
    facts = {"task": "depth", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
    with pytest.raises(InvalidInput, match=r"has no adapter\.safetensors"):
        registry.adapters.add(tmp_path, base="nano", **facts)
    with pytest.raises(NotFound, match="no base 'sdxl'"):
        registry.adapters.add(tmp_path, base="sdxl", **facts)
    assert registry.adapters.list() == []


def test_runs(registry: Registry) -> None:
    first = registry.runs.start("depth", "depth:1", {"steps": 4, "out": None})
    second = registry.runs.start("superres", "superres:1", {})
    item = {"input_hash": "ab", "seed": 2**63 - 1, "seconds": 0.5}
    registry.runs.add_item(first, input=Path("a.png"), output="o/a.png", status="ok", error=None, **item)
    registry.runs.add_item(first, input="b\udcff.png", output=None, status="failed", error="broken", **item)
    registry.runs.finish(first, "done")
    rows = registry.runs.list()
    assert [(row.id, row.status, row.ok, row.failed) for row in rows] == [
        (second, "running", 0, 0),
        (first, "done", 1, 1),
    ]
    assert rows[0].finished is None
    assert str(rows[1].finished) >= rows[1].started
    assert [(i.input, i.status, i.seed) for i in registry.runs.items(first)] == [
        ("a.png", "ok", 2**63 - 1),
        ("b\\udcff.png", "failed", 2**63 - 1),
    ]
    assert len(registry.runs.list(limit=1)) == 1
    with pytest.raises(NotFound, match="no run 99"):
        registry.runs.finish(99, "done")


def _same(registry: Registry, adapter: str, options: dict[str, Any], outputs: Iterable[str]) -> dict[str, Any]:
    rows = registry.runs.last_outputs(adapter, options, outputs)
    return {name: (row.input_hash, row.prompt, row.seed) for name, row in rows.items() if row.same}


def test_finished_outputs_have_the_same_settings_and_were_not_overwritten(registry: Registry) -> None:
    item = {"seed": 1, "seconds": 0.5, "error": None}
    same = {"steps": 4, "size": (1, 2)}
    first = registry.runs.start("depth", "depth:1", same)
    for name in ("a", "b", "c"):
        registry.runs.add_item(first, input=name, output=f"o/{name}", input_hash=name, status="ok", **item)
    registry.runs.add_item(first, input="d", output="o/d", input_hash="d", status="failed", **item)
    other = registry.runs.start("depth", "depth:1", {"steps": 1})
    registry.runs.add_item(other, input="a", output="o/a", input_hash="a", status="ok", **item)
    registry.runs.add_item(other, input="b", output="o/b", input_hash="b", status="failed", **item)
    second = registry.runs.start("depth", "depth:1", same)
    registry.runs.add_item(second, input="c", output="o/c", input_hash="new", status="ok", prompt="a red box", **item)
    outputs = [f"o/{name}" for name in "abcde"] + [f"none-{k}" for k in range(1000)]
    found = _same(registry, "depth:1", same, outputs)
    assert found == {"o/b": ("b", None, 1), "o/c": ("new", "a red box", 1)}
    assert _same(registry, "depth:1", same, ["o/c", "o/a"]) == {"o/c": ("new", "a red box", 1)}
    assert _same(registry, "depth:1", {"steps": 1}, outputs) == {"o/a": ("a", None, 1)}
    assert _same(registry, "depth:2", same, outputs) == {}
