"""`codi distill` in two processes over gloo: the same as one with twice the batch, written once, ended together."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codi_hub.losses import codi as codi_losses

SUPPORT = Path(__file__).parents[1] / "support"
SMALL = ["superres", "--count", "10", "--size", "32", "--workers", "1", "--precision", "fp32", "--device", "cpu"]
SMALL += ["--sample-every", "2", "--base", "tiny", "--lr", "1e-3"]
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
SECONDS = 300


@pytest.fixture
def tiny(codi: Callable[..., Any], base_folder: Path) -> Callable[..., Any]:
    """The command, in a home with a base called tiny."""
    assert codi("base", "add", "tiny", base_folder).code == 0
    return codi


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    return (
        os.environ
        | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(sys.path)}
        | more
    )


def started(folder: Path, commands: list[list[str]], **more: str) -> list[subprocess.Popen[str]]:
    """Two processes as a launcher starts them, without one."""
    (folder / "commands.json").write_text(json.dumps(commands))
    fixed = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} | more
    return [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "launched.py"), str(folder)],
            env=environment(RANK=rank, LOCAL_RANK=rank, **fixed),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]


def losses(run: Path) -> dict[str, list[float]]:
    """Return the logged losses by the names of the terms."""
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [event.value for event in board.Scalars(name)] for name in board.Tags()["scalars"]}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter.safetensors")


def same(a: Path, b: Path) -> None:
    """Asserts that two runs logged the same losses and made the same weights, but for rounding."""
    assert losses(a).keys() == losses(b).keys() == {"loss/guidance", "loss/consistency"}
    for name, values in losses(a).items():
        assert values == pytest.approx(losses(b)[name], rel=1e-4)
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5) for name in one)


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str, *more: str) -> list[str]:
        return ["distill", *SMALL, "--run-dir", str(tmp_path / name), "--train-steps", "3", *more]

    full = ["--method", "codi", "-O", "loss.shared_t=false"]
    commands = [
        command("two", "--batch", "2", "--accumulate", "2", "--json"),
        command("two-full", *full, "--batch", "2"),
        command("two", "--batch", "2", "--accumulate", "2", "--resume", "--train-steps", "4"),
        command("two-timed", "--batch", "2", "--train-steps", "1000", "--time-budget", "0.5s"),
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    launch = [sys.executable, *LAUNCH, free_port(), str(SUPPORT / "launched.py"), str(tmp_path)]
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    notes = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert [note["codes"] for note in notes] == [[0] * 4] * 2
    assert all(set(note["pairs"]) < set(range(9)) for note in notes)  # each creates those of its own steps
    assert done.stdout.count('"adapter": "superres:1"') == done.stdout.count("Registered superres:2 ") == 1
    assert "batch 8 on 2 x cpu" in done.stderr
    assert len(json.loads(tiny("list", "superres", "--base", "tiny", "--json").out)) == 4
    assert sorted(path.name for path in (tmp_path / "two" / "samples").iterdir()) == ["000002.png", "000004.png"]

    drawn: list[Any] = []
    plain = codi_losses.codi_loss

    def recorded(student: Any, target: Any, x: Any, eps: Any, times: Any, *rest: Any, **named: Any) -> Any:
        drawn.append((x, eps, times[0]))
        return plain(student, target, x, eps, times, *rest, **named)

    monkeypatch.setattr(codi_losses, "codi_loss", recorded)
    assert tiny(*command("one", "--batch", "8")).code == 0
    assert tiny(*command("one-full", *full, "--batch", "4")).code == 0
    on = ["--accumulate", "2", "--resume", "--train-steps"]
    assert tiny(*command("one", "--batch", "4", *on, "4")).code == 0
    first, second = (note["drawn"] for note in notes)
    for step in range(3):
        shares = [ranks[2 * step + micro] for micro in (0, 1) for ranks in (first, second)]
        assert all(torch.equal(torch.cat(parts), one) for *parts, one in zip(*shares, drawn[step], strict=True))
        assert len({float(t) for _, _, ts in shares for t in ts}) == 1  # one for the whole step
        shares = [ranks[6 + step] for ranks in (first, second)]
        assert all(torch.equal(torch.cat(parts), one) for *parts, one in zip(*shares, drawn[3 + step], strict=True))
    assert len(first) == len(second)  # steps of the timed run too
    same(tmp_path / "two", tmp_path / "one")
    same(tmp_path / "two-full", tmp_path / "one-full")
    refused = tiny(*command("two", "--batch", "2", *on, "5"))
    line = f"--batch: the run in {tmp_path / 'two'} has 8 pairs per step (batch x accumulate x processes), not 4"
    assert refused == (2, "", f"Error: {line}\n")
    for name in ("one", "two"):  # what two have started, one continues
        assert tiny(*command(name, "--batch", "4", *on, "5")).code == 0
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_one_that_fails_ends_both_with_one_line(tiny: Callable[..., Any], tmp_path: Path) -> None:
    command = ["distill", *SMALL, "--run-dir", str(tmp_path / "run"), "--batch", "2", "--train-steps", "50"]
    two = started(tmp_path, [command], FAIL="1:2")
    said = [process.communicate(timeout=SECONDS)[1] for process in two]
    assert [process.returncode for process in two] == [1, 1], said
    errors = [line for text in said for line in text.splitlines() if "Error" in line]
    run = tmp_path / "run"
    assert errors == [f"Error: No space left on device, while the run in {run} was written: make room, and resume it"]
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()  # of the two steps that were whole
    assert not json.loads(tiny("list", "superres", "--base", "tiny", "--json").out)
