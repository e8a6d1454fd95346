"""Trainings in pieces: a stop is a checkpoint, and the state that travels is whole, small and checked."""

import os
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from codi_hub.config.distill import DistillConfig
from codi_hub.config.layers import merge, parse_override, read_preset
from recipes.nano import __main__ as nano
from recipes.nano import pieces, stage
from recipes.nano.__main__ import CONTINUE, Data, Round
from recipes.nano.images import CHUNK


@pytest.fixture(autouse=True)
def going(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "STOP", threading.Event())


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_state_is_the_trainings_in_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 1000)
    workspace, state, other = (tmp_path / name for name in ("workspace", "state", "other"))
    for name, size in (("unet/checkpoint.pt", 7000), ("home/registry.db", 10), ("images/leaves.npy", 50)):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_bytes(os.urandom(size))
    written = pieces.save_state(workspace, state)
    assert len(written) > 8
    assert all(path.stat().st_size <= 1000 for path in written if path.name != pieces.INDEX)
    assert pieces.restore_state(state, other)
    assert files(other) == {name: one for name, one in files(workspace).items() if not name.startswith("images/")}
    (workspace / "unet/checkpoint.pt").write_bytes(b"less")  # fewer parts than before: none of those is left over
    pieces.save_state(workspace, state)
    assert not pieces.restore_state(state, other)  # which has trainings of its own
    assert pieces.restore_state(state, tmp_path / "third")
    assert files(tmp_path / "third")["unet/checkpoint.pt"] == b"less"


def test_checkpoints_of_complete_trainings_do_not_travel(tmp_path: Path) -> None:
    complete = ["unet/checkpoint.pt", "runs/superres/checkpoint.safetensors", "pretraining-depth/1/checkpoint.pt"]
    going_on = [
        "feature-training/checkpoint.pt",
        "runs/inpaint/checkpoint.safetensors",
        "pretraining-edit/1/checkpoint.pt",
    ]
    others = ["stages/base", "runs/superres/done", "runs/pretraining-depth/done", "unet/log.jsonl"]
    for name in complete + going_on + others:
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(name)
    pieces.save_state(tmp_path / "one", tmp_path / "state", nano.finished_checkpoints(tmp_path / "one"))
    pieces.restore_state(tmp_path / "state", tmp_path / "two")
    assert set(files(tmp_path / "two")) == {*going_on, *others}


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "a").write_bytes(b"weights")
    pieces.save_state(tmp_path / "workspace", tmp_path / "state")
    part = tmp_path / "state" / "state.0000"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=r"state\.0000: absent or damaged"):
        pieces.restore_state(tmp_path / "state", tmp_path / "other")
    assert not pieces.restore_state(tmp_path / "no state", tmp_path / "other")


def test_a_training_stops_with_a_checkpoint_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(stage.time, "monotonic", lambda: float(next(clock)))
    seen: list[int] = []

    def loss_of(network: nn.Linear, number: int) -> dict[str, torch.Tensor]:
        seen.append(number)
        if number == 3:
            pieces.STOP.set()
        return {"distance": network.weight.square().mean()}

    with pytest.raises(pieces.PieceEnd):
        stage.train(tmp_path, nn.Linear(2, 2), loss_of, minutes=1, lr=0.1)
    assert max(seen) < 10
    pieces.STOP.clear()
    stopped = max(seen)
    stage.train(tmp_path, nn.Linear(2, 2), loss_of, minutes=1, lr=0.1)
    assert seen[seen.index(stopped) + 1] == stopped + 1


def test_a_command_is_interrupted_when_the_time_is_over(tmp_path: Path) -> None:
    assert pieces.output_of([sys.executable, "-c", "print(1)"], os.environ) == "1\n"
    ready = tmp_path / "ready"
    script = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"

    def stop() -> None:
        while not ready.exists():
            threading.Event().wait(0.02)
        pieces.STOP.set()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(pieces.PieceEnd):
        pieces.output_of([sys.executable, "-c", script], os.environ)
    with pytest.raises(pieces.PieceEnd):  # none is started any more
        pieces.output_of([sys.executable, "-c", "print(1)"], os.environ)


def test_the_same_command_continues_where_a_piece_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine: the second workspace is empty but for what the state brings."""
    ran: list[str] = []

    def autoencoder(workspace: Path, *_: object) -> None:
        ran.append("autoencoder")
        (workspace / "base").mkdir(parents=True)

    def base(workspace: Path, images: object, minutes: float, *_: object) -> None:
        ran.append(f"base {minutes:g}")
        if ran.count(ran[-1]) == 1:
            pieces.STOP.set()
            raise pieces.PieceEnd

    monkeypatch.setattr(nano, "Data", lambda workspace, photos, scale: NoImages(workspace, photos, scale))
    monkeypatch.setattr(nano.autoencoder, "run", autoencoder)
    monkeypatch.setattr(nano.base, "run", base)
    monkeypatch.setattr(pieces, "stop_after", lambda seconds: ran.append(f"{seconds:g} s"))

    def call(workspace: str) -> int:
        arguments = [
            "autoencoder",
            "base",
            "--workspace",
            str(tmp_path / workspace),
            "--state",
            str(tmp_path / "state"),
        ]
        monkeypatch.setattr(sys, "argv", ["nano", *arguments, "--budget", "79m", "--piece", "9m"])
        pieces.STOP.clear()
        return nano.main()

    assert call("one") == CONTINUE
    assert call("two") == 0
    assert ran == ["540 s", "autoencoder", "base 70", "540 s", "base 70"]  # minutes in proportion: 9 to 70
    assert call("two") == 0
    assert ran[5:] == ["540 s"]  # all is done


class NoImages(Data):
    @property
    def images(self) -> nano.Images:  # type: ignore[override]
        return nano.Images(*(None, [], None))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", nano.ROUNDS)
def test_a_hundredth_has_a_hundredth_of_the_pairs(task: str) -> None:
    data = Data(Path("unused"), None, 0.01)
    assert data.scaled(6144) % CHUNK == 0
    for one in nano.ROUNDS[task]:
        whole = DistillConfig(**merge([read_preset(task), *map(parse_override, one.overrides)])).data.count
        assert whole
        part = merge([read_preset(task), *map(parse_override, data.overrides(task, one))])
        assert DistillConfig(**part).data.count == max(64, round(whole / 100))
    assert Data(Path("unused")).overrides(task, Round(1.0, ("training.lr=1",))) == ["training.lr=1"]


def test_photographs_are_in_the_pairs_of_restoration(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data = Data(tmp_path, tmp_path)
    scenes, leaves, photographs = (np.full((2, 4, 4, 3), level, np.uint8) for level in (1, 2, 3))
    data.__dict__["images"] = nano.Images(scenes, [], leaves, photographs)  # as if they were rendered already
    [override] = data.overrides("superres", Round(1.0))
    name, _, value = override.partition("=")
    assert name == "data.source"
    with tarfile.open(value) as archive:
        assert len(archive.getnames()) == 6
    assert data.overrides("depth", Round(1.0)) == []
