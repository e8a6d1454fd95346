"""Muon: updates with equal singular values for matrices, AdamW for the rest, and no step with infinite gradients."""

import copy

import pytest
import torch
from torch import nn

from recipes.nano.muon import RMS, Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (64, 288), (288, 64), (1, 16), (16, 1)], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int], scale: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    turned = orthogonal(matrix)
    values = torch.linalg.svdvals(turned)
    assert turned.shape == matrix.shape
    assert values.max() < 1.3
    assert (values > 0.6).float().mean() > 0.85  # the smallest of a square matrix take more iterations
    assert (turned * matrix).sum() > 0.6 * torch.linalg.svdvals(matrix).sum()


def test_a_zero_matrix_stays_zero() -> None:
    assert orthogonal(torch.zeros(4, 6)).abs().max() == 0


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 4, bias=False))


def test_vectors_move_as_with_adamw_and_matrices_by_steps_of_its_size() -> None:
    nets = small(), small()
    makers = Muon, torch.optim.AdamW
    optimisers = [make(net.parameters(), lr=1e-3, weight_decay=0.01) for make, net in zip(makers, nets, strict=True)]
    before = copy.deepcopy(nets[0])
    x = torch.randn(5, 3, 3, 3)
    for net, optimiser in zip(nets, optimisers, strict=True):
        net(x).square().sum().backward()
        optimiser.step()
    for (name, mine), adamw, was in zip(
        nets[0].named_parameters(), nets[1].parameters(), before.parameters(), strict=True
    ):
        if mine.ndim < 2:
            assert torch.equal(mine, adamw), name
            continue
        size = (mine - 0.99999 * was).square().mean().sqrt().item()
        rank = min(was.shape[0], was.flatten(1).shape[1])
        expected = 1e-3 * RMS * (rank / was.shape[0] / was.flatten(1).shape[1] * max(was.flatten(1).shape)) ** 0.5
        assert size == pytest.approx(expected, rel=0.25), name
        assert mine.grad is None


def test_the_layout_of_a_weight_changes_nothing() -> None:
    plain, last = small(), small().to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 3, 3)
    for net in (plain, last):
        optimiser = Muon(net.parameters(), lr=1e-2)
        for _ in range(3):
            net(x).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    assert torch.allclose(plain[0].weight, last[0].weight, atol=1e-3)


def test_fp16_gradients_that_are_not_finite_are_skipped() -> None:
    net = small()
    optimiser = Muon(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy(net.state_dict())
    scaler.scale(net(torch.randn(2, 3, 3, 3)).sum() * torch.inf).backward()
    scaler.step(optimiser)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
