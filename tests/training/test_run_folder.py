"""A run's folder: its `config.yaml` starts the same run again, and decides what a resumed run may change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codi_hub import DistillConfig
from codi_hub.config.layers import read_config
from codi_hub.config.model import declared

SMALL = ["--train-steps", "2", "--count", "6", "--size", "16", "--batch", "2", "--workers", "1", "--precision", "fp32"]
SMALL += ["--device", "cpu", "--sample-every", "0", "--base", "tiny"]
FIRST_EDITION = Path(__file__).parents[1] / "compatibility" / "first_edition"


@pytest.fixture
def tiny(codi: Callable[..., Any], base_folder: Path) -> Callable[..., Any]:
    """The command, in a home with a base called tiny."""
    assert codi("base", "add", "tiny", base_folder).code == 0
    return codi


@pytest.fixture
def run(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """The folder of a finished run of superres."""
    overrides = ["-O", "loss.grid=4", "-O", "adapter.fusion=gate", "--set", "scale=2"]
    answer = tiny("distill", "superres", *SMALL, *overrides, "--kind", "control", "--run-dir", tmp_path / "run")
    assert answer.code == 0, answer.err
    return tmp_path / "run"


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the adapter that a run ended with."""
    return load_file(run / "adapter" / "adapter.safetensors")


@pytest.mark.slow
def test_its_config_has_every_field_and_starts_the_same_run(tiny: Callable[..., Any], run: Path) -> None:
    text = (run / "config.yaml").read_text()
    layer = read_config(run / "config.yaml")
    missing = {one.path for one in declared(DistillConfig)} - {
        path for name, value in layer.items() for path in (name, *(f"{name}.{inner}" for inner in value or {}))
    }
    assert missing == {"training.run_dir", "training.resume", "run"}
    assert layer["loss"] == {
        "method": "pe-codi",
        "grid": 4,
        "dt": 1,
        "shared_t": True,
        "ode": "own",
        "guidance": "latent",
        "guidance_cap": 5.0,
        "lpips": None,
        "consistency": 1.0,
        "consistency_cap": True,
        "teacher_guidance": None,
        "rollout": 0.0,
    }
    assert (layer["adapter"]["fusion"], layer["adapter"]["start"], layer["base"]) == ("gate", 1.0, "tiny")
    assert layer["data"]["source"] == "leaves"
    assert "# Points of the time grid that training draws from\n  grid: 4\n" in text
    again = run.parent / "again"
    assert tiny("distill", "superres", "--config", run / "config.yaml", "--run-dir", again).code == 0
    assert (again / "config.yaml").read_text() == text
    one, other = weights(run), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((again / "adapter" / "adapter.json").read_text())["config"]["fusion"] == "gate"


@pytest.mark.slow
def test_a_resumed_run_changes_only_what_does_not_change_the_adapter(tiny: Callable[..., Any], run: Path) -> None:
    resume = ["distill", "superres", "--run-dir", run, "--resume"]
    refused = {
        ("--lr", "0.5"): "--lr 0.5: the run in {run} was started with 0.0006",
        ("-O", "loss.grid=8"): "loss.grid 8: the run in {run} was started with 4",
        ("-O", "adapter.fusion=zero_conv"): "adapter.fusion zero_conv: the run in {run} was started with gate",
        ("--count", "7"): "--count 7: the run in {run} was started with 6",
        ("--kind", "static"): "--kind static: the run in {run} was started with control",
        ("--start", "0.5"): "--start 0.5: the run in {run} was started with 1.0",
        ("--batch", "4"): "--batch: the run in {run} has 2 pairs per step (batch x accumulate x processes), not 4",
        ("--set", "scale=4"): "task options {{'scale': 4}}: the run in {run} was started with {{'scale': 2}}",
    }
    for arguments, line in refused.items():
        assert tiny(*resume, *arguments) == (2, "", f"Error: {line.format(run=run)}\n")
    assert tiny(*resume, "--base", "other").code == 1
    line = f"Error: --resume: the run in {run} is of task superres, not depth\n"
    assert tiny("distill", "depth", "--run-dir", run, "--resume") == (2, "", line)
    assert tiny("distill", "superres", "--run-dir", run) == (
        2,
        "",
        f"Error: --run-dir {run}: a run was started there; add --resume to continue it\n",
    )
    free = ["--batch", "1", "--accumulate", "2", "--workers", "2", "--time-budget", "1h", "--checkpoint-every", "7"]
    answer = tiny(*resume, *free, "--train-steps", "3", "--cache-dir", run.parent / "pairs", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["steps"] == 3
    assert read_config(run / "config.yaml")["training"]["checkpoint_every"] == 7


def test_there_is_nothing_to_resume(tiny: Callable[..., Any], home: Path, tmp_path: Path) -> None:
    line = f"Error: --resume: no distillation of 'depth' was started in {home}\n"
    assert tiny("distill", "depth", "--resume") == (2, "", line)
    line = f"Error: --resume: {tmp_path} holds no run to continue\n"
    assert tiny("distill", "depth", "--resume", "--run-dir", tmp_path) == (2, "", line)


@pytest.mark.slow
def test_a_run_of_the_first_edition_is_resumed_and_gets_a_config(tiny: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(next((FIRST_EDITION / "home" / "distill").iterdir()), run)
    assert tiny("base", "add", "first", FIRST_EDITION / "base").code == 0
    assert tiny("task", "add", "x2", "--like", "superres", "--set", "scale=2", "--set", "strength=1.0").code == 0
    record = json.loads((run / "run.json").read_text()) | {"base": "first"}
    (run / "run.json").write_text(json.dumps(record))
    resume = ["distill", "x2", "--run-dir", run, "--resume", "--base", "first", "--precision", "fp32", "--json"]
    line = f"Error: adapter.rank 2: the run in {run} was started with 1\n"
    assert tiny(*resume, "-O", "adapter.rank=2") == (2, "", line)
    answer = tiny(*resume, "--train-steps", "4", "--sample-every", "0", "--workers", "1", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["steps"] == 4
    assert read_config(run / "config.yaml")["adapter"]["rank"] == 1


@pytest.mark.parametrize(("text", "line"), [("foo: 1", "foo: no such field"), ("data:\n  count: x", "data.count x: ")])
def test_a_damaged_config_of_a_resumed_run_is_named(
    tiny: Callable[..., Any], tmp_path: Path, text: str, line: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    answer = tiny("distill", "superres", "--run-dir", tmp_path, "--resume")
    assert answer.code == 2
    assert answer.err.startswith(f"Error: {config}: {line}")
