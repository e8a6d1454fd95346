"""The alternatives to slow kernels give the results of the kernels."""

import copy

import pytest
import torch
from torch import Tensor, nn

from recipes.nano import kernels
from recipes.nano.kernels import GroupNorm, replace_group_norms


def both_ways(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of input, weight and bias."""
    x = x.detach().requires_grad_()
    out = norm(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), (x, norm.weight, norm.bias))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (2, 64, 4, 4), (1, 16, 40, 40), (3, 16, 5)], ids=str)
def test_outputs_gradients_and_layout_are_those_of_pytorchs_own(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    plain = nn.GroupNorm(4, shape[1])
    nn.init.normal_(plain.weight)
    quick = copy.deepcopy(plain)
    replace_group_norms(quick)
    assert type(quick) is GroupNorm
    assert quick.state_dict().keys() == plain.state_dict().keys()
    for found, expected in zip(both_ways(quick, x), both_ways(plain, x), strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02) * expected.abs().max()
    assert quick(x).is_contiguous(memory_format=torch.channels_last) or x.ndim != 4


@pytest.mark.parametrize("native", [True, False])
def test_training_is_in_bfloat16_where_the_cpu_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "computes_bfloat16", lambda: native)
    with kernels.training_precision("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == kernels.precision("cpu") == (torch.bfloat16 if native else torch.float32)
    assert kernels.precision("cuda") == torch.bfloat16
