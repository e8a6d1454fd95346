"""What a fingerprint notices, and what it passes over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import autoencoder, parts_of, save_base, scheduler_config, stir, text_encoder, unet
from torch import nn

from codi_hub import backbones
from codi_hub.backbones.fingerprint import PART_TOLERANCE, Fingerprint, sketch
from codi_hub.backbones.unet import SKETCHED, UNetBackbone
from codi_hub.backbones.weight_sketch import MAX_BLOCKS, blocks, distances, sketch_weights
from codi_hub.errors import Mismatch

LIKE_SD: dict[str, Any] = {"layers_per_block": 2, "addition_embed_type": None}
Change = Callable[[dict[str, Any]], object]


def parts() -> dict[str, Any]:
    return {"unet": unet(**LIKE_SD), "vae": autoencoder("kl"), "text_encoder": text_encoder(190)}


def mark(base: UNetBackbone, change: Change = lambda parts: None) -> Fingerprint:
    changed = parts()
    with torch.no_grad():
        change(changed)
    return UNetBackbone(parts_of(base, scheduler_config("epsilon"), **changed)).fingerprint


def attention(parts: dict[str, Any]) -> list[nn.Parameter]:
    return [weight for name, weight in parts["unet"].named_parameters() if ".to_" in name and weight.ndim == 2]


def merge(parts: dict[str, Any], share: float) -> None:
    """Merge a LoRA of rank 2 into every attention matrix, of so large a share of its norm."""
    torch.manual_seed(7)
    for weight in attention(parts):
        delta = torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1])
        weight += share * weight.norm() / delta.norm() * delta


def scale(module: nn.Module, factor: float) -> None:
    for weight in module.parameters():
        weight *= factor


CHANGES: dict[str, tuple[Change, str]] = {
    "merged LoRA, 1.5 %": (lambda p: merge(p, 0.015), "network"),
    "attention + 50 %": (lambda p: [weight.mul_(1.5) for weight in attention(p)], "network"),
    "decoder half": (lambda p: stir(p["unet"].up_blocks, 0.003), "network"),
    "one matrix": (lambda p: stir(p["unet"].up_blocks[0].attentions[0].proj_out, 0.01), "network"),
    "text encoder": (lambda p: p.update(text_encoder=text_encoder(190, seed=9)), "text encoder"),
    "more layers of text": (lambda p: p.update(text_encoder=text_encoder(190, layers=2)), "text encoder"),
    "tuned text encoder": (lambda p: stir(p["text_encoder"], 0.001), "text encoder"),
    "autoencoder": (lambda p: stir(p["vae"].encoder, 0.005), "autoencoder"),
    "decoder": (lambda p: stir(p["vae"].decoder, 0.005), "decoder"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_part_is_watched_and_named(eps_base: UNetBackbone, name: str) -> None:
    change, part = CHANGES[name]
    mine, theirs = mark(eps_base), mark(eps_base, change)
    assert mine.family == theirs.family
    assert list(mine.differences(theirs.sketch)) == list(theirs.differences(mine.sketch)) == [part]
    if part == "decoder":
        mine.check(theirs.family, theirs.sketch)  # which latents an adapter is trained on does not depend on it
        return
    with pytest.raises(Mismatch, match=rf"of the same family {mine.family}, its {part} differs \(distance") as caught:
        mine.check(theirs.family, theirs.sketch)
    assert "\n" not in str(caught.value)
    mine.check(theirs.family, theirs.sketch, allow_fine_tune=True)


@pytest.mark.parametrize("first", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("second", [torch.float16, torch.bfloat16], ids=str)
def test_copies_in_other_precisions_are_the_same_base(
    eps_base: UNetBackbone, first: torch.dtype, second: torch.dtype
) -> None:
    def rounded(dtype: torch.dtype) -> Change:
        return lambda parts: [module.to(dtype) for module in parts.values()]

    mine, theirs = mark(eps_base, rounded(first)), mark(eps_base, rounded(second))
    assert mine.differences(theirs.sketch) == {}
    found = distances(mine.sketch, theirs.sketch)
    assert max(found.values()) < 0.7 * PART_TOLERANCE
    assert mark(eps_base, rounded(first)).sketch == mine.sketch


def test_tiny_weights_that_half_precision_flushes_do_not_count() -> None:
    weights = {"a.weight": torch.randn(64, 64) * 1e-7}
    halved = {"a.weight": weights["a.weight"].half()}
    assert distances(sketch_weights("network", weights), sketch_weights("network", halved))["network"] < 0.005


def test_a_large_matrix_is_sampled_over_all_of_it() -> None:
    weight = torch.randn(600, 700, generator=torch.Generator().manual_seed(0))
    row, column, rank = weight.clone(), weight.clone(), weight.clone()
    row[::20] *= 1.3
    column[:, :30] *= 1.3
    rank += 0.3 * torch.outer(torch.randn(600), torch.randn(700))
    mine = sketch_weights("network", {"a.weight": weight})
    for changed in (row, column, rank):
        theirs = sketch_weights("network", {"a.weight": changed})
        assert distances(mine, theirs)["network"] > 2 * PART_TOLERANCE


def test_layers_of_one_shape_that_are_swapped_are_noticed() -> None:
    q, k = torch.randn(2, 32, 32)
    mine, theirs = (sketch_weights("network", {"a.q": one, "a.k": other}) for one, other in ((q, k), (k, q)))
    assert distances(mine, theirs)["network"] > 0.1


def test_a_quantised_copy_is_compared_with_a_wider_tolerance(eps_base: UNetBackbone) -> None:
    plain = mark(eps_base)

    def quantise(parts: dict[str, Any]) -> None:
        layer = parts["unet"].up_blocks[0].attentions[0].proj_in
        weight = layer.weight.data
        small = torch.quantize_per_tensor(weight, (weight.abs().max() / 127).item(), 0, torch.qint8)
        layer.weight = nn.Parameter(small, requires_grad=False)

    copy = mark(eps_base, quantise)
    assert "quantised" in copy.sketch
    assert 0 < distances(plain.sketch, copy.sketch)["network"] < 0.05
    assert plain.differences(copy.sketch) == copy.differences(plain.sketch) == {}
    assert [*copy.differences(mark(eps_base, lambda p: stir(p["unet"], 0.1)).sketch)] == ["network"]


def test_records_of_the_first_edition_are_still_compared(eps_base: UNetBackbone) -> None:
    net = parts()["unet"]
    old = sketch(dict(net.named_parameters()), SKETCHED)
    mine = mark(eps_base)
    assert mine.differences(old) == {}
    assert [*mark(eps_base, lambda p: stir(p["unet"], 0.003)).differences(old)] == ["network"]
    row = Fingerprint(mine.family, old)  # a base's row of the first edition, and a record of today
    assert row.differences(mine.sketch) == {}


@pytest.mark.parametrize("damage", ["missing", "short", "text", "not a number"])
def test_a_damaged_sketch_does_not_pass(eps_base: UNetBackbone, damage: str) -> None:
    mine = mark(eps_base)
    block = next(name for name in mine.sketch if name.startswith("network/"))
    spoilt = dict(mine.sketch)
    if damage == "missing":
        del spoilt[block]
    else:
        spoilt[block] = {"short": [1.0], "text": [], "not a number": [float("nan")] * 7}[damage]
    assert [*mine.differences(spoilt)] == ["network"]


def test_a_sketch_of_a_large_model_stays_small() -> None:
    with torch.device("meta"):
        net = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 64),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=64,
        )  # SDXL's layers
    names = [name for name, _ in net.named_parameters()]
    assert len(names) > 1600
    assert 60 < len(set(blocks(names).values())) < 200
    many = [f"layers.{k}.mlp.{j}.weight" for k in range(300) for j in range(4)]
    assert len(set(blocks(many).values())) == 300 <= MAX_BLOCKS
    row = json.dumps([round(1 / 3, 4)] * 7, indent=1)
    assert (len(row) + 60) * MAX_BLOCKS < 200_000


@pytest.mark.slow
def test_a_base_that_changed_is_refused_with_what_changed(codi: Callable[..., Any], tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", scheduler_config("v_prediction", zero_snr=True))
    assert codi("base", "add", "tiny", folder).code == 0
    base = backbones.load(str(folder))
    stir(base.text_encoders[0], 0.01).save_pretrained(folder / "text_encoder")
    answer = codi("distill", "depth", "--base", "tiny", "--train-steps", "1")
    assert answer.code == 1
    assert "base tiny is not what was registered" in answer.err
    assert "(its text encoder differs (distance" in answer.err
