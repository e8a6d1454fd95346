"""Every adapter kind in `KINDS`, in each of its forms: a new kind or switch is tested without being named here."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from families import MODELS
from tiny import stir

from codi_hub import adapters
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError
from codi_hub.validation import validated

KINDS = adapters.KINDS.names()
Form = tuple[str, dict[str, Any]]


def alternatives(kind: str) -> Iterator[dict[str, Any]]:
    """The default settings of a kind, and each switch of its `Config` in each other position, one at a time."""
    yield {}
    for name, field in adapters.KINDS.load(kind).Config.model_fields.items():
        values = [True, False] if field.annotation is bool else []
        if get_origin(field.annotation) is Literal:
            values = list(get_args(field.annotation))
        yield from ({name: value} for value in values if value != field.default)


def accepted(kind: str, form: dict[str, Any]) -> bool:
    try:
        validated(adapters.KINDS.load(kind).Config, form, "adapter")
    except UsageError:
        return False
    return True


def trainable(kind: str, form: dict[str, Any]) -> bool:
    try:
        validated(adapters.KINDS.load(kind).Config, form, "adapter").check_trainable()
    except UsageError:
        return False
    return True


FORMS: list[Form] = [(kind, form) for kind in KINDS for form in alternatives(kind) if accepted(kind, form)]


def names(forms: list[Form]) -> list[str]:
    return ["-".join([kind, *(f"{name}={value}" for name, value in form.items())]) for kind, form in forms]


def somewhere(bases: tuple[str, ...], forms: list[Form]) -> pytest.MarkDecorator:
    """Forms on some of the two bases of Stable Diffusion's kind, and every kind on the families that it is for."""
    cases = [(base, *form) for base in bases for form in forms]
    for family in MODELS:
        unet = family == "sdxl"
        cases += [(family, kind, {}) for kind in KINDS if unet or not adapters.KINDS.load(kind).needs_unet]
    ids = [f"{base}-{name}" for (base, *_), name in zip(cases, names([case[1:] for case in cases]), strict=True)]
    return pytest.mark.parametrize(("any_base", "kind", "form"), cases, ids=ids, indirect=["any_base"])


every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize(("kind", "form"), FORMS, ids=names(FORMS))
TRAINED = [one for one in FORMS if trainable(*one)]
everywhere, in_every_family = somewhere(("v", "eps"), FORMS), somewhere(("v",), FORMS)
fitted = somewhere(("v",), [(kind, {}) for kind in KINDS])
trained_everywhere = somewhere(("v", "eps"), TRAINED)


def built(base: UNetBackbone, kind: str, **config: Any) -> Adapter:
    torch.manual_seed(0)
    return adapters.build(kind, base, **config)


def trained(base: UNetBackbone, kind: str, **config: Any) -> Adapter:
    """An adapter with an effect, as training would leave it."""
    return stir(built(base, kind, **config)).eval()
