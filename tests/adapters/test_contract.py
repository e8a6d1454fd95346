"""The contract of every adapter kind in `KINDS`: what the engine and the trainer rely on, whatever the kind."""

import copy
import json
from typing import Any

import pytest
import torch
from inputs import HEIGHT, WIDTH, inputs
from kinds import built, every_kind, everywhere, fitted, in_every_family, trained, trained_everywhere
from tiny import stir
from torch import Tensor
from walks import distance

from codi_hub import adapters
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.adapters.skeleton import skeleton
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Residuals
from codi_hub.errors import UsageError

# a bias of attention keys shifts every logit of a softmax alike: its gradient is zero but for rounding; SD3's branch is
# given no pooled text
EXEMPT_FROM_MOVING = ("k_proj.bias", "encoder.time_text_embed.text_embedder.linear_1.weight")
# tensors whose result is not used: the text stream of the last block, of an SD3 base's and of its and FLUX's branch
DEAD_ENDS = {("sd3", "control"): 9, ("sd3", "full"): 12, ("flux", "control"): 9, ("flux", "full"): 9}


@everywhere
def test_an_adapter_at_initialisation_is_the_base_bit_for_bit(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    adapter = built(any_base, kind, **form)
    z_t, t, prompt, condition = inputs(any_base)
    with torch.no_grad():
        expected = any_base.predict(z_t, t, prompt)
        assert torch.equal(any_base.own_prediction(z_t, t, prompt), expected)
        assert torch.equal(adapter(any_base, z_t, t, prompt, condition), expected)
        assert not torch.equal(stir(adapter)(any_base, z_t, t, prompt, condition), expected)


@pytest.mark.slow
@trained_everywhere
def test_three_optimiser_steps_move_every_tensor_and_leave_the_base(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    """The fusion starts at zero, so the layers behind it follow one step later; of a LoRA delta B A, so does B."""
    adapter = built(any_base, kind, **form)
    adapter.settings.check_trainable()
    before = {name: value.clone() for name, value in adapter.named_parameters()}
    frozen = {name: value.clone() for name, value in any_base.named_parameters()}
    optimiser = torch.optim.AdamW(adapter.parameter_groups(1e-4), weight_decay=0.0)
    batch = inputs(any_base)
    for _ in range(3):
        optimiser.zero_grad()
        (adapter(any_base, *batch) - 1).square().mean().backward()
        optimiser.step()
    moving = {name: value for name, value in adapter.named_parameters() if value.requires_grad}
    still = [name for name, value in moving.items() if torch.equal(value, before[name])]
    assert [name for name in still if not name.endswith(EXEMPT_FROM_MOVING)] == []
    assert len(before) - len(moving) == DEAD_ENDS.get((any_base.family, kind), 0)
    assert all(value.dtype == torch.float32 and value.grad is not None for value in moving.values())
    in_groups = [id(value) for group in optimiser.param_groups for value in group["params"]]
    assert sorted(in_groups) == sorted(id(value) for value in adapter.parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in any_base.named_parameters())


@pytest.mark.slow
@fitted
def test_the_loss_halves_in_60_steps_where_everything_is_fixed(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    adapter, batch = built(any_base, kind, **form), inputs(any_base)
    generator, schedule = torch.Generator().manual_seed(7), any_base.schedule_for(HEIGHT, WIDTH)
    x, eps = (torch.randn(batch.z_t.shape, generator=generator) for _ in range(2))
    batch = batch._replace(z_t=schedule.add_noise(x, eps, batch.t))
    optimiser, losses = torch.optim.AdamW(adapter.parameter_groups(1e-2)), list[float]()
    for _ in range(60):
        loss = (adapter(any_base, *batch) - schedule.prediction(x, eps, batch.t)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
@in_every_family
def test_steps_need_the_condition_only_as_prepared(
    any_base: Backbone, kind: str, form: dict[str, Any], channels: int
) -> None:
    adapter = trained(any_base, kind, condition_channels=channels, **form)
    z_t, t, prompt, condition = inputs(any_base, channels)
    with torch.no_grad():
        prepared = adapter.prepare(any_base, condition, prompt)
        assert all(len(part) == len(z_t) for part in prepared)
        once = adapter.predict(any_base, z_t, t, prompt, prepared)
        assert once.shape == z_t.shape
        assert torch.equal(once, adapter.predict(any_base, z_t, t, prompt, prepared))
        assert torch.equal(once, adapter(any_base, z_t, t, prompt, condition))
        assert (once - adapter(any_base, z_t, t, prompt, 1 - condition)).abs().max() > 1e-4


@pytest.mark.slow
@everywhere
def test_a_row_depends_on_its_own_arguments_alone(any_base: Backbone, kind: str, form: dict[str, Any]) -> None:
    adapter = trained(any_base, kind, **form)
    whole = inputs(any_base, count=3)
    z_t, t, prompt, condition = (copy.deepcopy(value) for value in whole)
    z_t[1], t[1], prompt["context"][1], condition[1] = -z_t[1], 0.05, -prompt["context"][1], 1 - condition[1]
    with torch.no_grad():
        before, after = adapter(any_base, *whole), adapter(any_base, z_t, t, prompt, condition)
        alone = torch.cat([adapter(any_base, *whole.row(k)) for k in range(3)])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] - after[1]).abs().max() > 1e-3
    assert distance(before, alone) < 1e-5


@pytest.mark.slow
@in_every_family
def test_rows_with_adapters_of_their_own_are_what_they_are_alone(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    adapter = trained(any_base, kind, **form)
    other = stir(trained(any_base, "control", condition_channels=1), seed=5)
    if not adapter.adds_residuals:
        with pytest.raises(UsageError, match=f"kind {kind} .*shares no batch"):
            MixedBatch([adapter, other])
        return
    whole, strength = inputs(any_base, count=3), torch.tensor([1.0, 0.5, 0.25])
    rows, conditions = [adapter, other, adapter], [whole.condition[k : k + 1] for k in range(3)]
    conditions[1] = conditions[1][:, :1]
    mixed = MixedBatch(rows)
    with torch.no_grad():
        prepared = mixed.prepare(any_base, conditions, whole.prompt)
        together = mixed.predict(any_base, whole.z_t, whole.t, whole.prompt, prepared, strength)
        for k, (own, condition) in enumerate(zip(rows, conditions, strict=True)):
            z_t, t, prompt, _ = whole.row(k)
            alone = own.predict(any_base, z_t, t, prompt, own.prepare(any_base, condition, prompt), strength[k : k + 1])
            assert torch.allclose(together[k : k + 1], alone, atol=1e-5)


@pytest.mark.slow
@everywhere
def test_strength_0_is_the_base_and_1_the_adapter_bit_for_bit(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    adapter = trained(any_base, kind, **form)
    z_t, t, prompt, condition = inputs(any_base)

    def predict(strength: list[float] | None) -> Tensor:
        prepared = adapter.prepare(any_base, condition, prompt)
        return adapter.predict(any_base, z_t, t, prompt, prepared, None if strength is None else torch.tensor(strength))

    with torch.no_grad():
        if not adapter.scalable:
            with pytest.raises(UsageError, match=f"kind {kind} has no strength"):
                predict([0.5, 0.5])
            return
        whole, none = predict(None), any_base.predict(z_t, t, prompt)
        assert torch.equal(predict([0.0, 0.0]), none)
        assert torch.equal(predict([1.0, 1.0]), whole)
        first, second = predict([0.0, 1.0])
        assert torch.equal(first, none[0])
        assert torch.equal(second, whole[1])
        assert not torch.equal(whole, none)


@every_kind
def test_strength_scales_the_residuals_of_each_row(base: UNetBackbone, kind: str) -> None:
    adapter = trained(base, kind)
    if not adapter.adds_residuals:
        pytest.skip(f"kind {kind} brings its own network")
    z_t, t, prompt, condition = inputs(base)
    strength = torch.tensor([0.5, 0.25])
    with torch.no_grad():
        prepared, state = adapter.prepare(base, condition, prompt), base.state(z_t, t, prompt)
        whole = adapter.residuals(base, state, z_t, t, prompt, prepared)
        scaled = Residuals({name: value * strength.view(2, 1, 1, 1) for name, value in whole.tensors.items()})
        expected = base.predict(z_t, t, prompt, residuals=scaled)
        assert torch.equal(adapter.predict(base, z_t, t, prompt, prepared, strength), expected)
        assert not torch.equal(adapter.predict(base, z_t, t, prompt, prepared), expected)


@pytest.mark.slow
@in_every_family
def test_a_config_makes_a_round_trip_through_json(any_base: Backbone, kind: str, form: dict[str, Any]) -> None:
    adapter = built(any_base, kind, condition_channels=4, start=0.5, start_noise=0.25, **form)
    config = json.loads(json.dumps(adapter.config))
    again = built(any_base, kind, **config)
    assert again.config == adapter.config == config
    assert {"condition_channels": 4, "start": 0.5, "start_noise": 0.25}.items() <= config.items()
    shapes = {name: value.shape for name, value in adapter.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    again.load_state_dict(stir(adapter).state_dict())
    batch = inputs(any_base, 4)
    with torch.no_grad():
        assert torch.equal(again(any_base, *batch), adapter(any_base, *batch))


WRONG = {
    "no such setting": {"size": 1},
    "no channels": {"condition_channels": 0},
    "too many channels": {"condition_channels": 10**15},
    "channels as text": {"condition_channels": "3\n\x1b[2J" * 50},
    "channels as a truth value": {"condition_channels": True},
    "no start": {"start": 0.0},
    "a start after the end": {"start": 1.1},
    "a start that is no number": {"start": float("nan")},
    "more noise than there is": {"start": 0.5, "start_noise": 1.1},
}


@pytest.mark.parametrize("case", WRONG)
@every_kind
def test_a_setting_that_cannot_be_is_refused_in_one_line_with_its_name(
    base: UNetBackbone, kind: str, case: str
) -> None:
    with pytest.raises(UsageError) as caught:
        adapters.build(kind, base, **WRONG[case])
    message = str(caught.value)
    assert message.startswith(f"adapter.{[*WRONG[case]][-1]}")
    assert "--" not in message
    assert message.isprintable()
    assert len(message) < 300


def test_an_unknown_kind_is_refused_with_those_there_are(base: UNetBackbone) -> None:
    with pytest.raises(UsageError, match="no adapter kind 'pickle': one of control, lora, concat, static, "):
        adapters.build("pickle", base)


@pytest.mark.slow
@in_every_family
def test_a_skeleton_has_the_shapes_of_an_adapter_and_no_memory(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    bones, adapter = skeleton(kind, any_base, **form), built(any_base, kind, **form)
    assert all(value.is_meta for value in (*bones.parameters(), *bones.buffers()))
    shapes = {name: value.shape for name, value in adapter.state_dict().items()}
    assert {name: value.shape for name, value in bones.state_dict().items()} == shapes
    assert bones.config == adapter.config
    assert (bones.kind, bones.start, bones.scalable) == (adapter.kind, adapter.start, adapter.scalable)


@pytest.mark.slow
@in_every_family
def test_a_copy_gives_the_same_and_shares_no_trained_tensor(
    any_base: Backbone, kind: str, form: dict[str, Any]
) -> None:
    adapter = trained(any_base, kind, **form)
    twin, batch = copy.deepcopy(adapter), inputs(any_base)
    with torch.no_grad():
        before = adapter(any_base, *batch)
        assert torch.equal(twin(any_base, *batch), before)
        stir(twin)
        assert not torch.equal(twin(any_base, *batch), before)
        assert torch.equal(adapter(any_base, *batch), before)
    frozen = {value.data_ptr() for value in any_base.parameters()}
    assert not frozen & {value.data_ptr() for value in adapter.parameters()}
