"""The recipe's photographs: held-out ones are never cut for training, crops repeat, and a base continues another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import codi_hub
from codi_hub.backbones import load
from recipes.nano import base
from recipes.nano.images import EVERY, Images, photo_files, photo_pool
from recipes.nano.validation import LEVELS, validation_losses

NANO = Path(codi_hub.__file__).parent / "nano"
HELD_OUT = EVERY - 1  # number of the first photograph that is held out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photographs, each of one gray level, its number times ten; one wide, one smaller than a crop."""
    folder, rows = tmp_path / "photos", ["file\tauthor\tlicence"]
    folder.mkdir()
    for number in range(12):
        size = {0: (400, 90), 1: (20, 30)}.get(number, (96, 64))
        Image.new("RGB", size, (10 * number,) * 3).save(folder / f"{number:02}.png")
        rows.append(f"{number:02}.png\tsomeone\tCC0-1.0")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    Image.new("RGB", (64, 64), (255,) * 3).save(folder / "unlisted.png")
    return folder


def test_photographs_that_are_held_out_are_not_trained_on(photos: Path, tmp_path: Path) -> None:
    trained = photo_pool(tmp_path, photos, 200, size=32)
    held = photo_pool(tmp_path, photos, 20, size=32, held_out=True)
    assert trained.shape == (200, 32, 32, 3)
    assert set(np.unique(held)) == {10 * HELD_OUT}
    assert set(np.unique(trained)) == {10 * number for number in range(12) if number != HELD_OUT}
    assert [file.name for file in photo_files(photos, held_out=True)] == [f"{HELD_OUT:02}.png"]


def test_crops_are_the_same_wherever_they_are_cut(photos: Path, tmp_path: Path) -> None:
    first, second = (photo_pool(tmp_path / name, photos, 30, size=32) for name in "ab")
    assert (first == second).all()


def test_photographs_without_licences_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"manifest\.tsv: no such file; it names file, author and licence"):
        photo_pool(tmp_path, tmp_path, 4)


def test_a_base_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    model, words, vae = base.begin(tmp_path, Images(np.zeros(0), [], np.zeros(0)), NANO / "base")
    theirs = load(str(NANO / "base"))
    mine, weights = model.unet.state_dict(), theirs.network.state_dict()
    assert mine.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in mine.items())
    assert len(words) == len(theirs.tokenizers[0])  # type: ignore[attr-defined]
    base.write(tmp_path, model, vae, base.scheduler())
    again = load(str(tmp_path))
    assert again.fingerprint.sketch == theirs.fingerprint.sketch
    assert torch.equal(again.embed(["a red box"])["context"], theirs.embed(["a red box"])["context"])


def test_validation_sees_what_a_base_has_learned() -> None:
    trained = load(str(NANO / "base"))
    latents = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.3
    losses = validation_losses(trained, latents)
    assert losses == validation_losses(trained, latents)
    assert set(losses) == {"mean", *(f"t = {level}" for level in LEVELS)}
    assert losses["mean"] == pytest.approx(sum(losses[f"t = {level}"] for level in LEVELS) / len(LEVELS))
    torch.nn.init.zeros_(trained.network.conv_out.weight)
    torch.nn.init.zeros_(trained.network.conv_out.bias)
    assert validation_losses(trained, latents)["mean"] > losses["mean"]


def test_shares_are_shares() -> None:
    assert sum(base.SHARES.values()) == sum(base.WITH_PHOTOGRAPHS.values()) == pytest.approx(1.0)


def test_latents_follow_the_images(tmp_path: Path) -> None:
    """Photographs that are added to a workspace later are encoded, although its cache is there already."""
    _, _, vae = base.begin(tmp_path, Images(np.zeros(0), [], np.zeros(0)), NANO / "base")
    some = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    cache = tmp_path / "latents.pt"
    assert set(base.cached_latents(vae, Images(some, [], some[:2]), cache, "cpu")) == {"scenes", "leaves"}
    latents = base.cached_latents(vae, Images(some, [], some[:2], some[:1]), cache, "cpu")
    assert {kind: len(rows) for kind, rows in latents.items()} == {"scenes": 3, "leaves": 2, "photographs": 1}
    assert torch.equal(latents["photographs"], latents["scenes"][:1])
