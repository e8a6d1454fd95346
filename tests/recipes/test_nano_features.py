"""The recipe of the feature network: views, targets, folded normalisation, and the files it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation.features import FeatureNet, load_features
from codi_hub.registry.bundled import Manifest
from recipes.nano import bundle, features


def test_degradations_have_their_strengths() -> None:
    image = scene(np.random.default_rng(1), 64).image.astype(np.float32) / 255
    rng = np.random.default_rng(2)
    strengths = np.stack([features.strengths(rng) for _ in range(300)])
    found = [(features.degrade(image, told, rng), told) for told in strengths]
    assert np.allclose((strengths > 0).mean(0), features.ODDS, atol=0.12)
    untouched = [np.array_equal(view, image) for view, _ in found]
    assert untouched == (strengths.sum(1) == 0).tolist()
    blur, noise = (features.DEGRADATIONS.index(name) for name in ("blur", "noise"))
    only = {k: [v for v, told in found if told[k] > 0.5 and told.sum() == told[k]] for k in (blur, noise)}
    assert all(only.values())
    rough = {k: [np.abs(np.diff(v, axis=1)).mean() for v in views] for k, views in only.items()}
    plain = np.abs(np.diff(image, axis=1)).mean()
    assert all(value < plain for value in rough[blur])
    assert all(value > plain for value in rough[noise])


def test_views_of_a_batch_are_reproducible_and_a_batch_apart() -> None:
    images = [np.full((128, 128, 3), shade, np.uint8) for shade in (40, 210)]
    views, strengths = features.batch(images, np.random.default_rng(3))
    again, _ = features.batch(images, np.random.default_rng(3))
    assert torch.equal(views, again)
    assert views.shape == (4, 3, 64, 64)
    assert strengths.shape == (4, len(features.DEGRADATIONS))
    assert torch.equal(strengths[:2], strengths[2:])
    assert (views.mean((1, 2, 3)) > 0.5).tolist() == [False, True, False, True]


def test_the_contrastive_loss_is_least_where_views_of_one_image_agree() -> None:
    pairs = torch.eye(4).repeat(2, 1)
    assert features.same(pairs) < 0.01
    assert features.same(pairs.roll(1, 0)[:4].repeat(2, 1)) < 0.01  # any names will do
    crossed = torch.cat([torch.eye(4), torch.eye(4).roll(1, 0)])
    assert features.same(crossed) > 5


def test_the_vocabulary_distinguishes_captions() -> None:
    captions = ["a red box"] * 30 + ["a green box"] * 68 + ["a rare cone"]
    words = features.vocabulary(captions)
    assert words == ["red"]  # green, a and box are nearly everywhere, rare and cone nowhere
    assert features.bag_of_words(captions, words)[[0, 40]].tolist() == [[1.0], [0.0]]


def test_folding_the_normalisation_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    net = features.normalised(FeatureNet(widths=(4, 6), pooled=5))
    images = torch.rand(8, 3, 32, 32)
    for _ in range(20):
        net(images)
    net.eval()
    with torch.no_grad():
        before = net(images)
        plain = features.folded(net)
        after = plain(images)
    torch.testing.assert_close(after[1], before[1])
    assert FeatureNet(widths=(4, 6), pooled=5).state_dict().keys() == plain.state_dict().keys()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace after the stage has run for two steps on a few images."""
    monkeypatch.setattr(features, "HELD_OUT", 8)
    monkeypatch.setattr(features, "BATCH", 4)
    clock = iter(range(10_000))
    monkeypatch.setattr("recipes.nano.stage.time.monotonic", lambda: 10.0 * next(clock))
    made = [scene(np.random.default_rng([4, k]), 64) for k in range(16)]
    images = np.stack([one.image for one in made])
    features.run(tmp_path, images, [one.caption for one in made], images, minutes=1)
    return tmp_path


def test_the_stage_writes_a_network_that_can_be_loaded_and_its_card(workspace: Path) -> None:
    loaded = load_features(workspace / "features")
    assert loaded is not None
    maps, pooled = loaded(torch.rand(2, 3, 64, 64))
    assert len(maps) == 5
    assert pooled.isfinite().all()
    card = (workspace / "features" / "README.md").read_text()
    assert "not FID and not" in card
    assert "8 dead-leaves images and 8\nrendered scenes" in card
    assert "{" not in card


def test_the_network_is_bundled_with_its_files_in_the_manifest(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "package" / "nano"
    root.mkdir(parents=True)
    (root / "manifest.json").write_text(
        json.dumps({"base": {"name": "nano", "path": "b", "files": {}}, "adapters": []})
    )
    monkeypatch.setattr(bundle, "ROOT", root)
    bundle.add_features(workspace)
    bundle.add_features(workspace)
    manifest = Manifest.load(root)
    assert manifest is not None
    assert [path.relative_to(root).as_posix() for path, _ in manifest.files()] == [
        "features/README.md", "features/config.json", "features/features.safetensors",
    ]  # fmt: skip
    assert load_features(root / "features") is not None
