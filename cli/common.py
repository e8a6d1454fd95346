"""The options that many commands share, and the parsing of --set."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from codi_hub.cli import completion
from codi_hub.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no messages; of a list only the names")]
Base = Annotated[str | None, typer.Option("--base", help="Only this base", autocompletion=completion.bases)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Task option as KEY=VALUE; repeat for more")
]


def task_flags() -> dict[str, Any]:
    """Return the task options that have a flag of their own, beside --set: name -> annotation for Typer."""
    from codi_hub import tasks

    flags = {}
    for name, flag in tasks.option_flags().items():
        text = f"{flag.help}; the same as --set {name}={flag.metavar or 'VALUE'}"
        option = typer.Option(f"--{name.replace('_', '-')}", metavar=flag.metavar, help=text)
        flags[name] = Annotated[flag.type | None, option]
    return flags


def with_task_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `task_flags`; it gets their values, None where not typed, as `flags`."""
    flags = task_flags()

    def with_flags(**values: Any) -> None:
        typed = {name: values.pop(name) for name in flags}
        command(**values, flags=typed)

    return presented(with_flags, command, "flags", flags)


def presented(
    function: Callable[..., None], command: Callable[..., None], hidden: str, options: Mapping[str, Any]
) -> Callable[..., None]:
    """Return a function that Typer takes for a command with further options in place of one parameter.

    Args:
        function: what is called, with keywords alone.
        command: has the name, the help and the other parameters.
        hidden: the parameter.
        options: name -> annotation; None where not typed.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != hidden]
    added = [inspect.Parameter(name, kind, default=None, annotation=option) for name, option in options.items()]
    parameters = [*(p.replace(kind=kind) for p in own), *added]
    functools.update_wrapper(function, command)
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


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
