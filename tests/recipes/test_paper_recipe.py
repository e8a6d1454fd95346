"""The recipe of the paper's tables: rows can be trained, claims tested, interrupted runs resumed."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import save_base, scheduler_config

from codi_hub.config.distill import DistillConfig
from codi_hub.config.first_edition import layer_of
from codi_hub.evaluation.features import FeatureNet, save_features
from codi_hub.losses import METHODS
from recipes.paper import __main__ as command
from recipes.paper import report, train
from recipes.paper.results import Results, at_key
from recipes.paper.rows import CLAIMS, COMMON, FOUR, TABLES, Claim, Row

ROWS = [row for rows in TABLES.values() for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.task}-{row.key}")
def test_a_row_can_be_trained(row: Row) -> None:
    config = DistillConfig(**layer_of({**COMMON, **row.told}))
    method = METHODS.load(config.loss.method)
    assert method.needs_teacher == (row.teacher is not None)
    method.Config(**config.loss.extras)
    if row.teacher:
        teacher = train.by_key(row.task, row.teacher)
        assert teacher.told["method"] == "conditional"
        assert teacher.share + row.share == 1  # together no more time than a row without a teacher


def test_names_are_unique_and_ablations_change_one_thing() -> None:
    assert len({(row.task, row.key) for row in ROWS}) == len(ROWS)
    plain = train.by_key("superres", "pe-codi").told
    for row in TABLES["ablation"]:
        changed = {name for name in row.told if row.told[name] != plain.get(name)}
        assert len(changed) == 1, row.key


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.text} ({claim.figure})")
def test_a_claim_is_about_measured_figures(claim: Claim) -> None:
    for key, at in (claim.left, claim.right):
        assert at in train.by_key(claim.task, key).at
    assert claim.figure in report.FIGURES[claim.task]


def results(left: list[float], right: list[float], figure: str = "frechet") -> Results:
    rows = {
        f"superres/{key}/{seed}": {"figures": {at_key(FOUR): {figure: value}}}
        for key, values in (("a", left), ("b", right))
        for seed, value in enumerate(values)
    }
    return Results(Path("unused"), rows=rows)


@pytest.mark.parametrize(
    ("left", "right", "limit", "expected"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], 1.0, "holds"),
        ([1.0, 1.1, 1.31], [1.3, 1.4, 1.5], 1.0, "cannot be told"),
        ([1.0, 1.1, 1.31], [1.3, 1.4, 1.5], 1.1, "holds"),
        ([1.6, 1.7, 1.8], [1.3, 1.4, 1.5], 1.0, "does not hold"),
        ([1.6, 1.7, 1.8], [1.3, 1.4, 1.5], 1.1, "cannot be told"),
        ([1.0, 1.1], [1.3, 1.4, 1.5], 1.0, "cannot be told"),
        ([], [1.3, 1.4, 1.5], 1.0, "cannot be told"),
    ],
)
def test_a_verdict_needs_more_than_the_spread(
    left: list[float], right: list[float], limit: float, expected: str
) -> None:
    claim = Claim("a beats b", "superres", "frechet", ("a", FOUR), ("b", FOUR), limit)
    assert report.verdict(claim, results(left, right))[0] == expected


def test_where_more_is_better_the_sides_are_swapped() -> None:
    claim = Claim("a obeys", "superres", "followed", ("a", FOUR), ("b", FOUR), 0.95)
    more = results([0.96, 0.97, 0.98], [1.0, 1.0, 1.0], "followed")
    assert report.verdict(claim, more) == ("holds", "0.97")
    assert report.verdict(claim, results([0.9, 0.91, 0.92], [1.0, 1.0, 1.0], "followed"))[0] == "does not hold"
    demanding = replace(claim, least=0.25)
    assert report.verdict(demanding, more) == ("holds", "0.97")
    nothing = results([0.06, 0.07, 0.08], [0.05, 0.05, 0.05], "followed")
    assert report.verdict(demanding, nothing) == ("cannot be told", "1.40, of 0.05: neither has learnt it")


class Interrupted(Exception):
    """Stands for Ctrl-C."""


class FakeBench(train.Bench):
    """Counts what is trained and measured; can be stopped at the n-th measurement."""

    def __init__(self, results: Results, *, there: bool = True, stop_at: int | None = None):
        self.results, self.device = results, "cpu"
        self.there, self.stop_at, self.done = there, stop_at, []
        self.say: Callable[[str], object] = lambda text: None

    def _is_there(self, kept: dict[str, Any]) -> bool:
        return self.there

    def _distilled(self, row: Row, seed: int) -> dict[str, Any]:
        teacher = self.teacher(row, seed)
        self.done.append(f"train {row.key}")
        self.there = True
        return {"adapter": f"superres:{row.key}", "sha256": teacher, "seconds": 1.0}

    def _measured(self, row: Row, ref: str, at: tuple[int, str]) -> dict[str, float]:
        if self.stop_at == len([one for one in self.done if one.startswith("measure")]):
            raise Interrupted
        self.done.append(f"measure {row.key} {at_key(at)}")
        return {"frechet": 1.0}


@pytest.fixture
def empty(tmp_path: Path) -> Results:
    made = Results(tmp_path / "paper.json")
    made.put("about", {"steps": 100})
    made.put("costs", {row.work: 0.5 for row in ROWS})
    return made


def test_an_interrupted_row_is_resumed(empty: Results) -> None:
    row = train.by_key("superres", "pe-codi")
    first = FakeBench(empty, stop_at=1)
    with pytest.raises(Interrupted):
        first.do(row, 0)
    assert first.done == ["train pe-codi", "measure pe-codi 1 step"]
    second = FakeBench(Results.read(empty.path))
    second.do(row, 0)
    assert second.done == ["measure pe-codi 2 steps", "measure pe-codi 4 steps"]
    third = FakeBench(Results.read(empty.path), there=False)  # another machine: the figures are enough
    third.do(row, 0)
    assert third.done == []


def test_a_row_with_other_settings_is_trained_again(empty: Results) -> None:
    row = train.by_key("superres", "gate")
    FakeBench(empty).do(row, 0)
    changed = FakeBench(empty)
    changed.do(replace(row, told={**row.told, "lr": 1e-4}), 0)
    assert changed.done[0] == "train gate"


def test_a_teacher_is_trained_once_for_its_students_and_again_where_it_is_missing(empty: Results) -> None:
    cm, gd = train.by_key("superres", "cm-ii"), train.by_key("superres", "gd-ii")
    bench = FakeBench(empty)
    bench.do(cm, 0)
    assert bench.done[:2] == ["train ldm-half", "train cm-ii"]
    bench.do(gd, 0)
    assert bench.done.count("train ldm-half") == 1
    elsewhere = FakeBench(Results.read(empty.path), there=False)
    elsewhere.results.put("rows", {"superres/gd-ii/0": {}})
    elsewhere.do(gd, 0)
    assert elsewhere.done[:2] == ["train ldm-half", "train gd-ii"]


def test_two_processes_fill_one_file(empty: Results) -> None:
    pe, gate = train.by_key("superres", "pe-codi"), train.by_key("superres", "gate")
    first, second = (FakeBench(Results.read(empty.path)) for _ in range(2))
    first.do(pe, 0)
    second.do(gate, 0)
    first.do(pe, 1)
    assert set(Results.read(empty.path).rows) == {"superres/pe-codi/0", "superres/gate/0", "superres/pe-codi/1"}


def test_equal_time_is_fewer_steps_for_a_slower_row(empty: Results) -> None:
    pixel, half, random = (train.by_key("superres", key) for key in ("pixel", "ldm-half", "random"))
    empty.put("costs", {pixel.work: 2.0})
    assert [train.train_steps(row, empty) for row in (pixel, half, random)] == [25, 50, 100]
    assert random.work == train.by_key("superres", "pe-codi").work != pixel.work


def test_a_process_that_starts_over_is_not_mixed_with_one_that_continues(empty: Results) -> None:
    other = Results.read(empty.path)
    other.clear()
    other.put("about", {"steps": 200})
    with pytest.raises(RuntimeError, match="no longer of"):
        empty.put("rows", {"superres/pe-codi/0": {}})


def test_later_timings_are_scaled_to_the_first(empty: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pe, pixel = train.by_key("superres", "pe-codi"), train.by_key("superres", "pixel")
    empty.costs.pop(pixel.work)
    empty.write()
    seen: list[str] = []

    def slower(base: object, rows: Any, folder: Path) -> dict[str, float]:
        seen.extend(row.work for row in rows)
        return {pe.work: 2.0, pixel.work: 6.0}  # four times as slow as the machine of before

    monkeypatch.setattr(train, "costs", slower)
    train.all_costs(None, empty, tmp_path)  # type: ignore[arg-type]
    assert set(seen) == {pe.work, pixel.work}
    assert empty.costs[pixel.work] == pytest.approx(1.5)
    assert empty.costs[pe.work] == pytest.approx(0.5)


def test_the_page_leaves_out_rows_with_other_settings(empty: Results, tmp_path: Path) -> None:
    row = train.by_key("superres", "gate")
    FakeBench(empty).do(row, 0)
    made = {**empty.rows["superres/gate/0"], "machine": "a"}
    made["figures"] = {at: dict.fromkeys(report.FIGURES["ablation"], 1.0) for at in made["figures"]}
    empty.put("rows", {"superres/gate/0": made, "superres/gone/0": made})
    report.write(empty, tmp_path / "results.md")
    assert f"| {row.name} | 4 steps | 100 | 1 |" in (tmp_path / "results.md").read_text()
    empty.put("rows", {"superres/gate/0": {**made, "made_with": {**made["made_with"], "lr": 1.0}}})
    report.write(empty, tmp_path / "results.md")
    assert row.name not in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_the_command_fills_and_writes_the_page(
    tmp_path: Path, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny base with an untrained feature network: two rows and a teacher, trained for two steps."""
    workspace, page = tmp_path / "work", tmp_path / "docs" / "results.md"
    monkeypatch.setenv("CODI_HOME", str(workspace / "home"))
    base = save_base(tmp_path / "base", scheduler_config("v_prediction", zero_snr=True))
    assert codi("base", "add", "tiny", base).code == 0
    assert codi("base", "use", "tiny").code == 0
    torch.manual_seed(0)
    save_features(tmp_path / "features", FeatureNet(), "knows nothing")
    monkeypatch.setattr("codi_hub.evaluation.features.BUNDLED", tmp_path / "features")
    monkeypatch.setitem(COMMON, "size", 32)
    monkeypatch.setitem(COMMON, "count", 12)
    monkeypatch.setitem(COMMON, "batch", 2)
    for module in (train, "recipes.paper.held_out"):
        monkeypatch.setattr(f"{module if isinstance(module, str) else module.__name__}.SIZE", 32)
    monkeypatch.setattr("recipes.paper.held_out.MEASURED", 6)
    monkeypatch.setattr(train, "ROUNDS", 1)
    rows = [train.by_key("superres", key) for key in ("pe-codi", "ldm-half", "cm-ii")]
    for module in (train, report, command):
        monkeypatch.setattr(module, "TABLES", {"superres": tuple(rows)})
    arguments = ["paper", "--steps", "2", "--seeds", "0", "--workspace", str(workspace), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--results", str(page.parent / "results" / "paper.json")])
    command.main()
    kept = json.loads((page.parent / "results" / "paper.json").read_text())
    assert set(kept["rows"]) == {"superres/pe-codi/0", "superres/ldm-half/0", "superres/cm-ii/0"}
    assert kept["rows"]["superres/cm-ii/0"]["made_with"]["from"]["method"] == "conditional"
    assert set(kept["rows"]["superres/pe-codi/0"]["figures"]) == {"1 step", "2 steps", "4 steps"}
    text = page.read_text()
    assert "| PE-CoDi | 4 steps | 2 | 1 |" in text
    assert "| the condition itself |" in text
    assert (page.parent / "results" / "superres.png").exists()
    command.main()
    assert json.loads((page.parent / "results" / "paper.json").read_text()) == kept  # nothing was left to do
    AcceleratorState._reset_state(True)
