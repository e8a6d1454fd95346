"""codi tag, cp, rm and gc."""

from __future__ import annotations

import json

import pytest

from codi_hub import Catalog


@pytest.fixture
def mine(home, tmp_path):
    """Tasks `mine` and `other`, like superres; mine:1 (score 1) and mine:2 (score 2) on the base `tiny`, in use."""
    with Catalog.open() as catalog:
        catalog.registry.bases.add("tiny", "/models/tiny", family="f")
        catalog.use_base("tiny")
        catalog.add_task("mine", "superres")
        catalog.add_task("other", "superres", {"scale": 2})
        for score in (1.0, 2.0):
            folder = tmp_path / str(score)
            folder.mkdir()
            (folder / "adapter.safetensors").write_text(f"weights {score}")
            facts = {"kind": "control", "steps": 4, "parameters": 12, "metrics": {}, "score": score}
            catalog.registry.adapters.add(folder, task="mine", base="tiny", **facts)


def test_tag_and_remove_it(codi, mine):
    assert codi("tag", "mine:1", "prod") == (0, "mine:prod is mine:1 for base tiny.\n", "")
    assert json.loads(codi("tag", "mine:prod", "latest", "--json").out)["tags"] == ["latest", "prod"]
    assert codi("tag", "mine", "prod", "-q") == (0, "mine:1\n", "")
    assert codi("tag", "mine", "prod", "--remove").out == "Removed mine:prod; it was mine:1 for base tiny.\n"
    line = "Error: mine has no tag 'prod' for base tiny; see `codi list`\n"
    assert codi("tag", "mine", "prod", "--remove") == (1, "", line)
    assert codi("tag", "mine", "7").code == 2
    assert codi("tag", "mine:1", "x", "--base", "nosuch").err.startswith("Error: no base 'nosuch'; there is ")


def test_cp_gives_a_task_like_it_the_same_weights(codi, mine):
    assert codi("cp", "mine", "other") == (0, "Copied mine:2 to other:1 for base tiny.\n", "")
    assert codi("cp", "mine:2", "other") == (0, "other:1 for base tiny already has these weights.\n", "")
    worse = (
        "Copied mine:1 to other:2 for base tiny.\n"
        "Its score is worse than, or does not compare with, that of other:latest, which stays; use it as other:2.\n"
    )
    assert codi("cp", "mine:1", "other").out == worse
    copied = json.loads(codi("cp", "mine:1", "superres", "--json").out)
    assert {key: copied[key] for key in ("ref", "base", "parent", "created", "bundled")} == {
        "ref": "superres:1", "base": "tiny", "parent": "mine:1", "created": True, "bundled": False,
    }  # fmt: skip
    assert codi("cp", "mine:1", "superres", "-q").out == "superres:1\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["mine", "depth"],
            "mine:2 was trained for a task like superres, and depth is like depth: copy it to a task like superres "
            "(register one with `codi task add`)",
        ),
        (["mine:3", "other"], "no mine:3 for base tiny; there is mine:1|2|latest"),
        (["mine", "other:1"], "no task 'other:1'; there are "),
    ],
)
def test_refused_copies(args, line, codi, mine):
    answer = codi("cp", *args)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"Error: {line}")
    assert answer.err.count("\n") == 1


def test_rm_then_gc_leaves_a_clean_registry(codi, mine):
    codi("tag", "mine:2", "prod")
    removed = "Removed mine:2 for base tiny; `codi gc` deletes the files.\nmine:latest is now mine:1 (score 1).\n"
    assert codi("rm", "mine:prod") == (0, removed, "")
    gone = "Error: mine:2 for base tiny has been removed; there is mine:1|latest\n"
    for command in (["show", "mine:2"], ["rm", "mine:2"], ["tag", "mine:2", "x"], ["run", "mine:2", "."]):
        assert codi(*command) == (1, "", gone)
    distilled = codi("distill", "mine", "--method", "cm", "--from", "mine:2")
    assert distilled == (1, "", gone)
    assert codi("verify").code == 1
    lines = codi("gc", "--dry-run").out.splitlines()
    assert lines[0].split() == ["FILE", "SIZE", "ORIGIN"]
    assert lines[1].endswith("11 B  of mine:2 for tiny, removed")
    assert lines[2] == "Would delete 1 file, 11 B."
    document = json.loads(codi("gc", "--json").out)
    assert (document["dry_run"], document["bytes"], len(document["files"])) == (False, 11, 1)
    assert codi("gc") == (0, "Nothing to delete.\n", "")
    assert codi("verify").code == 0


def test_rm_of_the_last_one_and_of_several(codi, mine):
    several = "Error: mine has 2 versions for base tiny; say which: mine:1|2|latest\n"
    assert codi("rm", "mine") == (2, "", several)
    assert codi("rm", "mine:1", "mine:5").code == 1
    assert codi("list", "mine", "-q").out == "mine:1\nmine:2\n"
    answer = codi("rm", "mine:1", "mine:2", "--json")
    document = {"removed": ["mine:1", "mine:2"], "base": "tiny", "latest": {"mine": None}}
    assert (answer.code, json.loads(answer.out), answer.err) == (0, document, "")
    assert json.loads(codi("list", "mine", "--json").out) == []
    assert json.loads(codi("show", "mine", "--json").out)["type"] == "task"


def test_a_bundled_adapter_cannot_be_removed(codi):
    line = "Error: depth:1 comes with CoDi Hub and cannot be removed\n"
    assert codi("rm", "depth", "--base", "nano") == (1, "", line)
    assert "depth:1" in codi("list", "depth", "-q").out
