"""What sets the kinds `lora` and `static` apart; what they share with the others is in `test_adapters`."""

import copy

import numpy as np
import pytest
import torch
from tiny import stir, unet, with_unet
from torch import nn

from codi_hub import adapters
from codi_hub.adapters.lora import LoraAdapter
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine
from codi_hub.losses.codi import update_ema


def inputs(base: FrozenBase) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(z_t, t, prompt, condition)."""
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(2, 4, 8, 12, generator=generator)
    return z_t, torch.tensor([999, 300]), base.embed(["a red ball", ""]), torch.rand(2, 3, 16, 24, generator=generator)


# ---- lora


def convolution(adapter: nn.Module) -> nn.Module:
    return adapter.encoder.down_blocks[0].resnets[0].conv1.base_layer


def test_lora_is_made_of_the_bases_own_tensors_and_so_are_its_copies(base: FrozenBase) -> None:
    adapter = adapters.build("lora", base)
    theirs = base.unet.down_blocks[0].resnets[0].conv1.weight
    twin = copy.deepcopy(adapter)
    assert convolution(adapter).weight is theirs
    assert convolution(twin).weight is theirs
    stored = {value.data_ptr() for value in base.parameters()}
    for one in (adapter, twin):
        assert not stored & {value.data_ptr() for value in one.state_dict().values()}
    mine = {value.data_ptr() for value in adapter.parameters()}
    assert not mine & {value.data_ptr() for value in twin.parameters()}


def test_what_is_done_to_a_lora_adapter_is_not_done_to_the_base(base: FrozenBase) -> None:
    before = {name: value.clone() for name, value in base.named_parameters()}
    adapter, twin = adapters.build("lora", base), adapters.build("lora", base)
    update_ema(twin, stir(adapter), 0.5)
    adapter.to(torch.bfloat16)
    twin.load_state_dict(adapter.state_dict())
    for name, value in base.named_parameters():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def test_lora_sees_a_base_that_moves(base: FrozenBase) -> None:
    """Both hold one tensor: what the base becomes, the encoder is made of."""
    own = copy.deepcopy(base)
    adapter = adapters.build("lora", own)
    own.half()
    assert convolution(adapter).weight.dtype == torch.float16


def test_lora_leaves_its_own_layers_as_they_are(base: FrozenBase) -> None:
    """The stem and the fusion are trained themselves, and have no deltas."""
    adapter = adapters.build("lora", base)
    own = {name.split(".")[1] for name, _ in adapter.named_parameters() if "lora_" not in name}
    changed = {name.split(".")[1] for name, _ in adapter.named_parameters() if "lora_" in name}
    assert own == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}
    assert changed == {"conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"}


@pytest.mark.parametrize("rank", [1, 4])
def test_a_rank_says_how_large_the_deltas_are(base: FrozenBase, rank: int) -> None:
    adapter = adapters.build("lora", base, rank=rank)
    deltas = [value for name, value in adapter.named_parameters() if "lora_A" in name]
    assert {len(value) for value in deltas} == {rank}
    assert adapter.config["rank"] == rank


@pytest.mark.parametrize("rank", [0, -1, 10**6, 2.5, True])
def test_an_impossible_rank_is_refused(base: FrozenBase, rank: object) -> None:
    with pytest.raises(UsageError, match="a number from 1 to 1024"):
        LoraAdapter(base, rank=rank)


def test_many_lora_adapters_hold_little_beside_one_control(eps_base: FrozenBase) -> None:
    def own(kind: str) -> int:
        return sum(
            value.numel()
            for value in adapters.build(kind, eps_base, **{"rank": 1} if kind == "lora" else {}).parameters()
        )

    assert 3 * own("lora") < own("control")


# ---- static


def test_static_runs_its_encoder_once_for_all_steps_and_never_sees_the_text(base: FrozenBase) -> None:
    adapter = stir(adapters.build("static", base)).eval()
    calls: list[str] = []
    for name, part in (("conditional", adapter.encoder.mid_block), ("base", base.unet.mid_block)):
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    condition = [np.random.default_rng(0).random((16, 24, 3), np.float32)]
    Engine(base).generate(adapter, condition, ["a red ball"], [1], steps=4)
    assert calls == ["conditional"] + ["base"] * 4
    z_t, t, prompt, images = inputs(base)
    with torch.no_grad():
        kept = adapter.prepare(images)
        assert not torch.equal(
            adapter.predict(base, z_t, t, prompt, kept), adapter.predict(base, z_t, t, prompt.flip(0), kept)
        )  # the base still does


@pytest.mark.parametrize("only_cross_attention", [False, True])
def test_static_holds_nothing_that_attends_to_text(base: FrozenBase, only_cross_attention: bool) -> None:
    other = with_unet(base, unet(only_cross_attention=only_cross_attention))
    adapter = stir(adapters.build("static", other))
    assert not [name for name, _ in adapter.named_parameters() if "attn2" in name]
    seeing_itself = [name for name, _ in adapter.encoder.down_blocks.named_parameters() if "attn1" in name]
    assert bool(seeing_itself) is not only_cross_attention
    with torch.no_grad():
        assert adapter(other, *inputs(other)).isfinite().all()


def test_a_static_adapter_weighs_every_channel_by_the_time(any_base: FrozenBase) -> None:
    adapter = stir(adapters.build("static", any_base))
    emb = torch.randn(2, adapter.gain.in_features)
    z_t, t, prompt, condition = inputs(any_base)
    with torch.no_grad():
        kept = adapter.prepare(condition)
        assert [level.shape[1] for level in kept] == adapter.widths
        ones = [torch.ones(2, width, 1, 1) for width in adapter.widths]
        fused = adapter.conditioned(emb, [one * 0 for one in ones], z_t, t, prompt, ones)
        expected = adapter.gain(nn.functional.silu(emb))
    assert torch.allclose(torch.cat(fused, dim=1)[:, :, 0, 0], expected)


@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_without_a_gain_every_time_gets_the_same(base: FrozenBase, fusion: str) -> None:
    adapter = stir(adapters.build("static", base, fusion=fusion, gain=False))
    assert not [name for name, _ in adapter.named_parameters() if "gain" in name]
    z_t, t, prompt, condition = inputs(base)
    with torch.no_grad():
        kept = adapter.prepare(condition)
        levels = [torch.randn_like(level) for level in kept]
        early, late = (adapter.conditioned(emb, levels, z_t, t, prompt, kept) for emb in torch.randn(2, 2, 8))
    assert all(torch.equal(a, b) for a, b in zip(early, late, strict=True))


# ---- several in one batch


KINDS = [kind for kind in adapters.KINDS.names() if kind != "full"]


@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_adapters_of_all_kinds_share_a_batch_and_each_makes_what_it_makes_alone(base: FrozenBase, fusion: str) -> None:
    torch.manual_seed(0)
    forms = [{"fusion": fusion} if kind != "residual" else {"levels": 2, "blocks": 1, "read": True} for kind in KINDS]
    made = [
        stir(adapters.build(kind, base, condition_channels=k + 1, **form)).eval()
        for k, (kind, form) in enumerate(zip(KINDS, forms, strict=True))
    ]
    rng = np.random.default_rng(0)
    order = [0, 2, 1, 0, 3]
    conditions = [rng.random((16, 24, k + 1), np.float32) for k in order]
    prompts, seeds = ["a", "b", "", "a red ball", "c"], [1, 2, 3, 4, 5]
    calls: list[int] = []
    hook = base.unet.mid_block.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    together = Engine(base).generate(MixedBatch([made[k] for k in order]), conditions, prompts, seeds, steps=4)
    hook.remove()
    assert calls == [5] * 4
    for row, (k, *own) in enumerate(zip(order, conditions, prompts, seeds, strict=True)):
        alone = Engine(base).generate(made[k], *([one] for one in own), steps=4)[0]
        assert np.abs(together[row] - alone).max() < 1e-4
    assert np.abs(together[0] - together[3]).max() > 1e-3


def test_a_full_adapter_shares_no_batch(base: FrozenBase) -> None:
    with pytest.raises(UsageError, match="kind full brings its own network"):
        MixedBatch([adapters.build("control", base), adapters.build("full", base)])
