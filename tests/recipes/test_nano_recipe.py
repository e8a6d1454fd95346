"""The recipe of the bundled models: the loop resumes, captions are tokenized by words, diffusers opens the base."""

import json
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

import codi_hub
from codi_hub.backbones import load
from codi_hub.config.distill import DistillConfig
from codi_hub.config.layers import merge, parse_override, read_preset
from codi_hub.registry import Registry
from recipes.nano import __main__ as nano
from recipes.nano import bundle, stage
from recipes.nano.__main__ import Data, Round, register_base
from recipes.nano.base import TOKENS, tokenizer

NANO = Path(codi_hub.__file__).parent / "nano"


def test_a_stage_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = words(text, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        return CLIPTextModel.from_pretrained(folder / "text_encoder")(ids)[0]


def test_batches_of_several_cores_are_one_large_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(threads: int, batch: int) -> torch.Tensor:
        clock = iter(range(100))
        monkeypatch.setattr(stage.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(stage.torch, "get_num_threads", lambda: threads)
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def loss_of(network: nn.Linear, number: int) -> dict[str, torch.Tensor]:
            rows = torch.arange(number * batch, (number + 1) * batch)[:, None] * torch.tensor([0.1, 0.01, 0.2])
            return {"distance": (network(rows.sin()) - 1).square().mean()}

        return stage.train(tmp_path / f"{threads}", model, loss_of, minutes=0.5, lr=0.1)["weight"]

    together, one = trained(2, 4), trained(1, 8)
    assert torch.allclose(together, one, atol=1e-6)


def test_the_bundled_base_distinguishes_words() -> None:
    """By more than bfloat16's rounding."""
    red, green = (embedded(NANO / "base", f"a {colour} box") for colour in ("red", "green"))
    assert (red - green).norm() > 0.05 * red.norm()


def test_the_bundled_base_is_a_plain_diffusers_pipeline() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(NANO / "base")
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline("a red sphere", num_inference_steps=2, output_type="latent", height=128, width=128).images
    assert latents.shape == (1, pipeline.unet.config.in_channels, 32, 32)
    assert latents.isfinite().all()


def test_the_bundle_is_small_and_complete() -> None:
    manifest = json.loads((NANO / "manifest.json").read_text())
    parts = [manifest["base"], *manifest["adapters"], *manifest.get("others", [])]
    listed = {f"{part['path']}/{name}" for part in parts for name in part["files"]}
    there = {path.relative_to(NANO).as_posix() for path in NANO.rglob("*") if path.is_file()}
    assert there == listed | {"manifest.json"}
    assert sum((NANO / name).stat().st_size for name in there) < 60_000_000


def test_the_workspace_base_has_the_bundled_name_beside_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(NANO / "base")
    register_base(tmp_path)
    with Registry.open(tmp_path / "home") as registry:  # as every command does, with the bundle
        assert registry.bases.get(None).name == bundle.BASE
        assert registry.bases.get(None).source == str(tmp_path / "base")
        assert not registry.adapters.list("superres", base=bundle.BASE)


def test_another_base_has_a_name_of_its_own(tmp_path: Path) -> None:
    bundle.set_base_name(tmp_path, "nano2")
    (tmp_path / "base").symlink_to(NANO / "base")
    register_base(tmp_path)
    with Registry.open(tmp_path / "home") as registry:
        assert registry.bases.get("nano2").source == str(tmp_path / "base")
    bundle.set_base_name(tmp_path, "nano2")
    with pytest.raises(SystemExit, match=f"--name other: the base in {tmp_path} is registered as nano2"):
        bundle.set_base_name(tmp_path, "other")


@pytest.mark.parametrize("continued", [True, False])
def test_the_card_says_what_a_base_was_trained_on(
    continued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_reconstruction", lambda base: "")
    counts = {"scenes": 5, "leaves": 7} | ({"photographs": 9} if continued else {})
    for stage_name in ["unet"] if continued else ["autoencoder", "unet"]:
        (tmp_path / stage_name).mkdir()
        row = {"step": 11, "minutes": 13.0, "scenes": 0.5}
        (tmp_path / stage_name / "log.jsonl").write_text(json.dumps(row) + "\n")
    start = "the weights of nano/base" if continued else "random weights"
    (tmp_path / bundle.ORIGIN).write_text(json.dumps({"start": start, "images": counts}))
    bundle.set_base_name(tmp_path, "nano2")
    card = bundle._card(tmp_path, load(str(NANO / "base")), "")
    assert card.startswith("# nano2: ")
    assert f"trained it from {start}. " in card
    assert ("Crops of photographs were" in card) == ("9 photographs" in card) == continued
    assert ("No photograph was" in card) == ("11 steps, 13 minutes |\n| `unet`" in card) == (not continued)


@pytest.mark.parametrize("task", nano.ROUNDS)
def test_every_round_is_a_preset_with_overrides_of_its_fields(task: str) -> None:
    for one in nano.ROUNDS[task]:
        config = DistillConfig(**merge([read_preset(task), *map(parse_override, one.overrides)]))
        for override in one.overrides:
            path, _, value = override.partition("=")
            section, name = path.split(".")
            assert str(getattr(getattr(config, section), name)) == value


def test_adapters_are_trained_side_by_side_and_rounds_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str, str, int, list[str]]] = []
    meeting = Barrier(2, timeout=20)

    def codi(workspace: Path, _: str, task: str, *arguments: str, threads: int) -> dict[str, str]:
        parent = arguments[arguments.index("--from") + 1] if "--from" in arguments else ""
        if parent in ("", "edit:0"):
            meeting.wait()  # breaks unless two tasks are trained at a time
        overrides = [value for flag, value in pairwise(arguments) if flag == "-O"]
        assert arguments[arguments.index("--preset") + 1] == task
        calls.append((task, parent, arguments[arguments.index("--time-budget") + 1], threads, overrides))
        Path(arguments[arguments.index("--run-dir") + 1]).mkdir(parents=True)
        return {"adapter": f"{task}:{len([one for one in calls if one[0] == task])}"}

    monkeypatch.setattr(nano, "codi", codi)
    short = Round(1.0)
    rounds = {"canny": [short], "depth": [Round(3.0, ("training.lr=1",)), short], "edit": [short]}
    minutes = {"canny": 0.5, "depth": 2.0, "edit": 1.0}
    monkeypatch.setattr(nano, "ROUNDS", rounds)
    monkeypatch.setattr(nano, "AFTER", {"canny": "depth", "edit": "pretraining"})
    seen = bundle.run_folder(tmp_path, "pretraining", 1) / bundle.DONE  # written by the stage before
    seen.parent.mkdir(parents=True)
    seen.write_text("edit:0")
    monkeypatch.setattr(nano, "MINUTES", {"canny": 1.0, "depth": 4.0, "edit": 1.0})
    monkeypatch.setattr(nano.os, "cpu_count", lambda: 4)
    nano.distil_all(Data(tmp_path), list(rounds), minutes, "cpu", lanes=2)
    assert sorted(calls) == [
        ("canny", "depth:2", "0.5m", 2, []),  # not before depth is done
        ("depth", "", "1.5m", 2, ["training.lr=1"]),
        ("depth", "depth:1", "0.5m", 2, []),
        ("edit", "edit:0", "1m", 2, []),
    ]
    calls.clear()
    nano.distil_all(Data(tmp_path), list(rounds), minutes, "cpu", lanes=2)
    assert calls == []  # finished rounds are not trained again
