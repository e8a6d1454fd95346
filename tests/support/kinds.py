"""Every adapter kind in `KINDS`, in each of its forms: a new kind or switch is tested without being named here."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
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


every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize(("kind", "form"), FORMS, ids=names(FORMS))
TRAINED = [one for one in FORMS if trainable(*one)]
every_trainable_form = pytest.mark.parametrize(("kind", "form"), TRAINED, ids=names(TRAINED))


def built(base: UNetBackbone, kind: str, **config: Any) -> Adapter:
    torch.manual_seed(0)
    return adapters.build(kind, base, **config)


def trained(base: UNetBackbone, kind: str, **config: Any) -> Adapter:
    """An adapter with an effect, as training would leave it."""
    return stir(built(base, kind, **config)).eval()
