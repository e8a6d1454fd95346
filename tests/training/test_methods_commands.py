"""Every method from the command line, on a tiny base: trained, registered, shown, run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

SMALL = ["--train-steps", "3", "--count", "6", "--size", "32", "--batch", "2", "--workers", "1", "--precision", "fp32"]
SMALL += ["--device", "cpu", "--sample-every", "0", "--base", "tiny"]


@pytest.fixture
def tiny(codi: Callable[..., Any], base_folder: Path) -> Callable[..., Any]:
    """The command, in a home with a base called tiny."""
    assert codi("base", "add", "tiny", base_folder).code == 0
    return codi


TERMS = {
    "pe-codi": {"guidance": 1.0, "consistency": 1.0},
    "codi": {"guidance": 1.0, "consistency": 1.0},
    "conditional": {"diffusion": 1.0},
    "cm": {"consistency": 1.0},
    "gd": {"progressive": 1.0},
}


def distilled(codi: Callable[..., Any], method: str, *more: str) -> dict[str, Any]:
    answer = codi("distill", "depth", "--method", method, *SMALL, *more, "--json")
    assert answer.code == 0, answer.err
    made = json.loads(answer.out)
    shown = json.loads(codi("show", made["adapter"], "--base", "tiny", "--json").out)
    assert shown["method"] == method
    last = shown["config"]["lineage"][-1]
    assert (last["method"], last["kind"], last["steps"]) == (method, shown["kind"], made["steps"])
    assert shown["loss"] == TERMS[method]
    return made | {"shown": shown}


def test_a_teacher_its_students_and_codi_are_distilled_shown_and_run(tiny: Callable[..., Any], tmp_path: Path) -> None:
    teacher = distilled(tiny, "conditional")
    made = {"conditional": teacher, "codi": distilled(tiny, "codi")}
    made |= {method: distilled(tiny, method, "--from", teacher["adapter"]) for method in ("cm", "gd")}
    assert [m["adapter"] for m in made.values()] == ["depth:1", "depth:2", "depth:3", "depth:4"]
    assert [m["kind"] for m in made.values()] == ["control", "full", "control", "control"]
    shown = {method: m["shown"] for method, m in made.items()}
    assert [s["steps"] for s in shown.values()] == [50, 4, 4, 4]
    assert [s["parent"] for s in shown.values()] == [None, None, "depth:1", "depth:1"]
    assert "50" in shown["conditional"]["config"]["metrics"]["by_steps"]
    words = {"conditional": "not distilled", "codi": "Mei et al.", "cm": "Song et al.", "gd": "Salimans & Ho"}
    assert all(words[method] in s["card"] for method, s in shown.items())
    assert shown["codi"]["bytes"] > shown["cm"]["bytes"]
    tensors = {m: load_file(s["files"]["adapter.safetensors"]) for m, s in shown.items()}
    assert any(name.startswith("unet.") for name in tensors["codi"])
    assert any(not torch.equal(tensors["cm"][name], v) for name, v in tensors["conditional"].items())
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(tmp_path / "m.png")
    for method, m in made.items():
        command = ["run", m["adapter"], tmp_path / "m.png", "-o", tmp_path / f"{method}.png", "--base", "tiny"]
        for sampler in ("ddim", "dpmpp"):  # another sampler is another picture: nothing is skipped
            done = json.loads(tiny(*command, "--steps", "3", "--sampler", sampler, "--json").out)
            assert (done["ok"], done["skipped"]) == (1, 0)
        assert json.loads(tiny(*command, "--steps", "3", "--sampler", "dpmpp", "--json").out)["skipped"] == 1
    assert len({(tmp_path / f"{method}.png").read_bytes() for method in made}) == 4


def test_what_a_student_cannot_be_made_from_is_refused_in_one_line(tiny: Callable[..., Any]) -> None:
    plain = distilled(tiny, "pe-codi", "--fusion", "gate")
    everything = distilled(tiny, "conditional", "--kind", "full")
    refused = {
        ("--method", "cm", "--from", plain["adapter"]): "Error: --from depth:1 was made with --method pe-codi, and the "
        "teacher of cm must follow the whole ODE: train one with --method conditional\n",
        ("--from", everything["adapter"]): "Error: --method pe-codi keeps the base frozen, and --from depth:2 of kind "
        "full trains it: use --method codi\n",
        (
            "--method",
            "codi",
            "--from",
            plain["adapter"],
        ): "Error: --method codi trains everything, and --from depth:1 "
        "of kind static keeps the base frozen: use --method pe-codi\n",
        ("--method", "cm", "--kind", "control", "--from", everything["adapter"]): "Error: --kind control: --from "
        "depth:2 is of kind full, and stays so\n",
        ("--start", "0.5", "--from", plain["adapter"]): "Error: --start 0.5: --from depth:1 starts at 1, and goes on "
        "so\n",
        ("--rank", "4", "--from", plain["adapter"]): "Error: --rank 4: --from depth:1 is of rank None, and stays so\n",
        ("--no-gain", "--from", plain["adapter"]): "Error: --no-gain: --from depth:1 has a gain, and keeps it: distil "
        "it without --from\n",
        ("--kind", "pickle"): "Error: --kind pickle: one of control, lora, static, residual, full\n",
        (
            "--attend",
            "all",
            "--kind",
            "static",
        ): "Error: --attend all: not with --kind static, which has no attention of its own\n",
        ("--guidance", "relative"): "Error: --guidance relative: the condition of depth is no picture to be changed\n",
    }
    for options, line in refused.items():
        assert tiny("distill", "depth", *SMALL, *options) == (2, "", line)
    on = distilled(tiny, "pe-codi", "--from", plain["adapter"])  # the fusion is the parent's
    assert on["shown"]["config"]["config"]["fusion"] == "gate"
    assert [one["start"] for one in on["shown"]["config"]["lineage"]] == ["pretrained initialisation", "from depth:1"]


def test_an_interrupted_student_is_resumed_with_its_own_teacher_only(tiny: Callable[..., Any], tmp_path: Path) -> None:
    first, second = (distilled(tiny, "conditional", "--seed", seed)["adapter"] for seed in ("0", "1"))
    fixed = ["distill", "depth", "--method", "gd", *SMALL, "--run-dir", tmp_path / "run", "--json"]
    assert tiny(*fixed, "--from", first).code == 0
    line = "Error: --resume: the run was begun with from = 'depth:1', not 'depth:2'\n"
    assert tiny(*fixed, "--from", second, "--resume") == (2, "", line)
    again = tiny(*fixed, "--from", first, "--resume", "--train-steps", "4")
    assert json.loads(again.out)["steps"] == 4
