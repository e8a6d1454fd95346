"""`--top-down`: what the deep levels of an encoder know reaches its fine ones, new or gone on from one without."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import record_of, stir
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import DistillOptions
from codi_hub.errors import UsageError
from codi_hub.training.job import Job, settled
from codi_hub.training.run import _new_adapter


def given(base: FrozenBase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_t, t, prompt and condition."""
    generator = torch.Generator().manual_seed(0)
    z_t, condition = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (3, 16, 16)))
    return z_t, torch.full((2,), 700), base.embed(["a blue box", "a red ball"]), condition


@pytest.mark.parametrize("kind", ["control", "full"])
def test_what_is_new_adds_nothing_yet(any_base: FrozenBase, kind: str) -> None:
    torch.manual_seed(0)
    usual = stir(adapters.build(kind, any_base))
    adapter = adapters.build(kind, any_base, top_down=True)
    missing, unexpected = adapter.load_state_dict(usual.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"top_down"}
    with torch.no_grad():
        assert torch.equal(adapter(any_base, *given(any_base)), usual(any_base, *given(any_base)))


def test_what_the_middle_knows_reaches_every_level_but_the_deepest(base: FrozenBase) -> None:
    z_t, t, prompt, condition = given(base)

    def reached(**config: Any) -> list[bool]:
        torch.manual_seed(0)
        adapter = stir(adapters.build("control", base, **config))
        seen: list[list[Tensor]] = []
        for push in (0.0, 1.0):
            hook = adapter.encoder.mid_block.register_forward_hook(lambda _, __, out, push=push: out + push)
            emb, features = base.features(z_t, t, prompt)
            with torch.no_grad():
                seen.append(adapter.conditioned(emb, features, z_t, t, prompt, adapter.prepare(condition)))
            hook.remove()
        return [not torch.equal(one, other) for one, other in zip(*seen, strict=True)]

    *others, middle = reached()
    assert middle
    assert not any(others)
    places = stir(adapters.build("control", base, top_down=True)).top_down.places[:-1]
    assert [place for place, changed in enumerate(reached(top_down=True)[:-1]) if changed] == places


def test_it_comes_back_from_its_files(base: FrozenBase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapter = stir(adapters.build("control", base, top_down=True))
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    again = format.load(tmp_path / format.WEIGHTS, format.read_record(tmp_path / format.RECORD), base)
    assert again.config == adapter.config == {"condition_channels": 3, "fusion": "zero_conv", "top_down": True}
    with torch.no_grad():
        assert (again(base, *given(base)) - adapter(base, *given(base))).abs().max() < 0.02  # weights take two bytes


def job(base: FrozenBase, folder: Path, kind: str, before: bool, wanted: bool) -> Job:
    """A distillation that goes on from a version, with or without, and is told `--top-down` or not."""
    torch.manual_seed(1)
    adapter = stir(adapters.build(kind, base, **({"top_down": True} if before else {})))
    format.write(folder, adapter, record_of(base, adapter), "")
    parent = ("edit:1", folder / format.WEIGHTS, folder / format.RECORD)
    options = DistillOptions(parent="edit:1", top_down=wanted)
    return Job("edit", "edit", {}, "tiny", "tiny", options, folder / "run", parent)


@pytest.mark.parametrize(("before", "wanted"), [(False, True), (True, False), (False, False)])
def test_a_version_gone_on_from_may_get_it_and_keeps_it(
    base: FrozenBase, tmp_path: Path, before: bool, wanted: bool
) -> None:
    begun = settled(job(base, tmp_path, "control", before, wanted))
    assert begun.options.top_down == (before or wanted)
    made = _new_adapter(begun, base, SimpleNamespace(condition_channels=3))
    assert made.config.get("top_down", False) == (before or wanted)
    assert begun.parent
    old = format.load(begun.parent[1], format.read_record(begun.parent[2]), base)
    with torch.no_grad():
        assert torch.allclose(made(base, *given(base)), old(base, *given(base)), atol=1e-5)


def test_where_it_cannot_be_it_is_refused(base: FrozenBase, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--top-down: only with --kind control or full, not static"):
        settled(job(base, tmp_path, "static", False, True))
    with pytest.raises(UsageError, match="--top-down: not with --fusion gate"):
        adapters.build("control", base, fusion="gate", top_down=True)
    with pytest.raises(UsageError, match="top_down 'yes': true or false"):
        adapters.build("control", base, top_down="yes")
