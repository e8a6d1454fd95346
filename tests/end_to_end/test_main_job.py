"""The main job: an empty home, the bundled models, real files, the real command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from codi_hub.data.photographs import photographs
from codi_hub.data.synthetic.scenes import scene
from codi_hub.images.metrics import gmsd, psnr
from codi_hub.tasks.degradation import degrade_once
from codi_hub.training.records import Records

SMALL = [
    "--train-steps",
    "6",
    "--count",
    "40",
    "--size",
    "64",
    "--batch",
    "4",
    "--precision",
    "fp32",
    "--device",
    "cpu",
]
SMALL += ["--checkpoint-every", "1", "--sample-every", "0"]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """The centre of a real photograph, 192 px a side."""
    image = photographs(count=1)[0].image
    top, left = (side // 2 - 96 for side in image.shape[:2])
    return image[top : top + 192, left : left + 192]


@pytest.fixture
def inputs(tmp_path: Path, photo: np.ndarray) -> Path:
    """A folder of three small, degraded images, one of another size, one of them in a subfolder."""
    folder = tmp_path / "imgs"
    (folder / "sub").mkdir(parents=True)
    for k, (name, image) in enumerate({"a.png": photo, "b.jpg": photo[:, ::-1], "sub/c.png": photo[:128]}.items()):
        small = degrade_once(np.ascontiguousarray(image), 4, 1.2, 5.0, 75, np.random.default_rng(k))
        Image.fromarray(small).save(folder / name)
    return folder


def items(answer: Any) -> dict[str, str]:
    return {Path(item["input"]).name: item["status"] for item in json.loads(answer.out)["items"]}


def test_bundled_models_are_listed_and_not_copied(codi: Callable[..., Any], home: Path) -> None:
    rows = json.loads(codi("list", "--json").out)
    assert {(row["task"], row["base"], row["bundled"]) for row in rows} >= {
        ("superres", "nano", True),
        ("depth", "nano", True),
    }
    assert not list(home.rglob("*.safetensors"))
    assert codi("verify").code == 0


@pytest.mark.slow
def test_a_folder_in_four_steps_again_and_alone(codi: Callable[..., Any], inputs: Path, tmp_path: Path) -> None:
    fixed = ["--steps", "4", "--dtype", "fp32", "--json"]
    first = codi("run", "superres", inputs, *fixed)
    out = inputs.with_name("imgs_superres")
    assert first.code == 0
    assert set(items(first).values()) == {"ok"}
    sizes = {path.relative_to(out).as_posix(): Image.open(path).size for path in out.rglob("*.*")}
    assert sizes == {"a.png": (192, 192), "b.jpg": (192, 192), "sub/c.png": (192, 128)}
    page = tmp_path / "new" / "r.html"
    again = codi("run", "superres", inputs, *fixed, "--report", page)
    assert set(items(again).values()) == {"skipped"}
    assert again.err.endswith(f"report: {page}\n")
    assert page.read_text().count("data:image/webp;base64,") == 6
    alone = codi("run", "superres", inputs / "a.png", "-o", tmp_path / "alone.png", *fixed)
    assert alone.code == 0
    pair = [np.asarray(Image.open(path)).astype(int) for path in (out / "a.png", tmp_path / "alone.png")]
    assert np.abs(pair[0] - pair[1]).max() <= 1


@pytest.mark.slow
def test_the_batch_size_on_request_and_by_default(codi: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(32):
        Image.new("RGB", (16, 16), (8 * k, 90, 255 - 8 * k)).save(tmp_path / "in" / f"{k:02}.png")
    fixed = ("run", "superres", tmp_path / "in", "--steps", "1", "--device", "cpu", "--overwrite", "--json")
    for asked, batches in {("--batch", "32"): [32], ("--batch", "20"): [20, 12], (): [32]}.items():
        report = json.loads(codi(*fixed, *asked).out)
        assert (report["batches"], report["ok"]) == (batches, 32)


@pytest.mark.slow
def test_the_seed_matters_where_sampling_starts_from_noise(
    codi: Callable[..., Any], inputs: Path, tmp_path: Path
) -> None:
    holed = Image.open(inputs / "a.png").convert("RGBA")
    holed.paste((0, 0, 0, 0), (8, 8, 40, 40))
    holed.save(tmp_path / "holed.png")
    outputs = []
    for seed in (0, 1):
        out = tmp_path / f"{seed}.png"
        arguments = ("--set", "texture=0", "--seed", seed, "--steps", "1")
        assert codi("run", "inpaint", tmp_path / "holed.png", "-o", out, *arguments).code == 0
        outputs.append(np.asarray(Image.open(out)))
    assert (outputs[0] != outputs[1]).any()


@pytest.mark.slow
def test_missing_outputs_and_changed_inputs_are_computed_again(codi: Callable[..., Any], inputs: Path) -> None:
    assert codi("run", "superres", inputs, "--steps", "1", "--json").code == 0
    (inputs.with_name("imgs_superres") / "a.png").unlink()
    Image.open(inputs / "sub/c.png").rotate(180).save(inputs / "sub/c.png")
    again = items(codi("run", "superres", inputs, "--steps", "1", "--json"))
    assert again == {"a.png": "ok", "b.jpg": "skipped", "c.png": "ok"}
    assert set(items(codi("run", "superres", inputs, "--steps", "2", "--json")).values()) == {"ok"}


@pytest.mark.slow
def test_a_degraded_photograph_is_restored_better_than_by_bicubic(codi: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    originals, rows = {}, []
    for k, photo in enumerate(photographs(count=4)):
        image = photo.image[:256, :256]
        originals[photo.name] = image
        small = degrade_once(image, 4, 1.3, 6.0, 72, np.random.default_rng(k))
        Image.fromarray(small).save(tmp_path / "in" / f"{photo.name}.png")
    assert codi("run", "superres", tmp_path / "in", "-o", tmp_path / "out", "--steps", "4").code == 0
    for name, image in originals.items():
        ours = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        bicubic = Image.open(tmp_path / "in" / f"{name}.png").resize((256, 256), Image.Resampling.BICUBIC)
        rows.append([measure(shown, image) for measure in (psnr, gmsd) for shown in (ours, np.asarray(bicubic))])
    ours_psnr, bicubic_psnr, ours_gmsd, bicubic_gmsd = np.mean(rows, axis=0)
    assert ours_psnr > bicubic_psnr
    assert ours_gmsd < bicubic_gmsd


@pytest.mark.slow
def test_a_task_is_added_distilled_listed_and_run(codi: Callable[..., Any], tmp_path: Path) -> None:
    assert codi("task", "add", "depth").code == 0
    made = json.loads(codi("distill", "depth", *SMALL, "--json").out)
    assert made["steps"] == 6
    assert made["adapter"] == "depth:2"
    run = Path(made["run_dir"])
    assert (run / "held-out.png").exists()
    assert list((run / "tensorboard").iterdir())
    rows = {row["ref"]: row for row in json.loads(codi("list", "depth", "--json").out)}
    assert rows["depth:2"]["metrics"]["held_out"] == 4
    card = json.loads(codi("show", "depth:2", "--json").out)["card"]
    assert "## Training" in card
    assert "36 pairs of 64 px from scenes" in card
    depth = scene(np.random.default_rng(0), 64).depth
    (tmp_path / "maps").mkdir()
    Image.fromarray((depth * 255).astype(np.uint8)).save(tmp_path / "maps" / "m.png")
    np.save(tmp_path / "maps" / "n.npy", depth)
    done = codi("run", "depth:2", tmp_path / "maps", "--prompt", "a red sphere", "--steps", "4", "--json")
    assert items(done) == {"m.png": "ok", "n.npy": "ok"}
    assert Image.open(tmp_path / "maps_depth" / "n.png").size == (64, 64)


def distil(run_dir: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "codi_hub.cli", "distill", "superres", *SMALL, "--run-dir", str(run_dir), *more]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_killed_and_resumed_training_gives_the_weights_of_an_uninterrupted_one(tmp_path: Path, home: Path) -> None:
    killed = distil(tmp_path / "killed", "--train-steps", "60")
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    runs = [
        distil(tmp_path / "killed", "--train-steps", "60", "--resume"),
        distil(tmp_path / "whole", "--train-steps", "60"),
    ]
    assert [(process.communicate()[1], process.returncode)[1] for process in runs] == [0, 0]
    resumed, whole = (load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def encoded_in(folder: Path) -> list[tuple[Path, str]]:
    """The records of a cache, pairs and prompts: their file and key, in the order in which they were written."""
    logs = sorted(folder.glob("*.jsonl"))
    return [(log, json.loads(line)[0]) for log in logs for line in log.read_bytes().split(b"\n")[:-1]]


@pytest.mark.slow
def test_training_killed_while_it_encodes_loses_and_repeats_nothing(tmp_path: Path, home: Path) -> None:
    steps = ("--train-steps", "12")
    for encoded in (1, 20):  # of 36 pairs; the first kill comes before there is a checkpoint
        more = ["--resume"] if (tmp_path / "killed" / "config.yaml").exists() else []
        process = distil(tmp_path / "killed", *steps, "--cache-dir", str(tmp_path / "pairs"), *more)
        while len(encoded_in(tmp_path / "pairs")) < encoded and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert len(encoded_in(tmp_path / "pairs")) < 36
    whole = distil(tmp_path / "whole", *steps, "--cache-dir", str(tmp_path / "others"))
    resumed = distil(tmp_path / "killed", *steps, "--cache-dir", str(tmp_path / "pairs"), "--resume")
    assert [(process.communicate()[1], process.returncode)[1] for process in (whole, resumed)] == [0, 0]
    ours, theirs = encoded_in(tmp_path / "pairs"), encoded_in(tmp_path / "others")
    assert len(ours) == len(set(ours)) >= 36
    assert {(log.name, key) for log, key in ours} == {(log.name, key) for log, key in theirs}
    for log, key in theirs:
        expected, found = (Records(tmp_path / name / log.stem).read(key) for name in ("others", "pairs"))
        assert expected
        assert found
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    weights = [load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("killed", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_options(codi: Callable[..., Any], tmp_path: Path) -> None:
    fixed = ["distill", "superres", *SMALL, "--run-dir", tmp_path / "run", "--train-steps", "1"]
    assert codi(*fixed).code == 0
    answer = codi(*fixed, "--resume", "--lr", "0.5")
    assert answer == (2, "", f"Error: --lr 0.5: the run in {tmp_path / 'run'} was started with 0.0006\n")
