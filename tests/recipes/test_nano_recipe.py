"""The recipe of the bundled models: its loop resumes, its tokenizer knows its words, its base opens elsewhere."""

import json
import shutil
from pathlib import Path
from threading import Barrier

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

import codi_hub
from codi_hub.adapters.format import WEIGHTS
from codi_hub.registry import Registry
from recipes.nano import __main__ as nano
from recipes.nano import bundle, stage
from recipes.nano.__main__ import Round, register_base
from recipes.nano.base import TOKENS, tokenizer

NANO = Path(codi_hub.__file__).parent / "nano"


def test_a_stage_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(stage.time, "monotonic", lambda: float(next(clock)))
    seen: list[int] = []

    def loss_of(network: nn.Linear, number: int) -> dict[str, torch.Tensor]:
        seen.append(number)
        return {"distance": (network.weight - 1).square().mean()}

    for minutes in (1, 2):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        ema = stage.train(tmp_path, model, loss_of, minutes=minutes, lr=0.1)
        if minutes == 1:
            half = len(seen)
    assert sorted(seen) == list(range(len(seen)))
    assert 0 < half < len(seen)
    assert (ema["weight"] - 1).abs().max() < 0.2


@pytest.mark.parametrize(
    "text", ["a small gray sphere", "a large red box on sand", "paint the banana orange", "into range cocoa"]
)
def test_words_of_captions_are_single_tokens(tmp_path: Path, text: str) -> None:
    captions = ["a small gray sphere, a large red box on sand", "paint the banana orange", "in an or into range cocoa"]
    words = tokenizer(captions, tmp_path)
    assert words.tokenize(text) == [f"{word}</w>" for word in text.split()]
    assert words.tokenize("ox") == ["o", "x</w>"]


def embedded(folder: Path, text: str) -> torch.Tensor:
    told = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = told(text, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        return CLIPTextModel.from_pretrained(folder / "text_encoder")(ids)[0]


def test_batches_side_by_side_are_one_large_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(threads: int, batch: int) -> torch.Tensor:
        clock = iter(range(100))
        monkeypatch.setattr(stage.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(stage.torch, "get_num_threads", lambda: threads)
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def loss_of(network: nn.Linear, number: int) -> dict[str, torch.Tensor]:
            rows = torch.arange(number * batch, (number + 1) * batch)[:, None] * torch.tensor([0.1, 0.01, 0.2])
            return {"distance": (network(rows.sin()) - 1).square().mean()}

        return stage.train(tmp_path / f"{threads}", model, loss_of, minutes=0.5, lr=0.1)["weight"]

    together, one = made(2, 4), made(1, 8)
    assert torch.allclose(together, one, atol=1e-6)


def test_the_bundled_base_tells_words_apart() -> None:
    """Further than bfloat16 rounds."""
    red, green = (embedded(NANO / "base", f"a {colour} box") for colour in ("red", "green"))
    assert (red - green).norm() > 0.05 * red.norm()


def test_the_bundled_base_is_a_plain_diffusers_pipeline() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(NANO / "base")
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline("a red sphere", num_inference_steps=2, output_type="latent", height=128, width=128).images
    assert latents.shape == (1, pipeline.unet.config.in_channels, 32, 32)
    assert latents.isfinite().all()


def test_the_bundle_is_small_and_whole() -> None:
    manifest = json.loads((NANO / "manifest.json").read_text())
    parts = [manifest["base"], *manifest["adapters"], *manifest.get("others", [])]
    listed = {f"{part['path']}/{name}" for part in parts for name in part["files"]}
    there = {path.relative_to(NANO).as_posix() for path in NANO.rglob("*") if path.is_file()}
    assert there == listed | {"manifest.json"}
    assert sum((NANO / name).stat().st_size for name in there) < 60_000_000


def test_its_base_bears_the_bundled_name_beside_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(NANO / "base")
    register_base(tmp_path)
    with Registry.open(tmp_path / "home") as registry:  # as every command does, with the bundle
        assert registry.bases.get(None).name == bundle.BASE
        assert registry.bases.get(None).source == str(tmp_path / "base")
        assert not registry.adapters.list("superres", base=bundle.BASE)


def test_adapters_are_distilled_side_by_side_and_passes_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str, str, int]] = []
    meeting = Barrier(2, timeout=20)

    def codi(workspace: Path, _: str, task: str, *arguments: str, threads: int) -> dict[str, str]:
        parent = arguments[arguments.index("--from") + 1] if "--from" in arguments else ""
        if parent in ("", "edit:0"):
            meeting.wait()  # two tasks are at it at once, or this breaks
        told.append((task, parent, arguments[arguments.index("--time-budget") + 1], threads))
        Path(arguments[arguments.index("--run-dir") + 1]).mkdir(parents=True)
        return {"adapter": f"{task}:{len([one for one in told if one[0] == task])}"}

    monkeypatch.setattr(nano, "codi", codi)
    short = Round(1.0, [])
    rounds = {"canny": [short], "depth": [Round(3.0, ["--x"]), short], "edit": [short]}
    minutes = {"canny": 0.5, "depth": 2.0, "edit": 1.0}
    monkeypatch.setattr(nano, "ROUNDS", rounds)
    monkeypatch.setattr(nano, "AFTER", {"canny": "depth", "edit": "sight"})
    seen = bundle.run_folder(tmp_path, "sight", 1) / bundle.DONE  # a stage of its own, done before
    seen.parent.mkdir(parents=True)
    seen.write_text("edit:0")
    monkeypatch.setattr(nano, "MINUTES", {"canny": 1.0, "depth": 4.0, "edit": 1.0})
    monkeypatch.setattr(nano.os, "cpu_count", lambda: 4)
    nano.distil_all(tmp_path, list(rounds), minutes, "cpu", lanes=2)
    assert sorted(told) == [
        ("canny", "depth:2", "0.5m", 2),  # not before depth is done
        ("depth", "", "1.5m", 2),
        ("depth", "depth:1", "0.5m", 2),
        ("edit", "edit:0", "1m", 2),
    ]
    told.clear()
    nano.distil_all(tmp_path, list(rounds), minutes, "cpu", lanes=2)
    assert told == []  # what is done is not done again


def test_a_round_may_begin_with_the_mean_of_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents: list[str] = []
    versions = iter(range(10))

    def codi(workspace: Path, _: str, task: str, *arguments: str, threads: int) -> dict[str, str]:
        folder, number = tmp_path / "made", next(versions)
        parents.append(arguments[arguments.index("--from") + 1] if "--from" in arguments else "")
        shutil.copytree(NANO / "deblur", folder, dirs_exist_ok=True)
        weights = {name: torch.full_like(value, number) for name, value in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS)
        with Registry.open(workspace / "home") as registry:
            row, _ = registry.adapters.add(
                folder, task=task, base=bundle.BASE, kind="side", steps=4, parameters=1, metrics={}
            )
        Path(arguments[arguments.index("--run-dir") + 1]).mkdir(parents=True)
        return {"adapter": row.ref}

    (tmp_path / "base").symlink_to(NANO / "base")
    register_base(tmp_path)
    monkeypatch.setattr(nano, "codi", codi)
    monkeypatch.setattr(nano, "ROUNDS", {"deblur": [Round(1.0, [])] * 3 + [Round(1.0, [], mean_of=2)]})
    monkeypatch.setattr(nano, "AFTER", {})
    nano.distil(tmp_path, "deblur", 4.0, "cpu", 1)
    assert len(set(parents)) == 4
    with Registry.open(tmp_path / "home") as registry:
        row = registry.adapters.resolve(parents[-1], base=bundle.BASE)
        assert row.kind == "side"
        weights = load_file(registry.adapters.file(row, WEIGHTS))
    assert all((value == 1.5).all() for value in weights.values())  # of the versions filled with 1 and with 2
