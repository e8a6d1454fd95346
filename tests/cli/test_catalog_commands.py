"""list, show, task, base, verify and doctor against a real registry in an empty home."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from codi_hub import Catalog, tasks
from codi_hub.cli import adapters
from codi_hub.record import AdapterRecord

RECORD = {
    "format_version": 2, "task": "mine", "kind": "control", "method": "pe-codi",
    "base": {"name": "tiny", "family": "f" * 16, "sketch": {}}, "prediction_type": "epsilon", "steps": 4,
    "config": {"condition_channels": 3}, "loss": {"guidance": 1.0, "consistency": 0.5},
}  # fmt: skip
BASE = {"family": "f" * 16, "sketch": {"conv_in.weight": [0.5] * 16}}
RECORD = {
    "task": "mine",
    "kind": "control",
    "base": {"name": "tiny"} | BASE,
    "prediction_type": "epsilon",
    "steps": 4,
    "config": {"condition_channels": 3},
    "method": "pe-codi",
    "loss": {"guidance": 1.0, "consistency": 1.0},
}


@pytest.fixture
def adapter(home, tmp_path):
    """A registered base, task and adapter version; returns its reference."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / "adapter.json").write_text(AdapterRecord(**RECORD).to_json())
    (folder / "README.md").write_text("# A card\n")
    with Catalog.open() as catalog:
        catalog.registry.bases.add("tiny", "/models/tiny", **BASE)
        catalog.add_task("mine", "superres", {"scale": 2})
        row, _ = catalog.registry.adapters.add(
            folder,
            task="mine",
            base="tiny",
            kind="control",
            steps=4,
            parameters=12,
            metrics={"psnr": 24.5},
            score=24.5,
        )
    return row.ref


def test_a_table_shows_one_page_and_how_to_see_the_next(codi, monkeypatch):
    names = codi("list", "-q").out.split()
    assert len(names) > 3
    monkeypatch.setattr(adapters, "PAGE", 2)
    more = "There are more adapters: --offset {} shows the next, --limit N shows N.\n"
    first = codi("list")
    assert (_first_column(first.out), first.err) == (["ADAPTER", *names[:2]], more.format(2))
    second = codi("list", "--offset", "2", "--limit", "1")
    assert (_first_column(second.out), second.err) == (["ADAPTER", names[2]], more.format(3))
    rest = codi("list", "--offset", "1", "--limit", "1000")
    assert (_first_column(rest.out), rest.err) == (["ADAPTER", *names[1:]], "")
    assert codi("list", "--offset", "99") == (0, "", "No adapters after the first 99.\n")
    assert [entry["ref"] for entry in json.loads(codi("list", "--json").out)] == codi("list", "-q").out.split() == names
    assert [entry["ref"] for entry in json.loads(codi("list", "--json", "--limit", "1", "--offset", "1").out)] == [
        names[1]
    ]
    assert codi("list", "nosuch", "--offset", "1").code == 1


def _first_column(table):
    return [line.split()[0] for line in table.splitlines()]


@pytest.mark.parametrize("args", [("--limit", "0"), ("--offset", "-1"), ("--limit", "x")], ids=" ".join)
def test_invalid_limits_are_wrong_usage(codi, args):
    answer = codi("list", *args)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert args[0] in answer.err


def test_an_unknown_task_error_names_twenty_tasks(codi):
    with Catalog.open() as catalog:
        for k in range(30):
            catalog.registry.tasks.add(f"variant-{k:02}", "depth", {})
    answer = codi("task", "show", "nosuch")
    there = ", ".join([*tasks.builtin(), *(f"variant-{k:02}" for k in range(12))])
    assert answer == (
        1,
        "",
        f"Error: no task 'nosuch'; there are {there} and 18 more (register one with `codi task add`)\n",
    )
    assert codi("task", "show", "variant-29").code == 0
    assert codi("task", "show", "\udcff").err.startswith("Error: no task ")
    assert codi("list", "\udcff").err.startswith("Error: no task ")
    assert codi("task", "show", "").err.startswith("Error: the argument after show is empty")


def test_list_as_json_has_the_documented_fields(codi, adapter):
    answer = codi("list", "mine", "--json")
    (entry,) = json.loads(answer.out)
    keys = [
        "task",
        "version",
        "ref",
        "base",
        "kind",
        "method",
        "steps",
        "parameters",
        "bytes",
        "sha256",
        "status",
        "bundled",
        "metrics",
        "tags",
    ]
    assert (answer.code, answer.err, list(entry)) == (0, "", keys)
    assert entry | {"tags": 0, "sha256": 0, "status": 0, "bytes": 0} == {
        "task": "mine", "version": 1, "ref": "mine:1", "base": "tiny", "kind": "control",
        "method": "pe-codi", "steps": 4, "parameters": 12,
        "bytes": 0, "sha256": 0, "status": 0, "bundled": False, "metrics": {"psnr": 24.5}, "tags": 0,
    }  # fmt: skip
    assert codi("ls", "mine", "--json") == answer


def test_list_as_a_table_and_quiet(codi, adapter):
    head, line = codi("list", "mine", "--base", "tiny").out.splitlines()
    assert head.split() == ["ADAPTER", "TASK", "VERSION", "BASE", "KIND", "METHOD", "STEPS", "SIZE", "SCORE", "TAGS"]
    assert line.split()[:7] == ["mine:1", "mine", "1", "tiny", "control", "pe-codi", "4"]
    assert "24.5" in line
    assert codi("list", "mine", "-q").out == "mine:1\n"


def test_an_empty_list_says_what_to_do(codi):
    codi("task", "add", "new", "--like", "superres")
    assert codi("list", "new") == (0, "", "No adapters yet: train one with `codi distill TASK`.\n")
    assert codi("list", "new", "--json") == (0, "[]\n", "")


def test_unknown_names_are_not_found(codi):
    answer = codi("list", "nosuch")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("Error: no task 'nosuch'; there are " + ", ".join(tasks.builtin()))
    answer = codi("list", "--base", "nosuch")
    assert answer.code == 1
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    line = "Error: no adapter, task or base is called 'nosuch'; see `codi list`, `codi task list`, `codi base list`\n"
    assert codi("show", "nosuch") == (1, "", line)


def test_show_tells_adapters_tasks_and_bases_apart(codi, adapter):
    shown = json.loads(codi("show", adapter, "--base", "tiny", "--json").out)
    assert (shown["type"], shown["ref"], shown["score"], shown["card"]) == ("adapter", "mine:1", 24.5, "# A card\n")
    assert (shown["method"], shown["loss"]) == ("pe-codi", {"guidance": 1.0, "consistency": 1.0})
    assert shown["config"] == AdapterRecord(**RECORD).model_dump()
    assert set(shown["files"]) == {"adapter.safetensors", "adapter.json", "README.md"}
    assert json.loads(codi("show", "mine", "--base", "tiny", "--json").out) == shown
    assert "# A card" in codi("show", "mine", "--base", "tiny").out

    codi("task", "add", "new", "--like", "superres", "--scale", "2")
    shown = json.loads(codi("show", "new", "--json").out)
    assert (shown["type"], shown["settings"]["scale"], shown["adapters"]) == ("task", 2, [])
    shown = json.loads(codi("show", "tiny", "--json").out)
    assert (shown["type"], shown["family"]) == ("base", BASE["family"])


def test_task_add_list_show_and_rm(codi):
    added = codi("task", "add", "sharp", "--like", "superres", "--set", "scale=2")
    assert added == (0, "Registered task sharp; train its adapter with `codi distill sharp`.\n", "")
    entries = {entry["name"]: entry for entry in json.loads(codi("task", "list", "--json").out)}
    assert entries["sharp"] == {"name": "sharp", "like": "superres", "options": {"scale": 2}, "builtin": False}
    assert entries["depth"] == {"name": "depth", "like": "depth", "options": {}, "builtin": True}
    assert json.loads(codi("task", "show", "sharp", "--json").out)["settings"]["scale"] == 2
    assert "sharp" in codi("task", "list", "-q").out.split()
    assert codi("task", "rm", "sharp") == (0, "Removed sharp.\n", "")
    assert "sharp" not in codi("task", "list", "-q").out.split()


def test_a_built_in_task_stays_built_in(codi):
    before = codi("task", "list", "--json").out
    line = "Task depth is built in already; train its adapter with `codi distill depth`.\n"
    assert codi("task", "add", "depth") == codi("task", "add", "depth", "--like", "depth") == (0, line, "")
    assert json.loads(codi("task", "add", "depth", "--json").out)["builtin"]
    refused = "Error: task 'depth' is built in and takes no options: register a variant, like depth, under another name"
    for options in (["--set", "invert=true"], ["--like", "depth", "--set", "invert=true"]):
        answer = codi("task", "add", "depth", *options)
        assert (answer.code, answer.out, answer.err.startswith(refused)) == (1, "", True)
    assert codi("task", "list", "--json").out == before
    assert codi("task", "add", "near", "--like", "depth", "--set", "invert=true").code == 0


def test_adding_an_equal_task_again_changes_nothing_and_another_is_refused(codi):
    add = ("task", "add", "sharp", "--like", "superres", "--scale", "2")
    assert codi(*add).code == 0
    again = "Task sharp is registered already; train its adapter with `codi distill sharp`.\n"
    assert codi(*add) == (0, again, "")
    answer = codi("task", "add", "sharp", "--like", "superres", "--scale", "4")
    assert (answer.code, answer.out) == (1, "")
    assert "codi task rm sharp" in answer.err


def test_rows_of_built_in_names_from_the_first_edition(codi):
    """The first edition registered a built-in task by its own name, with options or without."""
    before = {entry["name"]: entry for entry in json.loads(codi("task", "list", "--json").out)}
    with Catalog.open() as catalog:
        catalog.registry.tasks.add("superres", "superres", {})
        catalog.registry.tasks.add("depth", "depth", {"invert": True})
    entries = {entry["name"]: entry for entry in json.loads(codi("task", "list", "--json").out)}
    assert entries["superres"] == before["superres"] == json.loads(codi("task", "add", "superres", "--json").out)
    assert "built-in task and cannot be removed" in codi("task", "rm", "superres").err
    assert entries["depth"] == {"name": "depth", "like": "depth", "options": {"invert": True}, "builtin": False}
    assert json.loads(codi("task", "show", "depth", "--json").out)["settings"]["invert"] is True
    assert codi("task", "add", "depth", "--set", "invert=true").out.startswith("Task depth is registered already")
    assert "codi task rm depth" in codi("task", "add", "depth").err
    assert codi("task", "rm", "depth").code == 0
    assert json.loads(codi("task", "list", "--json").out) == list(before.values())


def test_a_variant_of_a_variant_has_the_options_of_both(codi):
    codi("task", "add", "a", "--like", "superres", "--scale", "2")
    codi("task", "add", "b", "--like", "a", "--set", "preset=full")
    entry = json.loads(codi("task", "show", "b", "--json").out)
    assert (entry["like"], entry["options"]) == ("superres", {"scale": 2, "preset": "full"})


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (
            ["add", "mine"],
            2,
            "like: say which task 'mine' is a variant of, one of " + ", ".join(tasks.builtin()),
        ),
        (
            ["add", "depth", "--like", "superres"],
            1,
            "'depth' is a built-in task and cannot be like 'superres'; choose another name",
        ),
        (["rm", "superres"], 1, "'superres' is a built-in task and cannot be removed"),
    ],
    ids=["no template", "another template", "built in"],
)
def test_refused_task_commands(args, code, line, codi):
    assert codi("task", *args) == (code, "", f"Error: {line}\n")


@pytest.mark.parametrize("options", [["--set", "nosuch=1"], ["--scale", "3"], ["--set", "scale=big"]], ids=" ".join)
def test_task_options_are_checked_when_registered(options, codi):
    answer = codi("task", "add", "mine", "--like", "superres", *options)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    assert codi("task", "show", "mine").code == 1


def test_bases_are_listed_shown_chosen_and_removed(codi, home):
    with Catalog.open() as catalog:
        catalog.registry.bases.add("a", "/models/a", **BASE)
        catalog.registry.bases.add("b", "owner/b", **BASE)
    assert codi("base", "use", "b") == (0, "Base b is in use.\n", "")
    entries = {entry["name"]: entry for entry in json.loads(codi("base", "list", "--json").out)}
    assert [entries[name]["default"] for name in "ab"] == [False, True]
    assert entries["b"]["source"] == "owner/b"
    assert "sketch" not in entries["b"]
    assert "owner/b" in codi("base", "show", "b").out
    assert codi("base", "rm", "a") == (0, "Removed a.\n", "")
    assert "a" not in codi("base", "list", "-q").out.split()


def test_a_source_that_is_not_a_base_is_refused_before_torch_loads(codi, tmp_path):
    (tmp_path / "weights.ckpt").touch()
    hint = "a base is a diffusers folder, a .safetensors file or a hub id such as owner/name"
    missing = f"Error: no file or folder {tmp_path / 'no'}; {hint}\n"
    assert codi("base", "add", "x", tmp_path / "no") == (1, "", missing)
    code, out, error = codi("base", "add", "x", tmp_path / "weights.ckpt")
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "weights.ckpt is a pickle, which can run code" in error
    assert "convert it to safetensors" in error
    code, out, error = codi("base", "add", "x", tmp_path)
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"Error: {tmp_path} is not a model folder of a known family \(.*\): no model_index.json.*\n", error
    )


def test_verify_is_silent_until_a_file_differs(codi, adapter):
    assert json.loads(codi("verify", "--json").out) == {"ok": True, "problems": []}
    with Catalog.open() as catalog:
        path = catalog.registry.adapters.file(catalog.registry.adapters.resolve(adapter, base="tiny"), "README.md")
    path.chmod(0o644)
    path.write_text("# Changed\n")
    answer = codi("verify", "--json")
    document = json.loads(answer.out)
    assert (answer.code, document["ok"]) == (1, False)
    assert any(str(path) == problem["path"] for problem in document["problems"])
    assert codi("verify").code == 1


def test_doctor_checks_each_part_and_fails_as_a_whole(codi, monkeypatch, tmp_path):
    monkeypatch.setenv("CODI_STORE_URL", str(tmp_path / "team"))
    checks = {check["check"]: check for check in json.loads(codi("doctor", "--json").out)}
    assert list(checks) == ["python", "codi-hub", "torch", "device", "home", "registry", "store", "bundled"]
    assert all(checks[name]["ok"] for name in list(checks)[:7]), checks
    times = r"ms: write [\d.]+, list [\d.]+, read [\d.]+, delete [\d.]+"
    assert re.fullmatch(f"{tmp_path / 'team'}, {times}", checks["store"]["detail"])
    monkeypatch.setenv("CODI_HOME", "/proc/nowhere")
    answer = codi("doctor")
    assert answer.code == 1
    assert "FAILED" in answer.out


def test_data_is_kept_with_a_task_and_checked_when_it_is_added(codi, tmp_path, monkeypatch):
    for name, grey in (("condition", 50), ("target", 200)):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (40, 30), (grey, grey, 10 * k)).save(tmp_path / "pairs" / name / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    assert codi("task", "add", "mytask", "--like", "pairs", "--data", "./pairs").code == 0
    entry = json.loads(codi("task", "show", "mytask", "--json").out)
    assert (entry["like"], entry["options"]) == ("pairs", {"data": str(tmp_path / "pairs")})
    monkeypatch.chdir("/")
    with Catalog.open() as catalog:
        assert catalog.load_task("mytask").training_data == str(tmp_path / "pairs")
    assert codi("task", "add", "soft", "--like", "deblur", "--data", tmp_path / "pairs" / "target").code == 0


@pytest.mark.parametrize(
    ("like", "data", "line"),
    [
        ("pairs", "./gone", "no folder or file './gone': give a folder,"),
        ("pairs", "empty", "no readable image in "),
        ("pairs", "photos", "task pairs needs data with 'condition'; this has image"),
        ("depth", "photos", "task depth needs data with 'depth'; this has image"),
        ("pairs", "alone", "no image in "),
    ],
)
def test_data_that_a_task_cannot_use_is_refused_when_it_is_added(like, data, line, codi, tmp_path, monkeypatch):
    for folder in ("empty", "photos", "alone/input", "alone/output"):
        (tmp_path / folder).mkdir(parents=True)
    for path in ("photos/a.png", "alone/input/a.png", "alone/output/b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    answer = codi("task", "add", "mine", "--like", like, "--data", data)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"Error: {line}")
    assert answer.err.count("\n") == 1
    assert codi("task", "show", "mine").code == 1


def test_a_flag_for_an_option_the_task_lacks_is_refused(codi):
    answer = codi("task", "add", "mine", "--like", "deblur", "--mask", "m.png")
    has = "data, blur, noise, correct, correct_sigma"
    assert answer == (2, "", f"Error: task deblur: no option 'mask'; it has {has}\n")


def test_bundled_adapters_say_how_they_were_trained(codi):
    listed = {entry["ref"]: entry["method"] for entry in json.loads(codi("list", "--base", "nano", "--json").out)}
    assert (listed["superres:1"], listed["inpaint:1"]) == ("regression", "pe-codi")
    assert json.loads(codi("show", "superres:1", "--base", "nano", "--json").out)["method"] == "regression"
    assert "regression" in codi("list", "superres").out
