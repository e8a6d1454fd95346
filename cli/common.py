"""The options that many commands share, and the parsing of --set."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from codi_hub.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no messages; of a list only the names")]
Base = Annotated[str | None, typer.Option("--base", help="Only this base")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Task option as KEY=VALUE; repeat for more")
]
Scale = Annotated[int | None, typer.Option("--scale", help="Enlargement; the same as --set scale=N")]
Estimate = Annotated[
    str | None, typer.Option("--estimate", metavar="MODEL", help="Model that makes the condition; --set estimate=MODEL")
]

Mask = Annotated[str | None, typer.Option("--mask", metavar="FILE", help="Hole of every input; --set mask=FILE")]
# Task options with a flag of their own, in commands that run a task.
FLAGS = {"scale": Scale, "estimate": Estimate, "mask": Mask}


def parse_set(pairs: list[str] | None, **named: Any) -> dict[str, Any]:
    """Return the values of `["scale=2", "invert=true", "estimate=org/model"]`: JSON's scalars, else text.

    Args:
        pairs: KEY=VALUE, as typed.
        named: options that have a flag of their own; None means that it was not typed.

    Raises:
        UsageError: a pair without `=`, or one key with two values.
    """
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set takes KEY=VALUE, not {pair!r}")
        _put(settings, key.strip(), _value(text.strip()))
    for key, value in named.items():
        if value is not None:
            _put(settings, key, value)
    return settings


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    if settings.setdefault(key, value) != value:
        raise UsageError(f"option {key} is given twice, as {settings[key]!r} and {value!r}")


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
    return text if isinstance(value, dict | list) else value
