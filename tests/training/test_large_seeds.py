"""Seeds up to the largest one give a generator for every random stream."""

import pytest
import torch

from codi_hub import seeds
from codi_hub.config.values import MAX_SEED


@pytest.mark.parametrize("stream", [seeds.training_noise, seeds.training_order, seeds.shared_time, seeds.rollout_path])
def test_every_stream_takes_every_seed(stream):
    drawn = {
        torch.rand(1, generator=stream(seed, 5)).item() for seed in (0, 1, 2**63 - 1, 2**63, MAX_SEED - 1, MAX_SEED)
    }
    assert len(drawn) == 6


def test_small_seeds_are_as_before():
    expected = torch.rand(1, generator=torch.Generator().manual_seed(7 * 1_000_003 + 5))
    assert torch.equal(torch.rand(1, generator=seeds.training_noise(7, 5)), expected)
