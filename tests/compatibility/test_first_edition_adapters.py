"""Adapter folders written by version 0.1.0 load, and generate what they generated then."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codi_hub import backbones
from codi_hub.adapters import format
from codi_hub.backbones.backbone import Backbone
from codi_hub.inference.engine import Engine, Request, Sampling

FIRST = Path(__file__).parent / "first_edition"
FORMS = sorted(path.name for path in (FIRST / "adapters").iterdir())
WAYS = {
    "1": Sampling(steps=1),
    "4": Sampling(steps=4),
    "dpmpp": Sampling(steps=3, sampler="dpmpp", temperature=0.7),
    "renoise": Sampling(steps=3, sampler="renoise"),
}


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return backbones.load(str(FIRST / "base"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_it_loads_and_generates_the_same_images(tiny: Backbone, form: str, way: str) -> None:
    folder = FIRST / "adapters" / form
    record = format.read_record(folder / "adapter.json")
    adapter = format.load(folder / "adapter.safetensors", record, tiny)
    conditions = np.load(FIRST / "conditions.npy")
    requests = [Request(conditions[k], adapter, text, 3 + k) for k, text in enumerate(("a red ball", ""))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = Engine(tiny).generate(requests, WAYS[way]).images
    torch.set_num_threads(threads)
    expected = np.load(FIRST / "expected.npz")[f"{form}/{way}"]
    assert np.abs(np.stack(images) - expected).max() < 2e-5
