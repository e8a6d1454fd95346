"""What sets the kind `lora` apart: the base's own tensors in modules of its own, with deltas."""

import copy

import pytest
import torch
from kinds import built
from tiny import stir
from torch import nn

from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError
from codi_hub.training.trainer import update_ema


def convolution(adapter: nn.Module) -> nn.Module:
    return adapter.encoder.down_blocks[0].resnets[0].conv1.base_layer


@pytest.mark.slow
def test_lora_shares_the_bases_own_tensors_and_so_do_its_copies(base: UNetBackbone) -> None:
    adapter = built(base, "lora")
    theirs = base.unet.down_blocks[0].resnets[0].conv1.weight
    twin = copy.deepcopy(adapter)
    assert convolution(adapter).weight is theirs
    assert convolution(twin).weight is theirs
    stored = {value.data_ptr() for value in base.parameters()}
    for one in (adapter, twin):
        assert not stored & {value.data_ptr() for value in one.state_dict().values()}
    own = {value.data_ptr() for value in adapter.parameters()}
    assert not own & {value.data_ptr() for value in twin.parameters()}


def test_what_is_done_to_a_lora_adapter_is_not_done_to_the_base(base: UNetBackbone) -> None:
    before = {name: value.clone() for name, value in base.named_parameters()}
    adapter, twin = built(base, "lora"), built(base, "lora")
    update_ema(twin, stir(adapter), 0.5)
    adapter.to(torch.bfloat16)
    twin.load_state_dict(adapter.state_dict())
    for name, value in base.named_parameters():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def test_lora_follows_a_base_that_is_cast(base: UNetBackbone) -> None:
    """Both hold one tensor: what the base becomes, the encoder consists of."""
    own = copy.deepcopy(base)
    adapter = built(own, "lora")
    own.half()
    assert convolution(adapter).weight.dtype == torch.float16


def test_stem_and_fusion_are_trained_themselves_and_have_no_deltas(base: UNetBackbone) -> None:
    adapter = built(base, "lora")
    own = {name.split(".")[1] for name, _ in adapter.named_parameters() if "lora_" not in name}
    changed = {name.split(".")[1] for name, _ in adapter.named_parameters() if "lora_" in name}
    assert own == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}
    assert changed == {"conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"}


@pytest.mark.parametrize("rank", [1, 4])
def test_the_rank_is_that_of_every_delta(base: UNetBackbone, rank: int) -> None:
    adapter = built(base, "lora", rank=rank)
    deltas = [value for name, value in adapter.named_parameters() if "lora_A" in name]
    assert {len(value) for value in deltas} == {rank}
    assert adapter.config["rank"] == rank


@pytest.mark.parametrize("rank", [0, -1, 10**6, 2.5, True])
def test_an_impossible_rank_is_refused(base: UNetBackbone, rank: object) -> None:
    with pytest.raises(UsageError, match=r"adapter\.rank .+: (at least 1|at most 1024|a whole number)$"):
        built(base, "lora", rank=rank)


def test_a_random_encoder_is_not_trained(base: UNetBackbone) -> None:
    with pytest.raises(UsageError, match="init random: kind lora shares the base's weights; use kind control"):
        built(base, "lora", init="random").settings.check_trainable()


def test_several_lora_adapters_have_fewer_parameters_than_one_control(eps_base: UNetBackbone) -> None:
    lora, control = built(eps_base, "lora", rank=1), built(eps_base, "control")
    assert 3 * sum(v.numel() for v in lora.parameters()) < sum(v.numel() for v in control.parameters())
