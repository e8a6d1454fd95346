"""codi runs list and show, against the log of real runs."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from codi_hub import Catalog


@pytest.fixture
def runs(codi, tmp_path, monkeypatch):
    """Run 1: one image with a prompt, and one that cannot be read. Run 2: killed before its first item."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16, 16), "teal").save("in/a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"not an image")
    assert codi("run", "superres", "in", "-o", "out", "--steps", "1", "--seed", "3", "--prompt", "a hill").code == 1
    with Catalog.open() as catalog:
        catalog.registry.runs.start("depth", "depth:1", {"steps": 4})


def test_list_shows_the_last_runs_with_their_counts(codi, runs):
    entries = json.loads(codi("runs", "list", "--json").out)
    assert [(e["id"], e["task"], e["adapter"], e["status"], e["ok"], e["failed"]) for e in entries] == [
        (2, "depth", "depth:1", "running", 0, 0),
        (1, "superres", "superres:1", "failed", 1, 1),
    ]
    assert entries[0]["finished"] is None
    assert entries[1]["finished"] > entries[1]["started"]
    assert entries[1]["options"]["steps"] == 1
    head, second, first = codi("runs", "list").out.splitlines()
    assert head.split() == ["RUN", "STATUS", "ADAPTER", "OK", "FAILED", "STARTED", "(UTC)", "FINISHED", "(UTC)"]
    assert second.split()[:5] == ["2", "running", "depth:1", "0", "0"]
    started = entries[1]["started"]
    assert first.split()[:7] == ["1", "failed", "superres:1", "1", "1", started[:10], started[11:19]]
    assert codi("runs", "list", "--limit", "1", "-q") == (0, "2\n", "")
    assert codi("runs", "ls", "--json").out == codi("runs", "list", "--json").out


def test_show_lists_the_items_of_a_run(codi, runs, tmp_path):
    shown = json.loads(codi("runs", "show", "1", "--json").out)
    assert {key: shown[key] for key in ("id", "adapter", "status", "ok", "failed")} == {
        "id": 1, "adapter": "superres:1", "status": "failed", "ok": 1, "failed": 1,
    }  # fmt: skip
    items = {item["status"]: item for item in shown["items"]}
    assert items["ok"]["output"] == str(tmp_path / "out" / "a.png")
    assert (items["ok"]["prompt"], items["ok"]["error"]) == ("a hill", None)
    assert items["ok"]["seconds"] > 0
    assert items["ok"]["seed"] != items["failed"]["seed"]
    assert "b.png" in items["failed"]["input"]
    assert items["failed"]["error"]
    text = codi("runs", "show", "1").out
    assert "STATUS  INPUT" in text
    assert items["failed"]["error"] in text
    assert str(items["ok"]["seed"]) in text
    assert json.loads(codi("runs", "show", "2", "--json").out)["items"] == []
    assert codi("runs", "show", "2").out.splitlines()[0].split() == ["id", "2"]


def test_names_and_prompts_of_any_text_stay_on_one_line(codi, home):
    with Catalog.open() as catalog:
        run = catalog.registry.runs.start("depth", "depth:1", {})
        item = {"input_hash": None, "status": "ok", "seed": 1, "error": None, "seconds": 0.5}
        catalog.registry.runs.add_item(run, input="a\nb.png", output="o\x1b[2J.png", prompt="x\n" * 500, **item)
    lines = codi("runs", "show", str(run)).out.splitlines()
    assert len(lines[-1]) < 120
    assert "a\\nb.png" in lines[-1]
    assert "o\\x1b[2J.png" in lines[-1]


def test_no_runs_and_no_such_run(codi):
    assert codi("runs", "list") == (0, "", "No runs yet: start one with `codi run`.\n")
    assert codi("runs", "list", "--json") == (0, "[]\n", "")
    assert codi("runs", "show", "7") == (1, "", "Error: no run 7; see `codi runs list`\n")
    for wrong in (("list", "--limit", "0"), ("show", "x"), ("show", "0"), ("show", str(2**40))):
        answer = codi("runs", *wrong)
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
