"""Runs: pixels, batches by shape, one row per file, resumed and interrupted runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_runs import FunctionGenerator, MemoryLog, run_items
from PIL import Image

from codi_hub import RunOptions, interrupts
from codi_hub.errors import Mismatch
from codi_hub.events import ItemDone
from codi_hub.folders.interrupts import Interrupted
from codi_hub.folders.plan import Item, plan
from codi_hub.folders.runner import FolderRun, RunSettings
from codi_hub.reports import RunReport


@pytest.fixture
def go(task, copying, tmp_path) -> Callable[..., RunReport]:
    def run(inputs: Path | list[Item], **options: Any) -> RunReport:
        items = (
            plan([inputs], task, RunOptions(out=tmp_path / "out", seed=3, prompt=options.pop("prompt", None)))
            if isinstance(inputs, Path)
            else inputs
        )
        return run_items(items, options.pop("task", task), options.pop("generate", copying), **{"batch": 2, **options})

    return run


def errors(report: RunReport) -> dict[str, str | None]:
    return {Path(row["input"]).name: row["error"] for row in report.items if row["status"] != "ok"}


def test_a_folder(images, go, copying, tmp_path):
    seen: list[ItemDone] = []
    report = go(images, on_event=seen.append, prompt="a tree")
    assert (report.task, report.adapter, report.steps) == ("double", "double:1", 4)
    assert (report.ok, report.failed, report.skipped) == (6, 0, 0)
    names = ["a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/f.png"]
    assert [row["input"] for row in report.items] == [str(images / name) for name in names]
    keys = {"input", "output", "status", "seed", "error", "seconds", "prompt"}
    assert [set(row) for row in report.items] == [keys] * 6
    assert all(row["seconds"] > 0 for row in report.items)
    assert sorted(str(event.row) for event in seen) == sorted(map(str, report.items))
    assert [(event.done, event.total) for event in seen] == [(k, 6) for k in range(1, 7)]
    for name in names:
        with Image.open(images / name) as before, Image.open(tmp_path / "out" / name) as after:
            assert np.array_equal(np.asarray(after), np.asarray(before.resize((16, 16), 0)))
    assert copying.sizes == report.batches == [2, 2, 2]
    assert [seed for _, _, seeds in copying.calls for seed in seeds] == [row["seed"] for row in report.items]
    assert {prompt for _, prompts, _ in copying.calls for prompt in prompts} == {"a tree"}


def test_one_shape_per_batch_in_the_order_planned(tmp_path, go, copying):
    sizes = [(8, 8), (4, 8), (8, 8), (4, 8), (8, 8), (6, 6), (4, 8)]
    for k, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{k}.png")
    report = go(tmp_path, batch=2)
    assert report.ok == 7
    assert copying.sizes == [2, 2, 1, 1, 1]
    assert all(len(set(shapes)) == 1 for shapes, _, _ in copying.calls)
    order = [seed for _, _, seeds in copying.calls for seed in seeds]
    planned = [row["seed"] for row in report.items]
    assert order == [planned[k] for k in (0, 2, 1, 3, 4, 5, 6)]


def test_single_images_of_a_shape_do_not_wait_for_long(tmp_path, go, copying):
    for k in range(40):
        Image.new("RGB", (k + 1, 1)).save(tmp_path / f"{k:02d}.png")
    called_at: list[int] = []
    copying.fails = lambda conditions: called_at.append(conditions[0].shape[1] // 2)
    assert go(tmp_path, batch=2).ok == 40
    assert called_at == list(range(1, 41))
    assert copying.sizes == [1] * 40


def test_the_memory_limit_holds_while_images_are_computed_and_saved(tmp_path, go, task):
    """Computing and saving are slow; an image takes 30 kB of 50 kB at each stage."""
    for k in range(12):
        Image.new("RGB", (50, 25)).save(tmp_path / f"{k:02d}.png")
    here, most = set(), []
    prepare, finish = task.prepare, task.finish

    def counted(image: Any, path: Path, rng: Any) -> Any:
        here.add(path)
        most.append(len(here))
        return prepare(image, path, rng)

    def saved(output: np.ndarray, prepared: Any) -> np.ndarray:
        here.pop()
        return finish(output, prepared)

    def slow(conditions: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        time.sleep(0.05)
        return conditions

    task.prepare, task.finish = counted, saved
    assert go(tmp_path, batch=8, generate=slow, memory=50_000).ok == 12
    assert max(most) <= 8  # without the limit all ten that a batch of eight loads ahead, and more that wait


def test_images_are_computed_while_others_load_and_save(images, task, go):
    running: list[str] = []
    together: set[tuple[str, ...]] = set()

    def slow(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def later(*args: Any, **kwargs: Any) -> Any:
            running.append(stage)
            time.sleep(0.03)
            together.add(tuple(sorted(set(running))))
            running.remove(stage)
            return function(*args, **kwargs)

        return later

    task.prepare, task.finish = slow("load", task.prepare), slow("save", task.finish)
    report = go(images, batch=1, generate=slow("generate", lambda conditions, prompts, seeds: conditions))
    assert report.ok == 6
    assert any({"load", "generate"} <= set(stages) for stages in together)
    assert any({"generate", "save"} <= set(stages) for stages in together)


def test_a_name_too_long_for_its_output_fails_alone(images, go, task, tmp_path):
    (images / ("n" * 251 + ".png")).write_bytes((images / "a.png").read_bytes())
    report = go(plan([images], task, RunOptions(out=tmp_path / "out", suffix="_x4")))
    assert (report.ok, report.failed) == (6, 1)
    assert list(errors(report).values()) == ["the output cannot be written: File name too long"]


def test_the_images_of_a_failed_batch_are_tried_alone(images, go, copying):
    def fails(conditions: list[np.ndarray]) -> None:
        if any(np.isclose(c[0, 0, 0], 80 / 255) for c in conditions):  # c.png
            raise RuntimeError("CUDA error:\nmisaligned")

    copying.fails = fails
    report = go(images, batch=4)
    assert errors(report) == {"c.png": "RuntimeError: CUDA error: misaligned"}
    assert copying.sizes == [4, 1, 1, 1, 1, 2]


def test_without_a_batch_size_the_generator_chooses_it(images, go, copying):
    copying.auto = 5
    report = go(images, batch=None)
    assert report.batches == copying.sizes == [5, 1]


def test_a_batch_size_is_honoured_exactly(tmp_path, go, copying):
    for k in range(33):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{k:02d}.png")
    copying.auto = 3
    assert go(tmp_path, batch=32).batches == copying.sizes == [32, 1]


def test_networks_that_cannot_be_loaded_end_the_run_before_an_image_is_loaded(images, task, tmp_path):
    def load() -> FunctionGenerator:
        raise Mismatch("another base")

    task.load = lambda path: pytest.fail("loaded")
    log, items = MemoryLog(), plan([images], task, RunOptions(out=tmp_path / "out"))
    with pytest.raises(Mismatch, match="another base"):
        FolderRun(
            items, task, load, RunSettings(task="double", adapter="double:1", steps=4, options=RunOptions()), log=log
        ).run()
    assert (log.rows, log.statuses) == ([], ["failed"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("codi-")]


def test_networks_are_loaded_only_if_there_is_an_image_to_generate(images, task, copying, tmp_path):
    log, loads = MemoryLog(), []

    def again() -> RunReport:
        items = plan([images], task, RunOptions(out=tmp_path / "out"))
        settings = RunSettings(task="double", adapter="double:1", steps=4, options=RunOptions())
        return FolderRun(items, task, lambda: loads.append("loaded") or copying, settings, log=log).run()

    assert again().ok == 6
    assert again().skipped == 6
    for path in images.rglob("*.png"):
        path.write_bytes(b"not an image")
    assert again().failed == 6
    assert loads == ["loaded"]
    assert log.statuses == ["ok", "ok", "failed"]


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (lambda c, p, s: [np.full_like(x, np.nan) for x in c], "values that are not numbers"),
        (lambda c, p, s: [], "the generator returned 0 images for 1 conditions"),
    ],
)
def test_outputs_that_cannot_be_used_are_failed_rows(images, go, generate, message):
    report = go(images, generate=generate)
    assert report.failed == 6
    assert all(message in row["error"] for row in report.items)


def test_alpha_profile_and_orientation_survive(tmp_path, go, task):
    root = tmp_path / "in"
    root.mkdir()
    alpha = np.zeros((4, 6, 4), np.uint8)
    alpha[:, 3:, 3] = 255
    Image.fromarray(alpha).save(root / "a.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"\0" * 16 + b"RGB " + b"\0" * 108
    Image.new("RGB", (6, 4)).save(root / "b.jpg", exif=exif, icc_profile=profile)
    assert go(root).ok == 2
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert (image.mode, image.size) == ("RGBA", (12, 8))
        assert np.asarray(image)[0, :, 3][[0, -1]].tolist() == [0, 255]
    with Image.open(tmp_path / "out" / "b.jpg") as image:
        assert image.size == (8, 12)
        assert image.info["icc_profile"] == profile
        assert 0x0112 not in image.getexif()


def test_resume_goes_by_the_log(images, go, copying, tmp_path):
    log = MemoryLog()
    again = {"log": log, "metadata": False}  # else outputs say themselves what they are
    assert go(images, **again).ok == 6
    logged = {"input", "output", "input_hash", "status", "seed", "error", "seconds"}
    assert set(log.rows[0]) == logged | {"hash", "bytes", "mtime_ns"}
    assert all(row["seconds"] > 0 and len(row["input_hash"]) == 64 for row in log.rows)
    assert go(images, **again).skipped == 6
    assert len(log.rows) == 6  # nothing was done, so nothing is recorded
    Image.new("RGB", (8, 8), "white").save(images / "b.png")  # the input changed
    (tmp_path / "out" / "d.png").unlink()  # the output went
    third = go(images, **again)
    assert [row["status"] for row in third.items] == ["skipped", "ok", "skipped", "ok", "skipped", "skipped"]
    assert go(images, log=MemoryLog()).failed == 6  # nothing is known of the outputs
    assert go(images, overwrite=True, **again).ok == 6


def test_without_resume_nothing_is_replaced(images, go, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    report = go(images, resume=False)
    assert errors(report) == {"a.png": "the output exists already: allow overwrite or resume"}
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert go(images, resume=False, overwrite=True).ok == 6


def test_the_same_image_alone_or_among_others(images, go, task, tmp_path):
    def seeded(conditions: list[np.ndarray], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        return [np.random.default_rng(s).random(c.shape, np.float32) for c, s in zip(conditions, seeds, strict=True)]

    go(images, generate=seeded, batch=4)
    together = (tmp_path / "out" / "sub" / "f.png").read_bytes()
    items = plan([images], task, RunOptions(out=tmp_path / "alone", seed=3))
    go([item for item in items if item.name == "sub/f.png"], generate=seeded)
    assert (tmp_path / "alone" / "sub" / "f.png").read_bytes() == together


@pytest.fixture
def interrupts_installed():
    """Signals as the command line sets them."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_an_interrupt_ends_the_run_after_the_current_batch(images, go, copying, tmp_path, number, interrupts_installed):
    log, handlers = MemoryLog(), [signal.getsignal(number) for number in interrupts.SIGNALS]
    copying.fails = lambda conditions: os.kill(os.getpid(), number) if len(copying.calls) == 2 else None
    with pytest.raises(Interrupted, match="interrupted after 4 of 6 images: the same command") as caught:
        go(images, log=log)
    assert caught.value.exit_code == 130
    assert [row["status"] for row in caught.value.report.items] == ["ok"] * 4
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(log.rows) == 4
    assert log.statuses == ["interrupted"]
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == handlers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("codi-")]
    copying.fails = lambda conditions: None
    rest = go(images, log=log)
    assert (rest.ok, rest.skipped) == (2, 4)


def test_the_second_interrupt_does_not_wait(images, go, copying):
    def twice(conditions: list[np.ndarray]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    copying.fails = twice
    with pytest.raises(Interrupted, match="after 0 of 6 images"):
        go(images)


def test_a_run_in_a_thread(images, go):
    reports: list[RunReport] = []
    thread = threading.Thread(target=lambda: reports.append(go(images)))
    thread.start()
    thread.join()
    assert reports[0].ok == 6


def test_no_torch_and_no_warning_of_pillow(images, tmp_path):
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    Image.new("RGB", (8, 8)).save(images / "exif.jpg", exif=exif)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom folder_runs import Copying, Double, run_items\n"
        "from codi_hub import RunOptions\nfrom codi_hub.folders.plan import plan\n"
        "items = plan([Path(sys.argv[2])], Double(), RunOptions())\n"
        "report = run_items(items, Double(), Copying())\n"
        "print(report.ok, 'torch' in sys.modules)"
    )
    support = str(Path(__file__).parents[1] / "support")
    command = [sys.executable, "-c", script, support, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("7 False\n", "")
