"""Encoded pairs: shared by runs that want the same, and by no others."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_base, scheduler_config

from codi_hub import backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import UsageError
from codi_hub.training import latents
from codi_hub.training.latents import PairsSpec, build

SPEC = PairsSpec("superres", {"scale": 2}, "leaves", 6, 32, 0)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of pairs whenever some are created."""
    seen: list[int] = []
    make_pairs = latents.make_pairs

    def counted(spec: PairsSpec, indices: range, workers: int) -> object:
        seen.append(len(indices))
        return make_pairs(spec, indices, workers)

    monkeypatch.setattr(latents, "make_pairs", counted)
    return seen


def test_the_same_pairs_are_encoded_once(base: Backbone, tmp_path: Path, created: list[int]) -> None:
    first, second = (build(SPEC, range(5), base, tmp_path) for _ in range(2))
    assert created == [5]
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.conditions, second.conditions)
    assert first.prompts == second.prompts
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_other_pairs_are_cached_beside_them(base: Backbone, tmp_path: Path, created: list[int]) -> None:
    build(SPEC, range(5), base, tmp_path)
    for spec in (replace(SPEC, seed=1), replace(SPEC, size=40), replace(SPEC, options={"scale": 4})):
        build(spec, range(5), base, tmp_path)
    build(SPEC, range(4), base, tmp_path)
    with_targets = build(SPEC, range(5), base, tmp_path, with_targets=True)
    assert created == [5, 5, 5, 5, 4, 5]
    assert with_targets.targets is not None
    again = build(SPEC, range(5), base, tmp_path)  # the first ones are still there
    assert created[6:] == []
    assert again.targets is None


@pytest.mark.slow
def test_latents_of_another_autoencoder_are_not_reused(tmp_path: Path, created: list[int]) -> None:
    """Two bases with equal U-Nets, and so with equal fingerprints."""
    config = scheduler_config("v_prediction", zero_snr=True)
    base = backbones.load(str(save_base(tmp_path / "base", config)))
    build(SPEC, range(2), base, tmp_path / "pairs")
    with torch.no_grad():
        next(base.vae.encoder.parameters()).mul_(2)
    build(SPEC, range(2), base, tmp_path / "pairs")
    with torch.no_grad():
        next(base.vae.decoder.parameters()).mul_(2)  # pairs do not depend on it
    build(SPEC, range(2), base, tmp_path / "pairs")
    assert created == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("left", [None, 40])
def test_half_written_pairs_are_encoded_again(
    base: Backbone, tmp_path: Path, created: list[int], suffix: str, left: int | None
) -> None:
    build(SPEC, range(5), base, tmp_path)
    file = next(tmp_path.glob(f"*{suffix}"))
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:left])
    again = build(SPEC, range(5), base, tmp_path)
    assert created == [5, 5]
    assert len(again) == 5


@pytest.mark.slow
def test_pairs_of_a_task_that_changed_are_not_reused(
    base: Backbone, tmp_path: Path, created: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(SPEC, range(5), base, tmp_path)
    monkeypatch.setattr("codi_hub.tasks.superres.degrade", lambda image, scale, rng, preset: image[::scale, ::scale])
    build(SPEC, range(5), base, tmp_path)
    assert created == [5, 5]


def test_a_folder_that_cannot_be_written_is_refused_before_any_pair(
    base: Backbone, tmp_path: Path, created: list[int]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"data\.cache_dir .*file: "):
        build(SPEC, range(5), base, tmp_path / "file")
    assert created == []


@pytest.mark.slow
def test_processes_that_create_pairs_leave_ctrl_c_to_the_main_one() -> None:
    spec = replace(SPEC, count=200)
    pairs = latents.make_pairs(spec, range(200), 2)
    first = next(pairs)
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    assert len([first, *pairs]) == 200
