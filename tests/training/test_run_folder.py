"""A run's folder: its `config.yaml` starts the same run again, and decides what a resumed run may change."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from codi_hub import DistillConfig
from codi_hub.config.distill import TrainingConfig
from codi_hub.config.layers import read_config
from codi_hub.config.model import declared
from codi_hub.training.folder import run_folder

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
        "adversarial": 0.0,
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


@pytest.mark.slow
def test_a_resumed_run_that_has_finished_is_not_registered_again(tiny: Callable[..., Any], run: Path) -> None:
    line = f"The run in {run} has finished: it is superres:1, after 2 steps; "
    answer = tiny("distill", "superres", "--run-dir", run, "--resume")
    assert answer.code == 0
    assert answer.out == line + "--train-steps or --time-budget with more continues it\n"
    assert len(json.loads(tiny("list", "superres", "--base", "tiny", "--json").out)) == 1


@pytest.mark.slow
def test_the_data_folder_is_compared_as_an_absolute_path(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos", "others"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.effect_noise((24, 24), 50).convert("RGB").save(tmp_path / name / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    command = ["distill", "superres", *SMALL, "--run-dir", tmp_path / "run"]
    assert tiny(*command, "--data", "photos").code == 0
    record = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert record["lineage"][-1]["data"].endswith("px from photos")
    monkeypatch.chdir(tmp_path / "others")
    more = [*command, "--resume", "--train-steps", "3"]
    assert tiny(*more, "--data", tmp_path / "photos" / "..").code == 2
    assert tiny(*more, "--data", "../photos").code == 0
    assert tiny(*command, "--resume", "--train-steps", "4").code == 0


def test_the_run_that_was_begun_last_is_resumed_whatever_the_clock_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    for year in (2031, 2030, 2029):
        monkeypatch.setattr(time, "gmtime", lambda year=year: time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0)))
        begun.append(run_folder(home, "depth", TrainingConfig()))
        begun[-1].mkdir(parents=True)
        (begun[-1] / "config.yaml").touch()
    for other in ("depth-2-20500101-000000-0009-abcdef", "depth-20500101-000000-abcdef"):  # another task; no number
        (home / "distill" / other).mkdir()
        (home / "distill" / other / "config.yaml").touch()
    assert run_folder(home, "depth", TrainingConfig(resume=True)) == begun[-1]
    assert begun[-1].name.startswith("depth-20290101-000000-0003-")


def test_a_run_folder_that_cannot_be_written_is_refused_before_the_base_is_loaded(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codi_hub.training.run.load", None)
    (tmp_path / "file").touch()
    answer = tiny("distill", "superres", *SMALL, "--run-dir", tmp_path / "file" / "run")
    line = f"Error: --run-dir {tmp_path}/file/run: not a folder that can be written (Not a directory)\n"
    assert answer == (2, "", line)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O (os error 28)")])
def test_a_full_disk_is_named_with_what_to_do(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    run = tmp_path / "run"
    answer = tiny("distill", "superres", *SMALL, "--run-dir", run)
    line = f"Error: No space left on device, while the run in {run} was written: make room, and resume it\n"
    assert answer.code == 1
    assert answer.err.endswith(line)
    assert not list(run.glob(".codi-*"))


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
    assert tiny(*resume[:-1], "-O", "adapter.rank=2") == (2, "", line)
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
