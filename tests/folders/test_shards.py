"""Shards of a run, and runs by one process per device: together they are the run of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub import Catalog, Hub, RunOptions
from codi_hub.errors import UsageError
from codi_hub.events import ItemDone, Message
from codi_hub.folders.shards import shard_of

COUNT = 12


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """noise/: images of one shape, one of them broken."""
    root = tmp_path / "noise"
    (root / "sub").mkdir(parents=True)
    for k in range(COUNT):
        pixels = np.random.default_rng(k).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("sub" if k % 2 else "") / f"{k:02}.png")
    (root / "broken.png").write_bytes(b"not an image")
    return root


def options(out: Path, **changes: object) -> RunOptions:
    return RunOptions(out=out, steps=1, batch=1, device="cpu", **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def recorded() -> Counter[str]:
    """Return how often the log has each output as made."""
    with Catalog.open() as catalog:
        runs = catalog.registry.runs
        return Counter(
            str(item.output) for run in runs.list(None) for item in runs.items(run.id) if item.status == "ok"
        )


def test_the_shards_of_a_name_do_not_depend_on_other_names():
    names = [f"{k}.png" for k in range(1000)]
    counts = Counter(shard_of(name, 8) for name in names)
    assert sorted(counts) == list(range(1, 9))
    assert min(counts.values()) > 90
    assert shard_of("a.png", 1) == 1
    assert shard_of("a\udcff.png", 3) in (1, 2, 3)
    assert [shard_of(name, 5) for name in ("a.png", "b.png", "sub/e.png")] == [3, 5, 5]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "1/2/3", "-1/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"^shard .*as 1/8"):
        RunOptions(shard=text)


@pytest.mark.parametrize("text", ["auto,cpu", "cpu,,cpu", "gpu"])
def test_devices_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match=r"^devices"):
        RunOptions(devices=text)


@pytest.mark.slow
def test_the_shards_together_are_the_run(noise, tmp_path, codi):
    with Hub.open() as hub:
        whole = hub.run("superres", [noise], options(tmp_path / "whole"))
        parts = [hub.run("superres", [noise], options(tmp_path / "parts", shard=(k, 3))) for k in (2, 1, 3)]
    assert (whole.ok, whole.failed) == (COUNT, 1)
    assert (sum(part.ok for part in parts), sum(part.failed for part in parts)) == (COUNT, 1)
    assert min(len(part.items) for part in parts) > 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    seeds = {Path(row["input"]).name: row["seed"] for row in whole.items}
    assert {Path(row["input"]).name: row["seed"] for part in parts for row in part.items} == seeds
    shown = [json.loads(codi("runs", "show", number, "--json").out) for number in ("2", "4")]
    assert [part["shard"] for part in shown[0]["parts"]] == ["2/3", "1/3", "3/3"]
    assert shown[0]["items"] == shown[1]["items"]
    assert (shown[0]["ok"], shown[0]["failed"], len(shown[0]["items"])) == (COUNT, 1, COUNT + 1)
    assert "parts" not in json.loads(codi("runs", "show", "1", "--json").out)
    with Hub.open() as hub:  # another number of shards goes on where these stopped
        (tmp_path / "parts" / "00.png").unlink()
        again = [hub.run("superres", [noise], options(tmp_path / "parts", shard=(k, 2))) for k in (1, 2)]
    assert (sum(part.ok for part in again), sum(part.skipped for part in again)) == (1, COUNT - 1)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.slow
def test_two_devices_make_the_run_of_one(noise, tmp_path):
    seen: list[ItemDone] = []
    with Hub.open() as hub:
        whole = hub.run("superres", [noise], options(tmp_path / "whole"))
        both = hub.run("superres", [noise], options(tmp_path / "both", devices="cpu,cpu"), seen.append)
        skipped = hub.run("superres", [noise], options(tmp_path / "both"))
        shown = hub.catalog.show_run(2)
    assert contents(tmp_path / "whole") == contents(tmp_path / "both")
    assert [(r["input"], r["status"], r["seed"], r["error"]) for r in both.items] == [
        (r["input"], r["status"], r["seed"], r["error"]) for r in whole.items
    ]
    assert [event.done for event in seen if isinstance(event, ItemDone)] == list(range(1, COUNT + 2))
    assert both.batches == [1] * COUNT
    assert (shown["ok"], shown["failed"], shown["status"]) == (COUNT, 1, "failed")
    assert (skipped.ok, skipped.skipped, skipped.failed) == (0, COUNT, 1)
    assert set(recorded().values()) == {1}


@pytest.mark.slow
def test_what_a_killed_worker_had_is_made_by_the_other(noise, tmp_path):
    said: list[str] = []
    killed: list[int] = []

    def kill(event: object) -> None:
        if isinstance(event, Message):
            said.append(event.text)
        elif not killed:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    with Hub.open() as hub:
        whole = hub.run("superres", [noise], options(tmp_path / "whole"))
        both = hub.run("superres", [noise], options(tmp_path / "both", devices="cpu,cpu"), kill)
    assert (both.ok, both.failed) == (whole.ok, whole.failed) == (COUNT, 1)
    assert contents(tmp_path / "whole") == contents(tmp_path / "both")
    assert [text for text in said if "The worker on cpu died (signal 9)" in text]
    outputs = [name for name in recorded() if name.startswith(str(tmp_path / "both"))]
    assert len(outputs) == COUNT


def workers() -> list[int]:
    import multiprocessing

    return [int(child.pid or 0) for child in multiprocessing.active_children()]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["run", "worker"])
def test_a_run_that_ended_early_goes_on_where_it_was(noise, tmp_path, to):
    """Ctrl-C to the run, or a kill of its only worker."""
    arguments = ["run", "superres", noise, "-o", tmp_path / "out", "--steps", "1", "--batch", "1", "--devices", "cpu"]
    command = [sys.executable, "-m", "codi_hub.cli", *map(str, arguments), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("out/*.png")):
        time.sleep(0.01)
    if to == "run":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(worker_of(process.pid), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == (130 if to == "run" else 1)
    text = "the same command again continues from there" if to == "run" else "all workers died with"
    assert text in err.splitlines()[-1]
    first = json.loads(out)["ok"]
    assert 0 < first < COUNT
    with Hub.open() as hub:
        report = hub.run("superres", [noise], options(tmp_path / "out"))
        whole = hub.run("superres", [noise], options(tmp_path / "whole"))
    assert (report.ok + report.skipped, report.failed) == (COUNT, 1)
    assert report.skipped >= first
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")
    assert whole.ok == COUNT


def worker_of(pid: int) -> int:
    """Return the child of a process that was spawned to work; the other is the tracker of its resources."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("no worker")


@pytest.mark.parametrize("devices", ["cuda:99", "cpu,cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_the_run(noise, tmp_path, devices):
    with Hub.open() as hub, pytest.raises(UsageError, match="cuda:99"):
        hub.run("superres", [noise], options(tmp_path / "out", devices=devices))
    with Catalog.open() as catalog:
        assert not catalog.registry.runs.list()
