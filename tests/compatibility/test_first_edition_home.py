"""A home written by version 0.1.0 opens, lists, verifies, runs and resumes; bundled adapters give the same pixels."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

FIRST = Path(__file__).parent / "first_edition"
BUNDLED = sorted(path.name for path in (FIRST / "bundled").iterdir())
WHERE = "/first_edition"  # where the home was written


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Outputs were computed on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def first_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home, moved with everything it names to a new place."""
    for name in ("home", "base", "imgs", "imgs_x2"):
        shutil.copytree(FIRST / name, tmp_path / name)
    with sqlite3.connect(tmp_path / "home" / "registry.db") as database:
        for table, column in (("base", "source"), ("run_item", "input"), ("run_item", "output")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (WHERE, str(tmp_path)))
    monkeypatch.setenv("CODI_HOME", str(tmp_path / "home"))
    return tmp_path


def test_it_lists_and_verifies(codi: Callable[..., Any], first_home: Path) -> None:
    rows = json.loads(codi("list", "--base", "tiny", "--json").out)
    assert [(row["ref"], row["kind"], row["tags"]) for row in rows] == [
        ("x2:1", "lora", ["prod"]),
        ("x2:3", "lora", ["latest"]),
    ]
    orphans = json.loads(codi("verify", "--json").out)["problems"]
    assert {problem["kind"] for problem in orphans} == {"orphan"}  # the removed version's files
    assert codi("gc").code == 0
    assert codi("verify").code == 0
    tasks = {row["name"]: row for row in json.loads(codi("task", "list", "--json").out)}
    assert tasks["x2"]["like"] == "superres"
    shown = json.loads(codi("show", "x2:1", "--json").out)
    assert shown["method"] == "pe-codi"
    assert shown["loss"] == {"guidance": 1.0, "consistency": 1.0}


def test_a_finished_run_is_resumed_and_a_missing_image_made_the_same(
    codi: Callable[..., Any], first_home: Path
) -> None:
    gone = first_home / "imgs_x2" / "1.png"
    before = np.asarray(Image.open(gone)).astype(int)
    gone.unlink()
    command = ["run", "x2:prod", first_home / "imgs", "-o", first_home / "imgs_x2"]
    answer = codi(*command, "--dtype", "fp32", "--seed", "3", "--device", "cpu", "--json")
    assert [item["status"] for item in json.loads(answer.out)["items"]] == ["skipped", "ok", "skipped"]
    assert np.abs(np.asarray(Image.open(gone)).astype(int) - before).max() <= 1


@pytest.mark.slow
def test_an_interrupted_training_is_resumed(codi: Callable[..., Any], first_home: Path) -> None:
    run = first_home / "home" / "distill" / "x2-20260101-000003-dddddd"
    answer = codi("distill", "x2", "--run-dir", run, "--resume", "--train-steps", "4", "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert (result["steps"], result["adapter"]) == (4, "x2:4")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("task", BUNDLED)
def test_bundled_adapters_give_the_same_pixels(codi: Callable[..., Any], tmp_path: Path, task: str, steps: int) -> None:
    command = ["run", task, FIRST / "bundled" / task / "input", "-o", tmp_path / "out", "--steps", str(steps)]
    answer = codi(*command, "--dtype", "fp32", "--device", "cpu", "--seed", "7", "--json")
    assert answer.code == 0, answer.err
    expected = sorted((FIRST / "bundled" / task / f"steps{steps}").iterdir())
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [path.name for path in expected]
    for path in expected:
        then, now = (np.asarray(Image.open(file)).astype(int) for file in (path, tmp_path / "out" / path.name))
        assert np.abs(then - now).max() <= 1
