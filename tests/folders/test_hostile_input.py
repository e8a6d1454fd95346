"""Hostile files through `codi run` and the bundled models: each has its row, and the others are processed."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import Outcome, bombs, depth_maps, masked, photograph, pictures
from PIL import Image

from codi_hub import RunOptions
from codi_hub.events import Event, ItemDone
from codi_hub.hub import Hub
from codi_hub.paths import path_text

ONE_STEP = ["--steps", "1", "--device", "cpu", "--dtype", "fp32", "--batch", "1"]
Codi = Callable[..., Any]


def files_below(folder: Path) -> set[str]:
    return {path_text(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def looks_like(output: Path, expected: Image.Image) -> bool:
    """Return whether an output has the size of an image or four times that, and its colours."""
    with Image.open(output) as image:
        times = image.width // expected.width
        small = np.asarray(image.convert("RGB").resize(expected.size, Image.Resampling.BOX), float)
        return image.size == (times * expected.width, times * expected.height) and (
            np.abs(small - np.asarray(expected, float)).mean() < 12
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("task", "corpus"), [("superres", pictures), ("depth", depth_maps), ("inpaint", masked)])
def test_each_file_has_its_row_and_the_others_are_processed(
    codi: Codi, tmp_path: Path, task: str, corpus: Callable[[Path], dict[str, Outcome]]
) -> None:
    folder, out, alone = tmp_path / "in", tmp_path / "out", tmp_path / "alone"
    folder.mkdir()
    outcomes = corpus(folder)
    answer = codi("run", task, folder, "-o", out, *ONE_STEP, "--json")
    assert answer.code == 1
    assert "Traceback" not in answer.out + answer.err
    assert all(line.isprintable() for line in answer.err.splitlines())
    rows = {Path(row["input"]).name: row for row in json.loads(answer.out)["items"]}
    assert rows.keys() == {path_text(Path(name)) for name in outcomes}
    outputs = set()
    for name, outcome in outcomes.items():
        row = rows[path_text(Path(name))]
        if isinstance(outcome, str):
            assert row["status"] == "failed", name
            assert re.search(outcome, row["error"]), (name, row["error"])
            assert row["error"].isprintable()
            assert len(row["error"]) < 300
        else:
            assert row["status"] == "ok", (name, row["error"])
            outputs.add(row["output"])
            output = out / Path(name).with_suffix(".jpg" if name.endswith(".jpg") and task != "inpaint" else ".png")
            assert task == "depth" or looks_like(output, outcome), name
    assert files_below(out) == {path_text(Path(path).relative_to(out)) for path in outputs}  # nothing half-written
    assert not (folder / "executed").exists()
    best = next(name for name, outcome in outcomes.items() if not isinstance(outcome, str))
    assert codi("run", task, folder / best, "-o", alone, *ONE_STEP).code == 0
    (one,) = alone.iterdir()
    assert one.read_bytes() == (out / one.name).read_bytes()
    with Image.open(one) as image:
        assert image.size[0] > 1


@pytest.mark.slow
def test_very_long_images_and_a_name_that_looks_like_an_option(
    codi: Codi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(1, 2000).save(tmp_path / "thread.png")
    photograph(2, 1).save(tmp_path / "-rf.png")
    monkeypatch.chdir(tmp_path)
    answer = codi("run", "superres", *ONE_STEP, "-o", "out", "--", "-rf.png", "thread.png")
    assert answer.code == 0, answer.err
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"-rf.png": (8, 4), "thread.png": (4, 8000)}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files, as a quota or a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_outputs_that_do_not_fit_on_the_disk_are_failed_rows(codi: Codi, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    photograph().save(folder / "b.png")
    out.mkdir()
    (out / "a.png").write_bytes(b"old")
    assert codi("list").code == 0  # the registry is there already
    with largest_file(160 << 10):
        answer = codi("run", "superres", folder, "-o", out, *ONE_STEP, "--overwrite", "--json")
    rows = {Path(row["input"]).name: row["error"] for row in json.loads(answer.out)["items"]}
    assert (answer.code, rows) == (1, {"a.png": "the output cannot be written: File too large", "b.png": None})
    assert files_below(out) == {"a.png", "b.png"}
    assert (out / "a.png").read_bytes() == b"old"
    again = codi("run", "superres", folder, "-o", out, *ONE_STEP, "--json")
    assert [row["status"] for row in json.loads(again.out)["items"]] == ["failed", "skipped"]  # a.png is not codi's
    assert (out / "a.png").read_bytes() == b"old"


@pytest.mark.slow
def test_files_deleted_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input goes between planning and loading, and the output folder after the first image."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abcd":
        photograph().save(folder / f"{name}.png")
    options = RunOptions(out=out, steps=1, batch=1, device="cpu", dtype="fp32")

    def on_event(event: Event) -> None:
        assert isinstance(event, ItemDone)
        if event.row["status"] == "ok" and event.done <= 2:
            shutil.rmtree(out, ignore_errors=True)

    with Hub.open() as hub:
        begun = hub.catalog.registry.runs.start

        def begin(*values: Any, **named: Any) -> int:
            (folder / "b.png").unlink()
            return begun(*values, **named)

        monkeypatch.setattr(hub.catalog.registry.runs, "start", begin)
        report = hub.run("superres", [folder], options, on_event=on_event)
        errors = [row["error"] for row in report.items]
        assert errors[:2] == [None, "the file cannot be read: No such file or directory"]
        gone = "the output cannot be written: No such file or directory"  # of one that was being written just then
        assert set(errors[2:]) <= {None, gone}
        assert not [name for name in files_below(out) if name.endswith(".part")]
        monkeypatch.undo()
        assert hub.run("superres", [folder], options).failed == 0
    assert files_below(out) == {"a.png", "c.png", "d.png"}


def test_a_named_pipe_does_not_block(codi: Codi, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    answer = codi("run", "superres", tmp_path, "-o", tmp_path / "out", *ONE_STEP, "--ext", "jpg", "--json")
    (row,) = json.loads(answer.out)["items"]
    assert (answer.code, row["error"]) == (1, "not a regular file: give an image file")


MEASURED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from codi_hub import tasks
from codi_hub import RunOptions
from codi_hub.folders.plan import plan
from folder_runs import run_items
task = tasks.load("deblur")
def generate(conditions, prompts, seeds):
    raise MemoryError
items = plan([Path(sys.argv[1])], task, RunOptions())
report = run_items(items, task, generate, batch=8)
# Not getrusage: it counts the parent process too.
(most,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(report.failed, most)
"""


def peak(folder: Path) -> tuple[int, int]:
    """Return (failed items, peak MB) of planning and loading a folder in a separate process."""
    command = [sys.executable, "-c", MEASURED, str(folder), str(Path(__file__).parents[1] / "support")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    failed, size = map(int, done.stdout.split())
    return failed, size // 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    for folder in (bad, good):
        folder.mkdir()
        photograph().save(folder / "good.png")
    for name, (data, _) in bombs().items():
        (bad / name).write_bytes(data)
    (one, least), (failed, most) = peak(good), peak(bad)
    assert (one, failed) == (1, 1 + len(bombs()))
    assert most - least < 200
