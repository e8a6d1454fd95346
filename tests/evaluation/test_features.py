"""The feature network: what it computes, how it is kept, and how another takes its place."""

import json
from pathlib import Path

import pytest
import torch

from codi_hub.errors import InvalidInput, NotFound
from codi_hub.evaluation import features
from codi_hub.evaluation.features import FeatureNet, load_features, save_features


class Other(torch.nn.Module):
    """A network of another make, as one would put Inception or VGG behind the same call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        maps = self.conv(2 * images - 1)
        return [maps, maps[:, :2]], maps.mean((2, 3))


class OnlyVectors(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def scripted(path: Path, module: torch.nn.Module) -> Path:
    torch.jit.save(torch.jit.script(module), path)
    return path


def test_it_takes_pictures_of_any_size_and_is_small() -> None:
    network = FeatureNet()
    maps, pooled = network(torch.rand(2, 3, 48, 80))
    assert [tuple(m.shape[2:]) for m in maps] == [(48, 80), (24, 40), (12, 20), (6, 10), (3, 5)]
    assert pooled.shape == (2, 128)
    assert torch.allclose(pooled, maps[-1].mean((2, 3)))
    assert 0.5e6 < sum(p.numel() for p in network.parameters()) < 1.5e6


def test_a_feature_depends_on_its_surroundings_alone() -> None:
    network = FeatureNet()
    image = torch.rand(1, 3, 256, 256)
    changed = image.clone()
    changed[..., 192:] = 0
    with torch.no_grad():
        before, after = (network(one)[0][-1] for one in (image, changed))
    assert torch.equal(before[..., :6], after[..., :6])
    assert not torch.equal(before, after)


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    network = FeatureNet(widths=(4, 6), pooled=3)
    save_features(tmp_path / "net", network, "# A card\n")
    loaded = load_features(tmp_path / "net")
    assert loaded is not None
    assert loaded.name.startswith("net, sha256 ")
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images)[1], network(images)[1].detach(), rtol=1e-2, atol=1e-2)  # kept in 16 bit
    assert (tmp_path / "net" / "README.md").read_text() == "# A card\n"


def test_without_a_bundled_network_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BUNDLED", tmp_path)
    assert load_features() is None
    save_features(tmp_path, FeatureNet(widths=(4, 6), pooled=3), "")
    bundled = load_features()
    assert bundled is not None
    assert bundled.name.startswith("bundled, sha256 ")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_network_takes_its_place_as_torchscript(tmp_path: Path) -> None:
    other = Other()
    loaded = load_features(scripted(tmp_path / "other.pt", other))
    assert loaded is not None
    images = torch.rand(2, 3, 64, 64)
    maps, pooled = loaded(images)
    assert [m.shape[1] for m in maps] == [5, 2]
    assert torch.allclose(pooled, other(images)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_feature_network_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"features .*nowhere: no such file or folder"):
        load_features(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"not a feature network \(config.json and features.safetensors\)"):
        load_features(tmp_path)
    (tmp_path / "noise.pt").write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match=r"noise\.pt: not a TorchScript file"):
        load_features(tmp_path / "noise.pt")
    with pytest.raises(InvalidInput, match=r"vectors\.pt: (must return \(maps, vectors\)|fails on 64 px images)"):
        load_features(scripted(tmp_path / "vectors.pt", OnlyVectors()))
    save_features(tmp_path / "net", FeatureNet(widths=(4, 6), pooled=3), "")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | {"pooled": 7}))
    with pytest.raises(InvalidInput, match="not a feature network"):
        load_features(tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | {"format_version": 9}))
    with pytest.raises(InvalidInput, match="format version 9, supported: 1"):
        load_features(tmp_path / "net")
