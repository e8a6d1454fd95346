"""`--attend all`: an encoder that reads the prompt at every level, new or gone on from one that does not."""

from pathlib import Path
from types import SimpleNamespace

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

BOX, BALL = "a blue box", "a red ball"


def given(base: FrozenBase, *prompts: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_t, t, prompt and condition, rows that differ in the prompt alone."""
    generator = torch.Generator().manual_seed(0)
    z_t, condition = (torch.randn(1, *shape, generator=generator) for shape in ((4, 8, 8), (3, 16, 16)))
    count = len(prompts)
    t = torch.full((count,), 700)
    return z_t.expand(count, -1, -1, -1), t, base.embed(list(prompts)), condition.expand(count, -1, -1, -1)


@pytest.mark.parametrize("kind", ["control", "full"])
def test_what_is_new_adds_nothing_yet(any_base: FrozenBase, kind: str) -> None:
    torch.manual_seed(0)
    usual = stir(adapters.build(kind, any_base))
    adapter = adapters.build(kind, any_base, attend="all")
    missing, unexpected = adapter.load_state_dict(usual.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all("attentions" in name for name in missing)
    with torch.no_grad():
        assert torch.equal(adapter(any_base, *given(any_base, BOX)), usual(any_base, *given(any_base, BOX)))


def test_the_prompt_reaches_places_that_the_bases_attention_does_not_see(base: FrozenBase) -> None:
    """The tiny base attends on its second level; what the first gives knows the prompt as a whole at most."""
    z_t, t, prompt, condition = given(base, BOX, BALL)

    def where_it_matters(attend: str) -> Tensor:
        torch.manual_seed(0)
        adapter = stir(adapters.build("control", base, attend=attend))
        del adapter.encoder.add_embedding  # the prompt as a whole
        emb, features = base.features(z_t, t, prompt)
        with torch.no_grad():
            fused = adapter.conditioned(emb, features, z_t, t, prompt, adapter.prepare(condition))
        _, first, *_ = (mine - own for mine, own in zip(fused, features, strict=True))
        return (first[0] - first[1]).abs().amax(0)  # (h, w)

    assert where_it_matters("base").max() < 1e-5
    assert where_it_matters("all").min() > 1e-3


def test_it_comes_back_from_its_files(base: FrozenBase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapter = stir(adapters.build("control", base, attend="all"))
    record = record_of(base, adapter)
    format.write(tmp_path, adapter, record, "")
    again = format.load(tmp_path / format.WEIGHTS, format.read_record(tmp_path / format.RECORD), base)
    assert again.config == adapter.config == {"condition_channels": 3, "fusion": "zero_conv", "attend": "all"}
    with torch.no_grad():
        near = again(base, *given(base, BOX)) - adapter(base, *given(base, BOX))
    assert near.abs().max() < 0.02  # weights take two bytes


def job(base: FrozenBase, folder: Path, kind: str, attends: str, wanted: str) -> Job:
    """A distillation that goes on from a version with `attends`, and is told `--attend wanted`."""
    torch.manual_seed(1)
    adapter = stir(adapters.build(kind, base, **({} if kind == "static" else {"attend": attends})))
    format.write(folder, adapter, record_of(base, adapter), "")
    parent = ("edit:1", folder / format.WEIGHTS, folder / format.RECORD)
    options = DistillOptions(parent="edit:1", attend=wanted)
    return Job("edit", "edit", {}, "tiny", "tiny", options, folder / "run", parent)


@pytest.mark.parametrize(("before", "wanted"), [("base", "all"), ("all", "base"), ("all", "all")])
def test_a_version_gone_on_from_may_learn_to_attend_and_never_forgets(
    base: FrozenBase, tmp_path: Path, before: str, wanted: str
) -> None:
    begun = settled(job(base, tmp_path, "control", before, wanted))
    assert begun.options.attend == "all"
    made = _new_adapter(begun, base, SimpleNamespace(condition_channels=3))
    assert made.config["attend"] == "all"
    old = format.load(*begun.parent[1:2], format.read_record(begun.parent[2]), base)
    with torch.no_grad():
        assert torch.allclose(made(base, *given(base, BOX)), old(base, *given(base, BOX)), atol=1e-5)


def test_kinds_without_attention_and_unknown_levels_are_refused(base: FrozenBase, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--attend all: not with --kind static"):
        settled(job(base, tmp_path, "static", "base", "all"))
    options = DistillOptions(kind="lora", attend="all")
    with pytest.raises(UsageError, match="--attend all: not with --kind lora"):
        settled(Job("edit", "edit", {}, "tiny", "tiny", options, tmp_path))
    with pytest.raises(UsageError, match="--attend 'some': one of base, all"):
        adapters.build("control", base, attend="some")
