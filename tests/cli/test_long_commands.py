"""run, distill and eval: the arguments that the command line passes to the Hub, and how it prints the results.

The Hub here returns at once; the real one is tested end to end elsewhere.
"""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import pytest

from codi_hub import Catalog, DistillConfig, DistillResult, EvalOptions, EvalReport, RunOptions, RunReport
from codi_hub.config.first_edition import layer_of
from codi_hub.events import ItemDone, Message

ITEMS = [
    {"input": "in/a.png", "output": "out/a.png", "status": "ok", "seed": 7, "error": None, "seconds": 0.5},
    {"input": "in/b.png", "output": "out/b.png", "status": "failed", "seed": 8, "error": "truncated", "seconds": 0.0},
]


class Hub:
    """Keeps its arguments."""

    asked: tuple
    items: list
    latest: str

    def __init__(self):
        self.catalog = Catalog.open()

    @classmethod
    def open(cls, home=None, base=None):
        return cls()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.catalog.close()

    def run(self, task, inputs, options, on_event=None):
        Hub.asked = (task, inputs, options)
        for done, item in enumerate(Hub.items):
            on_event(ItemDone(item, done + 1, len(Hub.items)))
        count = {status: sum(item["status"] == status for item in Hub.items) for status in ("ok", "failed", "skipped")}
        return RunReport(task=task, adapter=f"{task}:1", steps=4, seconds=1.25, batches=[1], items=Hub.items, **count)

    def distill(self, task, config, on_event=None):
        Hub.asked = (task, config)
        on_event(Message("data: leaves"))
        return DistillResult(
            task=task, adapter=f"{task}:2", base="nano", kind="control", steps=100, seconds=60.0,
            metrics={"psnr": 24.5}, score=24.5, latest=Hub.latest, run_dir=Path("runs/1"),
        )  # fmt: skip

    def evaluate(self, task, options, on_event=None):
        Hub.asked = (task, options)
        rows = [{"name": "bicubic", "psnr": 23.0}, {"name": "4 steps", "psnr": 23.5}]
        return EvalReport(task=task, adapter="x:1", base="nano", images=4, columns=["psnr"], rows=rows, seconds=1.0)


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    Hub.items, Hub.latest = ITEMS[:1], "superres:2"
    module = types.ModuleType("codi_hub.hub")
    module.Hub = Hub
    monkeypatch.setitem(sys.modules, "codi_hub.hub", module)
    return Hub


def test_run_passes_inputs_and_options(codi, hub):
    answer = codi("run", "superres", "in", "b.png", "-o", "out", "--steps", "2", "--no-resume", "--set", "scale=2")
    expected = RunOptions(out=Path("out"), steps=2, resume=False, set={"scale": 2})
    assert hub.asked == ("superres", [Path("in"), Path("b.png")], expected)
    assert answer.code == 0
    assert answer.out == "1 ok, 0 failed, 0 skipped in 1.2 s (superres:1, 4 steps) -> out\n"


@pytest.mark.parametrize("flag", ["scale=2", "estimate=org/model", "mask=m.png"])
def test_task_options_with_a_flag_of_their_own(codi, hub, flag):
    name, _, value = flag.partition("=")
    assert codi("run", "superres", "in", f"--{name}", value).code == 0
    by_flag = hub.asked[2]
    assert codi("run", "superres", "in", "--set", flag).code == 0
    assert by_flag == hub.asked[2] == RunOptions(set={name: 2 if name == "scale" else value})


def test_run_as_json_is_the_documented_report_and_nothing_else(codi):
    document = json.loads(codi("run", "superres", "in", "--json").out)
    assert list(document) == [
        "task",
        "adapter",
        "steps",
        "strength",
        "ok",
        "failed",
        "skipped",
        "seconds",
        "also",
        "batches",
        "items",
        "left_out",
    ]
    assert document["items"] == ITEMS[:1]
    assert list(document["items"][0]) == ["input", "output", "status", "seed", "error", "seconds"]


def test_one_failed_image_is_exit_code_1_and_a_line(codi, hub):
    hub.items = ITEMS
    answer = codi("run", "superres", "in", "-q")
    assert (answer.code, answer.out, answer.err) == (1, "", "failed: in/b.png: truncated\n")
    assert json.loads(codi("run", "superres", "in", "--json").out)["failed"] == 1


def test_distill_without_options_takes_what_the_task_prefers(codi, hub):
    assert codi("distill", "superres").code == 0
    with Catalog.open() as catalog:
        preferred = catalog.load_task("superres").distill
    assert hub.asked == ("superres", DistillConfig(**layer_of(preferred)))


def test_flags_come_before_overrides_files_presets_and_what_the_task_prefers(codi, hub, monkeypatch, tmp_path):
    from codi_hub.tasks.superres import SuperRes

    preferred = {"batch": 8, "lr": 1e-4, "count": 1, "size": 8, "ema": 0.5, "workers": 1}
    monkeypatch.setattr(SuperRes, "distill", preferred)
    file = tmp_path / "c.yaml"
    file.write_text("training: {time_budget: 1m, lr: 3.0e-4, batch: 2, ema: 0.7}\ntask: {scale: 4, strength: 0.5}\n")
    arguments = ["--preset", "quick", "--config", file, "-O", "training.lr=4e-4", "-O", "training.batch=3"]
    assert codi("distill", "superres", *arguments, "--batch", "16", "--set", "scale=2").code == 0
    _, config = hub.asked
    assert config == DistillConfig(
        data={"count": 800, "size": 8, "workers": 1},  # the preset's over the task's; the task's
        loss={"grid": 4},  # the preset's
        training={"batch": 16, "lr": 4e-4, "ema": 0.7, "time_budget": 60, "sample_every": 100},
        task={"scale": 2, "strength": 0.5},
    )


def test_what_the_task_prefers_gives_way_to_a_method_that_lacks_it(codi, hub, monkeypatch):
    from codi_hub.tasks.superres import SuperRes

    monkeypatch.setattr(SuperRes, "distill", {"kind": "control", "guidance": "relative"})
    assert codi("distill", "superres").code == 0
    assert (hub.asked[1].adapter.kind, hub.asked[1].loss.guidance) == ("control", "relative")
    assert codi("distill", "superres", "--method", "codi").code == 0
    assert (hub.asked[1].adapter.kind, hub.asked[1].loss.guidance) == ("", "relative")
    assert codi("distill", "superres", "--method", "conditional").code == 0
    assert (hub.asked[1].adapter.kind, hub.asked[1].loss.guidance) == ("", None)
    assert codi("distill", "superres", "--from", "superres:1").code == 0
    assert (hub.asked[1].adapter.kind, hub.asked[1].loss.guidance) == ("", "relative")


def test_distill_prints_what_latest_names(codi, hub):
    answer = codi("distill", "superres")
    assert answer.out == "Registered superres:2 for base nano after 100 steps: psnr 24.5\n"
    assert answer.err == "data: leaves\n"
    hub.latest = "superres:1"
    use = "which stays the latest; use it as superres:2, or `codi tag superres:2 latest`."
    assert f"It scores worse than superres:1, {use}" in codi("distill", "superres").out
    document = json.loads(codi("distill", "superres", "--json").out)
    assert (document["adapter"], document["moved_latest"], document["run_dir"]) == ("superres:2", False, "runs/1")


def test_eval_prints_its_table(codi, hub):
    answer = codi("eval", "superres", "--steps", "1,4")
    assert hub.asked == ("superres", EvalOptions(steps=(1, 4)))
    assert [line.split() for line in answer.out.splitlines()[2:]] == [["bicubic", "23.00"], ["4", "steps", "23.50"]]
    document = json.loads(codi("eval", "superres", "--json").out)
    assert (document["columns"], document["rows"][1]) == (["psnr"], {"name": "4 steps", "psnr": 23.5})


def test_an_image_and_jobs_on_standard_input(codi, hub, monkeypatch):
    stored = {}

    def run(self, task, inputs, options, on_event=None):
        stored["image"] = inputs[0].read_bytes()
        return RunReport(task=task, adapter="t:1", steps=1, ok=1, failed=0, skipped=0, seconds=0, items=[])

    monkeypatch.setattr(Hub, "run", run)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG")))
    assert codi("run", "superres", "-", "-o", "o.png").code == 0
    assert stored == {"image": b"\x89PNG"}


@pytest.mark.parametrize(
    ("args", "data", "message"),
    [
        (("superres", "-"), b"x", "give it alone, and the output as --out FILE.png"),
        (("superres", "-", "a.png", "-o", "o"), b"x", "give it alone"),
        (("superres", "-", "-o", "o.png"), b"", "standard input is empty"),
        (("--jobs", "-"), b"", "standard input is empty"),
    ],
)
def test_standard_input_that_cannot_be_used(codi, hub, monkeypatch, args, data, message):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    result = codi("run", *args)
    assert result.code in (1, 2)
    assert message in result.err
