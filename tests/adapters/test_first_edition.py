"""Forms of the first edition, `attend` all and `top_down`: they load and run, and are refused for training.

What they generate is in `tests/compatibility`.
"""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from inputs import inputs
from kinds import built, trained
from tiny import record_of
from training import Make

from codi_hub.adapters import format
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.config.distill import TrainingConfig
from codi_hub.errors import UsageError
from codi_hub.losses import METHODS
from codi_hub.training.trainer import Trainer

OLD = {"attend": {"attend": "all"}, "top_down": {"top_down": True}}


@pytest.mark.parametrize("form", OLD)
@pytest.mark.parametrize("kind", ["control", "full"])
def test_the_layers_that_were_new_add_zero_at_initialisation(any_base: UNetBackbone, kind: str, form: str) -> None:
    usual = trained(any_base, kind)
    adapter = built(any_base, kind, **OLD[form])
    missing, unexpected = adapter.load_state_dict(usual.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(("attentions" if form == "attend" else "top_down") in name for name in missing)
    batch = inputs(any_base)
    with torch.no_grad():
        assert torch.equal(adapter(any_base, *batch), usual(any_base, *batch))


@pytest.mark.parametrize("form", OLD)
@pytest.mark.parametrize("kind", ["control", "full"])
def test_they_are_loaded_from_their_files_and_not_trained(
    base: UNetBackbone, make: Make, tmp_path: Path, kind: str, form: str
) -> None:
    adapter = trained(base, kind, **OLD[form])
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    loaded = format.load(tmp_path / format.WEIGHTS, format.read_record(tmp_path / format.RECORD), base)
    assert OLD[form].items() <= loaded.config.items()
    batch = inputs(base)
    with torch.no_grad():
        expected = adapter(base, *batch)
        assert (loaded(base, *batch) - expected).norm() < 0.005 * expected.norm()  # weights take two bytes
    method = METHODS.load("pe-codi")
    AcceleratorState._reset_state(True)
    with pytest.raises(
        UsageError,
        match="attend all and top_down can be run but are no longer trained: train a new adapter without them",
    ):
        Trainer(
            base,
            loaded,
            make.cache,
            method(method.Config(), base.device),
            TrainingConfig(train_steps=1),
            Accelerator(cpu=True),
            tmp_path,
        )


@pytest.mark.parametrize("kind", ["lora", "static"])
@pytest.mark.parametrize("form", OLD)
def test_kinds_that_never_had_them_refuse_them(base: UNetBackbone, kind: str, form: str) -> None:
    with pytest.raises(UsageError, match=rf"adapter\.{form} (all|true): only with kinds control and full"):
        built(base, kind, **OLD[form])


def test_top_down_is_refused_with_gates(base: UNetBackbone) -> None:
    with pytest.raises(UsageError, match="top_down: not with fusion gate"):
        built(base, "control", fusion="gate", top_down=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"attend": "some"}, r"adapter\.attend some: one of base, all"), ({"top_down": "yes"}, "top_down yes: true or")],
)
def test_a_value_that_cannot_be_is_refused(base: UNetBackbone, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(base, "control", **wrong)
