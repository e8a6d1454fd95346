"""The example package of the "extend" pages, installed and used from the command line."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline
from PIL import Image
from sana import sana

from codi_hub import adapters, backbones
from codi_hub.adapters.base_only import BaseOnly
from codi_hub.diffusion.samplers import ddim
from codi_hub.inference.engine import gaussian

EXAMPLES = Path(__file__).parents[2] / "docs" / "extend" / "examples"
SHORT = (
    "--train-steps",
    "3",
    "--count",
    "12",
    "--size",
    "32",
    "--batch",
    "2",
    "--sample-every",
    "0",
    "--precision",
    "fp32",
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package as pip would install it: its modules and a dist-info folder with its entry points."""
    site = tmp_path / "site"
    shutil.copytree(EXAMPLES / "toy_codi", site / "toy_codi")
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    info = site / f"toy_codi-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_codi"]:
        del sys.modules[name]


@pytest.fixture
def tiny(codi, base_folder):
    """A registered Stable-Diffusion-style base of a few thousand weights, in use."""
    assert codi("base", "add", "tiny", base_folder).code == 0
    assert codi("base", "use", "tiny").code == 0


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    """A folder of two dark images."""
    folder = tmp_path / "dark"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 80, (40, 32, 3), np.uint8)).save(folder / name)
    return folder


def distil(codi, *options: str) -> dict:
    answer = codi("distill", "brighten", *SHORT, "--json", *options)
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def run(codi, dark: Path, out: Path) -> list[Path]:
    answer = codi("run", "brighten", dark, "-o", out, "--steps", "2")
    assert answer.code == 0, answer.err
    return sorted(out.glob("*.png"))


@pytest.mark.slow
def test_a_task_is_listed_trained_run_and_measured(codi, installed, tiny, dark, tmp_path):
    tasks = json.loads(codi("task", "list", "--json").out)
    assert "brighten" in {task["name"] for task in tasks}
    assert "gamma: 2" in " ".join(codi("task", "show", "brighten").out.split())
    assert distil(codi)["adapter"] == "brighten:1"
    outputs = run(codi, dark, tmp_path / "out")
    assert [Image.open(path).size for path in outputs] == [(32, 40)] * 2
    answer = codi("eval", "brighten", "--steps", "1,2", "--count", "2", "--json")
    assert answer.code == 0, answer.err
    names = [row["name"] for row in json.loads(answer.out)["rows"]]
    assert names[-2:] == ["1 step", "2 steps"]
    assert codi("task", "add", "very-dark", "--like", "brighten", "--set", "gamma=4").code == 0
    assert codi("run", "brighten", dark, "--set", "gamma=9").code == 2


def test_the_task_darkens_its_training_images_and_judges_by_the_same_curve(installed):
    from toy_codi.task import Brighten

    task = Brighten({"gamma": 2.0})
    image = np.full((8, 8, 3), 128, np.uint8)
    pair = task.make_pair({"image": image}, np.random.default_rng(0))
    assert pair.condition[0, 0, 0] == 64
    condition = task.prepare(pair.condition).condition
    assert task.adherence(image / 255, condition) == pytest.approx(1, abs=0.01)
    assert task.adherence(condition, condition) < 0.95


@pytest.mark.slow
def test_an_adapter_kind_is_trained_stored_and_run(codi, installed, tiny, dark, tmp_path):
    assert distil(codi, "--kind", "shortcut", "-O", "adapter.width=4")["kind"] == "shortcut"
    shown = json.loads(codi("show", "brighten", "--json").out)
    assert shown["kind"] == "shortcut"
    assert len(run(codi, dark, tmp_path / "out")) == 2
    refused = codi("distill", "brighten", *SHORT, "--kind", "shortcut", "-O", "adapter.rank=4")
    assert refused.code == 2
    assert "width" in refused.err


def test_the_kind_starts_as_the_base(installed, base):
    import torch
    from toy_codi.adapter import ShortcutAdapter, ShortcutConfig

    adapter = ShortcutAdapter(base, ShortcutConfig())
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(2, base.latents.channels, 8, 8, generator=generator)
    t, prompt, condition = (
        torch.tensor([0.5, 1.0]),
        base.embed(["", "a"]),
        torch.rand(2, 3, 16, 16, generator=generator),
    )
    with torch.no_grad():
        with_adapter = adapter(base, z_t, t, prompt, condition)
        assert torch.equal(with_adapter, base.predict(z_t, t, prompt))


@pytest.mark.slow
def test_a_loss_trains_and_is_recorded(codi, installed, tiny):
    distil(codi, "--method", "huber", "-O", "loss.delta=0.5")
    shown = json.loads(codi("show", "brighten", "--json").out)
    assert shown["method"] == "huber"
    assert shown["loss"] == {"huber": 1.0}


@pytest.mark.slow
def test_a_metric_is_a_column(codi, installed, tiny):
    distil(codi)
    answer = codi("eval", "brighten", "--steps", "1", "--count", "2", "--json")
    assert "brightness" in json.loads(answer.out)["columns"]


@pytest.fixture
def family(codi, installed, tmp_path):
    """The folder of a tiny Sana model, registered as `sana` and in use."""
    folder = sana(tmp_path / "model")
    answer = codi("base", "add", "sana", folder)
    assert answer.code == 0, answer.err
    assert codi("base", "use", "sana").code == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["concat", "control", "full", "shortcut"])
def test_a_family_is_registered_trained_on_and_run(codi, family, dark, tmp_path, kind):
    method = ("--method", "codi") if kind == "full" else ()
    assert distil(codi, "--kind", kind, *method)["base"] == "sana"
    assert len(run(codi, dark, tmp_path / "out")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_a_family_walks_as_its_pipeline_and_its_adapters_start_at_the_base(family, steps):
    base, noise, prompt = backbones.load(str(family)), gaussian((4, 16, 16), 3)[None], "a red ball"
    pipeline = SanaPipeline.from_pretrained(family)
    theirs = pipeline(
        prompt, height=32, width=32, latents=noise, sigmas=[1 - k / steps for k in range(steps)],
        num_inference_steps=steps, guidance_scale=1.0, use_resolution_binning=False, output_type="latent",
    ).images  # fmt: skip
    condition, words = torch.rand(1, 3, 32, 32), base.embed([prompt])
    for kind in (None, "concat", "control", "full"):
        adapter = adapters.build(kind, base) if kind else BaseOnly(base)
        prepared = adapter.prepare(base, condition, words)
        denoise = base.schedule.denoiser(lambda z_t, t, a=adapter, p=prepared: a.predict(base, z_t, t, words, p))
        with torch.no_grad():
            ours = ddim(denoise, noise, base.schedule.grid(steps), base.schedule)
        if kind is None:
            alone = ours
            assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
        assert torch.equal(ours, alone)
