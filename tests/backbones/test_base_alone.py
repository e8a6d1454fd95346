"""--against base: the base sees its prompt and no condition."""

import numpy as np
import torch

from codi_hub.backbones.unet import FrozenBase
from codi_hub.evaluation.prompt_only import PromptOnly
from codi_hub.inference.engine import Engine


def test_it_predicts_what_the_bases_network_does(base: FrozenBase) -> None:
    torch.manual_seed(0)
    z_t, t, prompt = torch.randn(2, 4, 8, 8), torch.tensor([900, 100]), base.embed(["a red sphere", ""])
    alone = PromptOnly()
    told = alone.predict(base, z_t, t, prompt, alone.prepare(torch.rand(2, 3, 16, 16)))
    torch.testing.assert_close(told, base.unet(z_t, t, prompt).sample)


def test_its_pictures_depend_on_prompt_and_seed_alone(base: FrozenBase) -> None:
    conditions = [np.full((16, 16, 3), shade, np.float32) for shade in (0, 1, 1, 1)]
    prompts, seeds = ["", "", "a red sphere", ""], [5, 5, 5, 6]
    one, same, other_words, other_seed = Engine(base).generate(PromptOnly(), conditions, prompts, seeds, steps=2)
    np.testing.assert_allclose(one, same, atol=1e-5)
    assert not np.allclose(one, other_words, atol=1e-3)
    assert not np.allclose(one, other_seed, atol=1e-3)
