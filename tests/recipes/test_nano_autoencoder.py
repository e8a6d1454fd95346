"""The recipe's autoencoder before training: an exactly linear encoder, and a decoder that outputs mean colours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codi_hub.data.synthetic.leaves import leaves
from recipes.nano.autoencoder import CELL, LARGEST, LATENTS, build, cells, components


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([leaves(np.random.default_rng([3, k]), 32) for k in range(24)])


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def test_latents_are_the_components_of_cells(images: np.ndarray) -> None:
    mean, basis = components([images])
    latents = build(mean, basis).encode(tensor(images)).latents
    expected = ((cells(images) - mean) @ basis.T).reshape(len(images), 8, 8, LATENTS).permute(0, 3, 1, 2)
    assert torch.allclose(latents, expected, atol=1e-5)
    deviations = latents.std((0, 2, 3))
    assert deviations[0] == pytest.approx(LARGEST, rel=0.01)
    assert (deviations.diff() < 1e-4).all()
    uncorrelated = torch.corrcoef(latents.transpose(0, 1).flatten(1)) - torch.eye(LATENTS)
    assert uncorrelated.abs().max() < 1e-3


@torch.no_grad()
def test_the_decoder_initially_outputs_the_mean_colour_of_every_cell(images: np.ndarray) -> None:
    model = build(*components([images]))
    given = tensor(images)
    flat = F.interpolate(F.avg_pool2d(given, CELL), scale_factor=CELL)
    errors = [(model(given).sample - target).square().mean() for target in (flat, torch.zeros_like(flat))]
    assert errors[0] < 0.1 * errors[1]


def test_only_the_decoder_is_trained(images: np.ndarray) -> None:
    trained = {name for name, value in build(*components([images])).named_parameters() if value.requires_grad}
    assert trained
    assert all(name.startswith("decoder.") for name in trained)
