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


def distilled(codi: Callable[..., Any], method: str, *more: str) -> dict[str, Any]:
    """Distil an adapter for depth; return the result with what `codi show` says of it as `shown`."""
    answer = codi("distill", "depth", "--method", method, *SMALL, *more, "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    shown = json.loads(codi("show", result["adapter"], "--base", "tiny", "--json").out)
    assert shown["method"] == method
    assert shown["config"]["lineage"][-1]["method"] == method
    assert shown["config"]["lineage"][-1]["kind"] == shown["kind"]
    return result | {"shown": shown}


@pytest.mark.slow
def test_a_teacher_its_students_and_codi_are_distilled_shown_and_run(tiny: Callable[..., Any], tmp_path: Path) -> None:
    teacher = distilled(tiny, "conditional")
    results = {"conditional": teacher, "codi": distilled(tiny, "codi")}
    results |= {method: distilled(tiny, method, "--from", teacher["adapter"]) for method in ("cm", "gd")}
    assert [m["adapter"] for m in results.values()] == ["depth:1", "depth:2", "depth:3", "depth:4"]
    assert [m["kind"] for m in results.values()] == ["control", "full", "control", "control"]
    shown = {method: m["shown"] for method, m in results.items()}
    assert [s["steps"] for s in shown.values()] == [50, 4, 4, 4]
    assert [s["parent"] for s in shown.values()] == [None, None, "depth:1", "depth:1"]
    assert [s["config"]["loss"] for s in shown.values()] == [
        {"diffusion": 1.0},
        {"guidance": 1.0, "consistency": 1.0},
        {"consistency": 1.0},
        {"progressive": 1.0},
    ]
    assert [one["method"] for one in shown["cm"]["config"]["lineage"]] == ["conditional", "cm"]
    assert "50" in shown["conditional"]["config"]["metrics"]["by_steps"]
    words = {"conditional": "not distilled", "codi": "Mei et al.", "cm": "Song et al.", "gd": "Salimans & Ho"}
    assert all(words[method] in " ".join(s["card"].split()) for method, s in shown.items())
    assert shown["codi"]["bytes"] > shown["cm"]["bytes"]
    tensors = {m: load_file(s["files"]["adapter.safetensors"]) for m, s in shown.items()}
    assert any(name.startswith("unet.") for name in tensors["codi"])
    assert any(not torch.equal(tensors["cm"][name], v) for name, v in tensors["conditional"].items())
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(tmp_path / "m.png")
    for method, m in results.items():
        command = ["run", m["adapter"], tmp_path / "m.png", "-o", tmp_path / f"{method}.png", "--base", "tiny"]
        for sampler in ("ddim", "dpmpp"):  # another sampler gives another image: nothing is skipped
            report = json.loads(tiny(*command, "--steps", "3", "--sampler", sampler, "--json").out)
            assert (report["ok"], report["skipped"]) == (1, 0)
        assert json.loads(tiny(*command, "--steps", "3", "--sampler", "dpmpp", "--json").out)["skipped"] == 1
    assert len({(tmp_path / f"{method}.png").read_bytes() for method in results}) == 4
    guided_runs(tiny, tmp_path, {method: m["adapter"] for method, m in results.items()})


def guided_runs(tiny: Callable[..., Any], tmp_path: Path, adapters: dict[str, str]) -> None:
    """The adapter that was not distilled takes guidance, in runs, jobs and evaluations; the others refuse it."""
    image = ["--base", "tiny", "--steps", "3", "--prompt", "a red ball"]
    guided = [*image, "--guidance-scale", "4"]
    outputs = []
    for k, options in enumerate([image, guided, [*guided, "--negative-prompt", "gray"]]):
        command = ["run", adapters["conditional"], tmp_path / "m.png", "-o", tmp_path / f"{k}.png", *options, "--json"]
        assert json.loads(tiny(*command).out)["ok"] == 1
        assert json.loads(tiny(*command).out)["skipped"] == 1  # nothing changed
        outputs.append((tmp_path / f"{k}.png").read_bytes())
    assert len(set(outputs)) == 3
    job = {"task": adapters["conditional"], "input": str(tmp_path / "m.png"), "output": str(tmp_path / "job.png")}
    job |= {"guidance_scale": 4, "negative_prompt": "gray", "prompt": "a red ball", "steps": 3}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    assert tiny("run", "--jobs", tmp_path / "jobs.jsonl", "--base", "tiny").code == 0
    assert (tmp_path / "job.png").read_bytes() == outputs[2]
    for options, message in [
        (guided, "--guidance-scale 4: depth:3 was trained with method cm, without guidance: leave it at 1"),
        ([*image, "--negative-prompt", "gray"], "--negative-prompt: it needs guidance: set --guidance-scale above 1"),
    ]:
        answer = tiny("run", adapters["cm"], tmp_path / "m.png", "-o", tmp_path / "no.png", *options)
        assert (answer.code, message in answer.err) == (2, True), answer.err
    measured = ["--against", f"base,{adapters['cm']}", "--count", "1", "--steps", "2", "--base", "tiny", "--json"]
    table = [
        json.loads(tiny("eval", adapters["conditional"], *measured, *more).out)["rows"]
        for more in ([], ["--guidance-scale", "4"])
    ]
    changed = {a["method"] for a, b in zip(*table, strict=True) if a["adherence"] != b["adherence"]}
    assert changed >= {adapters["conditional"]}
    assert adapters["cm"] not in changed


@pytest.mark.slow
def test_without_consistency_and_noise_the_method_is_regression(tiny: Callable[..., Any]) -> None:
    arguments = ["--kind", "side", "--start", "0.3", "-O", "loss.consistency=0", "-O", "adapter.blocks=2"]
    answer = tiny("distill", "superres", *SMALL, *arguments, "--json")
    assert answer.code == 0, answer.err
    shown = json.loads(tiny("show", "superres:1", "--base", "tiny", "--json").out)
    assert (shown["kind"], shown["method"]) == ("residual", "regression")
    assert shown["config"]["loss"] == {"guidance": 1.0}
    assert shown["config"]["training"]["rollout"] == 1.0  # its sampling begins with an image without noise


@pytest.mark.slow
def test_an_adapter_that_shares_the_base_s_weights_is_trained_further(tiny: Callable[..., Any]) -> None:
    first = distilled(tiny, "pe-codi", "--kind", "lora")
    second = distilled(tiny, "pe-codi", "--from", first["adapter"])
    shown = json.loads(tiny("show", second["adapter"], "--base", "tiny", "--json").out)
    assert (shown["kind"], shown["parent"]) == ("lora", first["adapter"])


@pytest.mark.slow
def test_what_a_student_cannot_be_made_from_is_refused_in_one_line(tiny: Callable[..., Any]) -> None:
    parent = distilled(tiny, "pe-codi", "-O", "adapter.fusion=gate")
    everything = distilled(tiny, "conditional", "--kind", "full")
    refused = {
        ("--method", "cm", "--from", parent["adapter"]): "--from depth:1: it was trained with method pe-codi, and the "
        "teacher of cm must follow the whole ODE; train one with method conditional",
        ("--from", everything["adapter"]): "--method pe-codi: it keeps the base frozen, and kind full of depth:2 "
        "trains it; use method codi",
        ("--method", "codi", "--from", parent["adapter"]): "--method codi: it trains everything, and kind static of "
        "depth:1 keeps the base frozen; use method pe-codi",
        ("--method", "cm", "--kind", "control", "--from", everything["adapter"]): "--kind control: the parent depth:2 "
        "is of kind full, and stays so",
        ("--start", "0.5", "--from", parent["adapter"]): "--start 0.5: the parent depth:1 has 1.0, and keeps it; train "
        "without --from",
        ("-O", "adapter.gain=false", "--from", parent["adapter"]): "adapter.gain false: the parent depth:1 has true, "
        "and keeps it; train without --from",
        ("-O", "adapter.rank=4", "--from", parent["adapter"]): "adapter.rank: not a field of kind static; one of "
        "condition_channels, start, start_noise, fusion, init, attend, top_down, gain",
        ("--precision", "fp16"): "--precision fp16: a CPU trains in bf16 or fp32; choose one of them",
        ("--kind", "pickle"): "--kind pickle: one of control, lora, concat, static, residual, full",
        ("-O", "adapter.start_noise=0.5"): "adapter.start_noise 0.5: sampling starts from noise alone; set --start "
        "below 1",
        ("--guidance", "relative"): "--guidance relative: the condition of depth is not an image of three channels",
    }
    for arguments, line in refused.items():
        assert tiny("distill", "depth", *SMALL, *arguments) == (2, "", f"Error: {line}\n")
    continued = distilled(tiny, "pe-codi", "--from", parent["adapter"])  # the fusion is the parent's
    assert continued["shown"]["config"]["config"]["fusion"] == "gate"
    assert continued["shown"]["config"]["lineage"][-1]["start"] == "from depth:1"


@pytest.mark.slow
def test_an_interrupted_student_is_resumed_with_its_own_teacher_only(tiny: Callable[..., Any], tmp_path: Path) -> None:
    first, second = (distilled(tiny, "conditional", "--seed", seed)["adapter"] for seed in ("0", "1"))
    run = tmp_path / "run"
    fixed = ["distill", "depth", "--method", "gd", *SMALL, "--run-dir", run, "--json"]
    assert tiny(*fixed, "--from", first).code == 0
    line = f"--from depth:2: the run in {run} was started with depth:1"
    refused = tiny(*fixed, "--from", second, "--resume")
    assert (refused.code, refused.err) == (2, f"Error: {line}\n")
    assert json.loads(refused.out)["error"]["message"] == line
    again = tiny("distill", "depth", "--run-dir", run, "--resume", "--train-steps", "4", "--json")
    assert json.loads(again.out)["steps"] == 4
