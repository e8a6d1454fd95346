"""Real tiny bases, saved once a session and loaded as any other base is."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from families import MODELS
from tiny import save_base, scheduler_config
from training import Make

from codi_hub import backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are added in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v-predicting base with zero terminal SNR, as nano is."""
    folder = tmp_path_factory.mktemp("bases") / "v"
    return save_base(folder, scheduler_config("v_prediction", zero_snr=True))


@pytest.fixture(scope="session")
def base(base_folder: Path) -> UNetBackbone:
    return backbones.load(str(base_folder))


@pytest.fixture(scope="session")
def eps_base(tmp_path_factory: pytest.TempPathFactory) -> UNetBackbone:
    """An eps-predicting base with a KL autoencoder and two layers a block, as Stable Diffusion 1.5 is."""
    folder = tmp_path_factory.mktemp("bases") / "eps"
    like_sd: dict[str, Any] = {"vae": "kl", "layers_per_block": 2, "addition_embed_type": None}
    return backbones.load(str(save_base(folder, scheduler_config("epsilon"), **like_sd)))


@pytest.fixture(scope="session")
def family_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    """The tiny base of a family, loaded once."""
    return cache(lambda family: backbones.load(str(MODELS[family](tmp_path_factory.mktemp("bases") / family))))


@pytest.fixture(params=["v", "eps"])
def any_base(
    request: pytest.FixtureRequest, base: Backbone, eps_base: Backbone, family_base: Callable[[str], Backbone]
) -> Any:
    return {"v": base, "eps": eps_base}.get(request.param) or family_base(request.param)


@pytest.fixture
def make(base: UNetBackbone, tmp_path: Path) -> Iterator[Make]:
    """Makes trainers whose checkpoint is in `tmp_path`."""
    AcceleratorState._reset_state(True)  # a command in this process may have trained in another precision
    yield Make(base, tmp_path)
    AcceleratorState._reset_state(True)
