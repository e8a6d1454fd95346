"""Files of jobs: read whole before anything is run, with the guarantees of a single run."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from codi_hub import RunOptions
from codi_hub.errors import CodiError, InvalidInput
from codi_hub.folders.jobs import KEYS, read_jobs
from codi_hub.hub import Hub
from codi_hub.images.metadata import read_origin
from codi_hub.inference.models import ModelCache

Codi = Callable[..., Any]


def written(file: Path, *lines: Any) -> Path:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


# ---- the file


def test_a_line_overrides_the_options_of_all_jobs(tmp_path: Path) -> None:
    file = written(
        tmp_path / "jobs.jsonl",
        {"task": "superres", "input": "a.png"},
        "",
        {"task": "edit:2", "input": ["b.png", "c"], "output": "o", "prompt": "x", "seed": 7, "set": {"keep": 0}},
        {"task": "depth", "input": "d", "steps": None, "recursive": False, "tile": "256"},
    )
    one, two, three = read_jobs(file, RunOptions(steps=2, seed=3, device="cpu"))
    assert (one.ref, one.inputs, one.options) == (
        "superres",
        [Path("a.png")],
        RunOptions(steps=2, seed=3, device="cpu"),
    )
    assert (two.ref, two.inputs) == ("edit:2", [Path("b.png"), Path("c")])
    assert two.options == RunOptions(steps=2, seed=7, device="cpu", out=Path("o"), prompt="x", set={"keep": 0})
    assert three.options == RunOptions(steps=2, seed=3, device="cpu", recursive=False, tile="256")
    common = RunOptions(set={"scale": 2, "sharpen": 1})
    (added,) = read_jobs(written(file, {"task": "superres", "input": "a", "set": {"sharpen": 0}, "tile": 512}), common)
    assert (added.options.set, added.options.tile) == ({"scale": 2, "sharpen": 0}, "512")
    assert [job.where.rsplit(" ", 2)[-1] for job in (one, two, three)] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"task": "superres", "input": "a", "sed": 1}, "line 2: no option 'sed'; did you mean 'seed'"),
        ({"task": "superres", "input": "a", "xyzzy": 1}, "line 2: no option 'xyzzy'; a job has task, input, output, "),
        ({"task": "superres", "input": "a", "device": "cuda"}, "line 2: no option 'device'"),
        ('{"task": "superres", "input": "a", "task": "depth"}', "line 2: 'task' is there twice: remove one of them"),
        ('{"task": "edit", "input": "a", "set": {"keep": 0, "keep": 1}}', "line 2: 'keep' is there twice"),
        ({"task": "superres"}, "line 2 lacks a task or an input"),
        ({"input": "a"}, "line 2 lacks a task or an input"),
        ({"task": "superres", "input": []}, "line 2 lacks a task or an input"),
        ({"task": "superres", "input": ["a", 1]}, "line 2 lacks a task or an input"),
        ({"task": "superres", "input": "a", "output": 5}, "line 2: output 5: "),
        ({"task": "superres", "input": "a", "steps": "many"}, "line 2: steps many: "),
        ({"task": "superres", "input": "a", "steps": 0}, "line 2: steps 0: at least 1"),
        ({"task": "superres", "input": "a", "ext": "exe"}, "line 2: ext exe: one of auto, png, jpg"),
        ({"task": "superres", "input": "a", "set": [1]}, "line 2: set [1]: "),
        ({"task": "superres", "input": "a\x00b"}, "line 2: 'a\\x00b' contains characters that no path can have"),
        (
            {"task": "superres", "input": "a", "output": "\ud800"},
            "line 2: '\\ud800' contains characters",
        ),
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[]", "line 2 is not a JSON object"),
    ],
    ids=str,
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path: Path, line: Any, message: str) -> None:
    file = written(tmp_path / "jobs.jsonl", {"task": "superres", "input": "a"}, line)
    with pytest.raises(InvalidInput) as caught:
        list(read_jobs(file, RunOptions()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_empty_or_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no job: write lines such as"):
        list(read_jobs(written(tmp_path / "empty.jsonl", "", " "), RunOptions()))
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        list(read_jobs(tmp_path / "none.jsonl", RunOptions()))


texts = st.text(st.characters(exclude_categories=()), max_size=20)  # half surrogate pairs too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(KEYS) | texts, json_values, max_size=6).map(
        lambda line: json.dumps({"task": "superres", "input": "a.png"} | line).encode()
    )
)
def test_any_content_is_run_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "any.jsonl").write_bytes(content)
    refusal, report = None, None
    with contextlib.chdir(folder), Hub.open(folder / "home") as hub:
        try:
            report = hub.run_jobs(Path("any.jsonl"), RunOptions(dry_run=True))
        except CodiError as error:
            refusal = str(error)
    assert (refusal is None) == (report is not None)
    assert refusal is None or len(refusal.splitlines()) == 1
    assert {path.name for path in folder.iterdir()} <= {"a.png", "any.jsonl", "home"}


# ---- running it


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in/a.png, in/b.png and in/hole.png (with a transparent hole), and the working directory above them."""
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{name}.png")
    hole = np.full((32, 32, 4), 200, np.uint8)
    hole[..., 3] = 255
    hole[8:16, 8:16, 3] = 0
    Image.fromarray(hole).save(tmp_path / "in" / "hole.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_jobs_of_several_tasks_equal_single_runs(inputs: Path, codi: Codi) -> None:
    fixed = ("--steps", "1", "--device", "cpu", "--dtype", "fp32")
    written(
        inputs / "jobs.jsonl",
        {"task": "superres", "input": "in/a.png", "output": "out", "seed": 5, "set": {"scale": 2}},
        {"task": "inpaint", "input": "in/hole.png", "output": "out"},
        {"task": "superres", "input": "in/b.png", "output": "out/b2.png", "set": {"scale": 2}},
        {"task": "superres", "input": "in/b.png", "output": "out4"},
    )
    answer = codi("run", "--jobs", "jobs.jsonl", "--json", "--report", "page.html", *fixed)
    assert answer.code == 0, answer.err
    page = (inputs / "page.html").read_text()
    assert page.count("data:image/webp") == 8  # four images, before and after
    assert "superres:1, 1 step; inpaint:1, 1 step" in page
    report = json.loads(answer.out)
    assert (report["ok"], report["failed"], report["jobs"]) == (4, 0, "jobs.jsonl")
    assert [(run["task"], len(run["items"])) for run in report["runs"]] == [
        ("superres", 2),
        ("inpaint", 1),
        ("superres", 1),
    ]
    assert codi("run", "superres", "in/a.png", "-o", "own", "--seed", "5", "--scale", "2", *fixed).code == 0
    assert np.array_equal(np.asarray(Image.open("out/a.png")), np.asarray(Image.open("own/a.png")))
    assert [Image.open(f"out{k}.png").size for k in ("/b2", "4/b")] == [(32, 32), (64, 64)]

    again = json.loads(codi("run", "--jobs", "jobs.jsonl", "--json", *fixed).out)
    assert (again["ok"], again["skipped"]) == (0, 4)
    lines = (inputs / "jobs.jsonl").read_text().replace('"seed": 5', '"seed": 6')
    (inputs / "jobs.jsonl").write_text(lines)
    third = json.loads(codi("run", "--jobs", "jobs.jsonl", "--json", *fixed).out)
    assert [item["input"] for run in third["runs"] for item in run["items"] if item["status"] == "ok"] == ["in/a.png"]


@pytest.mark.slow
def test_reports_outputs_and_finished_work_know_the_strength(inputs: Path, codi: Codi) -> None:
    fixed = ("--steps", "1", "--device", "cpu", "--dtype", "fp32", "--json")
    jobs = [{"task": "superres", "input": "in/a.png", "output": f"out/{s}.png", "strength": s} for s in (0.5, 1, 0)]
    written(inputs / "jobs.jsonl", *jobs)
    report = json.loads(codi("run", "--jobs", "jobs.jsonl", *fixed).out)
    assert sorted(run["strength"] for run in report["runs"]) == [0, 0.5, 1]
    origins = [read_origin(inputs / "out" / f"{strength}.png") or {} for strength in (0.5, 1, 0)]
    assert [origin.get("strength") for origin in origins] == [0.5, None, 0]
    pixels = [np.asarray(Image.open(inputs / "out" / f"{strength}.png"), int) for strength in (0, 0.5, 1)]
    assert min(np.abs(pixels[0] - pixels[1]).max(), np.abs(pixels[1] - pixels[2]).max()) > 0

    def statuses(*more: str) -> list[str]:
        line = ("run", "superres", "in/a.png", "-o", "out/0.5.png", *fixed, *more)
        answer = codi(*line)
        return [item["status"] + item.get("replaces", "") for item in json.loads(answer.out)["items"]]

    assert statuses("--strength", "0.5") == ["skipped"]
    assert statuses("--strength", "0.25", "--dry-run") == ["plannedmade with another adapter or other options"]
    assert statuses() == ["okmade with another adapter or other options"]  # as is a strength of 1
    assert np.array_equal(np.asarray(Image.open(inputs / "out" / "0.5.png"), int), pixels[2])
    answer = codi("run", "superres", "in/a.png", "--strength", "0.5", "--dry-run")
    assert answer.out.endswith("(superres:1, 4 steps, strength 0.5)\n")
    assert codi("run", "superres", "in", "--strength", "2") == (2, "", "Error: --strength 2.0: at most 1\n")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ({"task": "nosuch", "input": "in"}, 1, "line 2: task 'nosuch' has no adapter yet"),
        ({"task": "superres", "input": "nowhere"}, 1, "line 2: no such file or folder: nowhere"),
        ({"task": "superres", "input": "in", "set": {"scale": 3}}, 2, "line 2: task superres: option 'scale'"),
        ({"task": "superres", "input": "in", "steps": 1001}, 1, "line 2: steps 1001: at most 1000"),
        ({"task": "superres", "input": "in", "tile": "tiny"}, 2, "line 2: tile 'tiny': auto, off, or a side"),
        ({"task": "edit", "input": "in"}, 2, "line 2: task edit needs a prompt for every image"),
        ({"task": "superres", "input": "in/b.png", "output": "out/a.png"}, 2, "would both be written to"),
        ({"task": "superres", "input": "in/b.png", "output": "in/a.png"}, 2, "would replace the input"),
    ],
    ids=str,
)
def test_nothing_is_run_if_one_line_is_refused(inputs: Path, codi: Codi, line: Any, code: int, message: str) -> None:
    written(inputs / "jobs.jsonl", {"task": "superres", "input": "in/a.png", "output": "out"}, line)
    answer = codi("run", "--jobs", "jobs.jsonl", "--steps", "1")
    assert (answer.code, answer.err.count("\n"), answer.out) == (code, 1, "")
    assert message in answer.err
    assert not (inputs / "out").exists()


def test_images_of_one_name_in_several_jobs_get_their_folders(inputs: Path, codi: Codi) -> None:
    for place in ("one/cats", "two/cats"):
        (inputs / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(inputs / place / "a.png")
    tasks: list[Any] = [{"task": "superres", "input": "in"}, {"task": "deblur", "input": ["one/cats", "two/cats"]}]
    tasks += [{"task": "deblur", "input": "in/b.png", "suffix": "_2"}, {"task": "superres", "input": "one/cats/a.png"}]
    written(inputs / "jobs.jsonl", *({"output": "out"} | job for job in tasks))
    answer = codi("run", "--jobs", "jobs.jsonl", "--dry-run", "--json")
    runs = {run["task"]: run["items"] for run in json.loads(answer.out)["runs"]}
    assert {task: [item["output"] for item in items] for task, items in runs.items()} == {
        "superres": ["out/in/a.png", "out/b.png", "out/hole.png", "out/cats/a.png"],
        "deblur": ["out/one/cats/a.png", "out/two/cats/a.png", "out/b_2.png"],
    }
    assert "such as in/a.png -> out/in/a.png" in answer.err


def test_two_jobs_of_one_image_with_one_output_are_refused(inputs: Path, codi: Codi) -> None:
    prompts = [{"task": "depth", "input": "in/a.png", "output": "out", "prompt": text} for text in ("night", "snow")]
    written(inputs / "jobs.jsonl", *prompts)
    answer = codi("run", "--jobs", "jobs.jsonl")
    message = "in/a.png would be written to out/a.png twice: give it once, or with another suffix or output folder"
    assert (answer.code, answer.err) == (2, f"Error: {message}\n")


@pytest.mark.parametrize("args", [[], ["superres"], ["superres", "in", "--jobs", "jobs.jsonl"]], ids=str)
def test_either_a_task_with_inputs_or_jobs(args: list[str], codi: Codi) -> None:
    answer = codi("run", *args)
    assert (answer.code, answer.err) == (2, "Error: say TASK and INPUT, or --jobs FILE; see `codi run --help`\n")


@pytest.mark.slow
def test_a_dry_run_reports_and_writes_nothing(inputs: Path, codi: Codi) -> None:
    (inputs / "in" / "c.png").write_bytes(b"not an image")
    assert codi("run", "superres", "in/a.png", "-o", "out", "--steps", "1").code == 0
    answer = codi("run", "superres", "in", "-o", "out", "--steps", "1", "--dry-run", "--json")
    statuses = {item["input"]: item["status"] for item in json.loads(answer.out)["items"]}
    assert statuses == {"in/a.png": "skipped", "in/b.png": "planned", "in/c.png": "planned", "in/hole.png": "planned"}
    assert [path.name for path in (inputs / "out").iterdir()] == ["a.png"]
    both = codi("run", "superres", "in", "--dry-run", "--report", "page.html")
    assert (both.code, "leave one of them out" in both.err, (inputs / "page.html").exists()) == (2, True, False)
    text = codi("run", "superres", "in", "-o", "out", "--steps", "1", "--dry-run").out.splitlines()
    assert text[0] == "skipped: in/a.png -> out/a.png"
    assert text[-1] == "3 to generate, 0 refused, 1 finished already (superres:1, 1 step)"
    from codi_hub.registry import Registry

    with Registry.open() as registry:
        assert len(registry.runs.list()) == 1


def test_finished_jobs_are_reported_if_a_later_one_cannot_start(
    inputs: Path, codi: Codi, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(
        inputs / "jobs.jsonl",
        {"task": "superres", "input": "in/a.png", "output": "out"},
        {"task": "inpaint", "input": "in/hole.png", "output": "out"},
    )
    load, loaded = ModelCache.load, []

    def once(*args: Any) -> Any:
        loaded.append(args)
        if len(loaded) > 1:
            raise CodiError("the adapter cannot be read: disk is full")
        return load(*args)

    monkeypatch.setattr(ModelCache, "load", once)
    answer = codi("run", "--jobs", "jobs.jsonl", "--json", "--steps", "1")
    assert (answer.code, json.loads(answer.out)["ok"]) == (1, 1)
    assert "Error: inpaint:1: the adapter cannot be read: disk is full\n" in answer.err


def test_names_that_differ_in_case_are_one_file_where_the_disk_has_one_case(
    inputs: Path, codi: Codi, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [{"task": "superres", "input": f"in/{name}.png", "output": f"out/{to}.png"} for name, to in ("aX", "bx")]
    written(inputs / "jobs.jsonl", *jobs)
    assert codi("run", "--jobs", "jobs.jsonl", "--dry-run").code == 0
    monkeypatch.setattr(sys.modules["codi_hub.folders.names"], "ONE_CASE", True)
    assert "would both be written to out/x.png" in codi("run", "--jobs", "jobs.jsonl", "--dry-run").err
