"""The kind `residual`: what it adds and where, what it reads, and how it comes back and goes on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import record_of, stir
from torch import Tensor, nn

from codi_hub import adapters
from codi_hub.adapters import Adapter, format
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import DistillOptions
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine
from codi_hub.training.job import Job, settled
from codi_hub.training.run import _new_adapter

FORMS: list[dict[str, Any]] = [{"blocks": 2}, {"blocks": 1, "levels": 2, "read": True}]
every_form = pytest.mark.parametrize("form", FORMS, ids=["flat", "reading"])


def built(base: FrozenBase, **form: Any) -> Adapter:
    torch.manual_seed(0)
    return stir(adapters.build("residual", base, **form)).eval()


def given(base: FrozenBase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z_t, t, prompt, condition)."""
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(2, 4, 8, 12, generator=generator)
    return z_t, torch.tensor([999, 300]), base.embed(["a red ball", ""]), torch.rand(2, 3, 16, 24, generator=generator)


@every_form
def test_it_adds_to_the_first_features_and_to_the_prediction_weighed_by_the_time(
    any_base: FrozenBase, form: dict[str, Any]
) -> None:
    adapter = built(any_base, **form)
    z_t, t, prompt, condition = given(any_base)
    with torch.no_grad():
        first, last = adapter.prepare(condition, prompt)
        emb, features = any_base.features(z_t, t, prompt)
        gains = adapter.gain(nn.functional.silu(emb))[:, :, None, None]
        of_first, of_last = gains.split([first.shape[1], last.shape[1]], dim=1)
        expected = any_base.finish(emb, [features[0] + of_first * first, *features[1:]], prompt) + of_last * last
        assert last.shape == z_t.shape
        assert torch.allclose(adapter(any_base, z_t, t, prompt, condition), expected, atol=1e-5)


@pytest.mark.parametrize(("form", "reads"), list(zip(FORMS, (False, True), strict=True)), ids=["flat", "reading"])
def test_only_one_that_reads_sees_the_prompt(base: FrozenBase, form: dict[str, Any], reads: bool) -> None:
    adapter = built(base, **form)
    condition = torch.rand(1, 3, 16, 24).expand(2, -1, -1, -1)
    with torch.no_grad():
        added = adapter.prepare(condition, base.embed(["a red ball", "night"]))
        assert all(torch.allclose(part[0], part[1], atol=1e-6) is not reads for part in added)


def test_a_text_is_read_in_what_it_differs_from_none(base: FrozenBase) -> None:
    adapter = adapters.build("residual", base, levels=2, blocks=1, read=True)
    assert torch.equal(adapter.text.nothing, base.embed([""])[0])


def test_it_runs_once_for_all_steps(base: FrozenBase) -> None:
    adapter = built(base, **FORMS[1])
    calls: list[str] = []
    for name, part in (("residual", adapter.stem), ("base", base.unet.mid_block)):
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    picture = [np.random.default_rng(0).random((16, 24, 3), np.float32)]
    Engine(base).generate(adapter, picture, ["a red ball"], [1], steps=4)
    assert calls == ["residual"] + ["base"] * 4


def test_its_levels_take_pictures_whose_halves_are_odd(base: FrozenBase) -> None:
    """Cells of 2 px: 18 x 14 px are 9 x 7 of them, which the base would have padded, and 5 x 4 below."""
    adapter = built(base, **FORMS[1])
    with torch.no_grad():
        first, _ = adapter.prepare(torch.rand(1, 3, 18, 14), base.embed([""]))
    assert first.shape[2:] == (9, 7)


@every_form
def test_it_comes_back_from_its_files(base: FrozenBase, tmp_path: Path, form: dict[str, Any]) -> None:
    adapter = built(base, **form)
    format.write(tmp_path, adapter, record_of(base, adapter), "")
    base._prompts.clear()  # a program that has embedded nothing yet
    again = format.load(tmp_path / format.WEIGHTS, format.read_record(tmp_path / format.RECORD), base)
    assert again.config == adapter.config == {"condition_channels": 3, "levels": 1, "read": False} | form
    with torch.no_grad():
        made = adapter(base, *given(base))
        assert (again(base, *given(base)) - made).norm() < 0.005 * made.norm()  # weights take two bytes


def job(base: FrozenBase, folder: Path, **wanted: Any) -> Job:
    """A distillation that goes on from a version of two levels that reads, and is told something."""
    adapter = built(base, start=0.5, **FORMS[1])
    format.write(folder, adapter, record_of(base, adapter), "")
    parent = ("edit:1", folder / format.WEIGHTS, folder / format.RECORD)
    return Job("edit", "edit", {}, "tiny", "tiny", DistillOptions(parent="edit:1", **wanted), folder / "run", parent)


@pytest.mark.parametrize("wanted", [{}, {"levels": 2, "read": True}], ids=["nothing", "the-same"])
def test_a_version_gone_on_from_keeps_its_form(base: FrozenBase, tmp_path: Path, wanted: dict[str, Any]) -> None:
    begun = settled(job(base, tmp_path, **wanted))
    made = _new_adapter(begun, base, SimpleNamespace(condition_channels=3))
    assert made.config == {"condition_channels": 3, "start": 0.5} | FORMS[1]
    assert begun.parent
    old = format.load(begun.parent[1], format.read_record(begun.parent[2]), base)
    with torch.no_grad():
        assert torch.allclose(made(base, *given(base)), old(base, *given(base)), atol=1e-4)


@pytest.mark.parametrize(
    ("wanted", "says"), [({"blocks": 3}, "--blocks 3: --from edit:1 has 1"), ({"levels": 1}, "--levels 1: --from edit")]
)
def test_another_form_of_it_is_refused(base: FrozenBase, tmp_path: Path, wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settled(job(base, tmp_path, **wanted))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"blocks": 0}, "--blocks 0: a number from 1 to 64"),
        ({"blocks": True}, "--blocks True: a number"),
        ({"levels": 3}, "--levels 3: a number from 1 to the base's 2"),
        ({"read": "yes"}, "read 'yes': true or false"),
        ({"fusion": "gate"}, "--fusion 'gate': not with --kind residual"),
    ],
)
def test_what_cannot_be_is_refused(base: FrozenBase, config: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        adapters.build("residual", base, **config)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fusion": "gate"}, "--fusion gate: not with --kind residual"),
        ({"attend": "all"}, "--attend all: not with --kind residual"),
        ({"top_down": True}, "--top-down: only with --kind control or full, not residual"),
    ],
)
def test_switches_of_other_kinds_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settled(Job("edit", "edit", {}, "tiny", "tiny", DistillOptions(kind="side", **options), tmp_path / "run"))


@pytest.mark.parametrize("name", ["blocks", "levels", "read"])
def test_its_switches_are_refused_with_other_kinds(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} has a meaning with --kind residual alone"):
        DistillOptions(kind="static", **{name: 2})


def test_more_levels_than_the_base_has_are_refused_before_pairs_are_made(
    codi: Callable[..., Any], tmp_path: Path
) -> None:
    told = ("--kind", "residual", "--levels", "9", "--count", "16", "--train-steps", "1", "--device", "cpu")
    AcceleratorState._reset_state(True)
    answer = codi("distill", "edit", *told, "--run-dir", tmp_path / "run", "--quiet")
    AcceleratorState._reset_state(True)
    assert answer == (2, "", "Error: --levels 9: a number from 1 to the base's 4\n")
    assert not (tmp_path / "run" / "pairs").exists()
