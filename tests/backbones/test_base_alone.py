"""The base without an adapter: it sees its prompt and no condition."""

import numpy as np
import torch

from codi_hub.adapters.base_only import BaseOnly
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.inference.engine import Engine, Request, Sampling


def test_it_predicts_what_the_bases_network_does(base: UNetBackbone) -> None:
    torch.manual_seed(0)
    z_t, t, prompt = torch.randn(2, 4, 8, 8), torch.tensor([0.901, 0.101]), base.embed(["a red sphere", ""])
    alone = BaseOnly(base)
    found = alone.predict(base, z_t, t, prompt, alone.prepare(base, torch.rand(2, 3, 16, 16), prompt))
    expected = base.unet(z_t, torch.tensor([900, 100]), prompt["context"]).sample
    torch.testing.assert_close(found, expected)


def test_its_images_depend_on_prompt_and_seed_alone(base: UNetBackbone) -> None:
    alone = BaseOnly(base)
    requests = [
        Request(np.full((16, 16, 3), shade, np.float32), alone, prompt, seed)
        for shade, prompt, seed in [(0, "", 5), (1, "", 5), (1, "a red sphere", 5), (1, "", 6)]
    ]
    one, same, other_words, other_seed = Engine(base).generate(requests, Sampling(steps=2)).images
    np.testing.assert_allclose(one, same, atol=1e-5)
    assert not np.allclose(one, other_words, atol=1e-3)
    assert not np.allclose(one, other_seed, atol=1e-3)
